"""The command line. Nothing but ``bridge train`` needs torch."""
