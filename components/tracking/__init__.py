"""MLflow tracking: one client for everything that reads or writes runs and registered models, and the run of a training."""

from modelyard.components.tracking.connection import client

__all__ = ["client"]
