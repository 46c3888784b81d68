"""Session fixtures of the servers; import the names that a test module needs."""

from collections.abc import Iterator

import pytest

from tests.services import servers


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.rclone_s3(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.moto_s3(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def gcs_emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.gcs_emulator(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(rclone_s3: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    pytest.importorskip("pgserver", reason="PostgreSQL comes from pgserver, which has no build for this Python")
    with servers.mlflow_on_postgres(tmp_path_factory.mktemp("mlflow"), rclone_s3) as server:
        yield server
