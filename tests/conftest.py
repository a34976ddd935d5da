"""Settings of the whole suite."""

from hypothesis import settings

# Machines that run the suite are shared and slow at times: a slow example is not a failure.
settings.register_profile("bridge", deadline=None)
settings.load_profile("bridge")
