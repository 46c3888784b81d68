"""A small simulated feature repo that all pipeline tests read, and a release of it as a user would ask for it."""

import pytest

from modelyard.components.features.simulated_repo import ENTITY_FEATURES, FEATURE_SERVICE, LABEL, write_simulated_repo
from modelyard.components.features.simulation import Scale
from modelyard.scripts import compiled
from modelyard.scripts.local_run import run_pipeline


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Feature repo and entity rows of 300 customers over 63 days."""
    folder = tmp_path_factory.mktemp("simulated")
    write_simulated_repo(folder / "repo", folder / "rows.parquet", Scale(customers=300, terminals=600, days=63, seed=7))
    return folder / "repo", folder / "rows.parquet"


@pytest.fixture
def request_for(simulated):
    """Parameters of a release on the simulated data; keyword arguments override them."""

    def build(**overrides):
        repo, rows = simulated
        return {
            "model_name": "fraud",
            "feature_repo_uri": str(repo),
            "entity_rows_uri": str(rows),
            "feature_service": FEATURE_SERVICE,
            "label": LABEL,
            "entity_features": list(ENTITY_FEATURES),
            "cluster_by": "customer_id",
            "test_days": 14.0,
            "validation_days": 10.0,
            "gap_days": 3.0,
            "training_parameters": {"rounds": 20},
            "target": "registry",
        } | overrides

    return build


@pytest.fixture
def release(tmp_path, request_for):
    """Runs the compiled release pipeline in one home."""

    def run(home=None, **overrides):
        return run_pipeline(compiled.find("release"), request_for(**overrides), home or tmp_path / "home")

    return run
