"""A fake Kubernetes cluster with KServe, see ``cluster``."""

from tests.support.fake_cluster.cluster import FakeCluster, Routed

__all__ = ["FakeCluster", "Routed"]
