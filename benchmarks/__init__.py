"""What the package costs. ``python -m benchmarks`` runs everything that needs no GPU; see :mod:`benchmarks.__main__`."""
