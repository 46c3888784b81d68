"""How all tests run."""

from hypothesis import HealthCheck, settings

# No timed assertions: a busy machine must not fail a property.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
