"""Real servers on loopback for tests, from packages alone: S3, a stricter S3, Google Cloud Storage, PostgreSQL and MLflow."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 90


@dataclass(frozen=True)
class Server:
    """A running server and the environment that leads a client to it.

    Attributes:
        url: where it listens.
        environment: variables a client needs.
        folder: where it keeps its objects as files, if it does.
    """

    url: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Runs a server until the block ends; waits until it answers HTTP at ``url``, in whatever way."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
        )
        try:
            _wait(process, url, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args} did not answer in time:\n{log.read_text(errors='replace')[-2000:]}")


def _s3_environment(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[Server]:
    """An S3 server that checks signatures and keeps objects as files; it ignores conditions on writes."""
    port = free_port()
    objects = folder / "objects"
    (objects / "bucket").mkdir(parents=True)
    url = f"http://127.0.0.1:{port}"
    rclone = Path(sys.executable).with_name("rclone")
    command = [str(rclone), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "testkey,testsecret"]
    command += ["--vfs-cache-mode", "off", "--config", os.devnull, str(objects)]
    with running(command, url, folder / "log"):
        yield Server(url, _s3_environment(url), objects)


@contextlib.contextmanager
def moto_s3(folder: Path) -> Iterator[Server]:
    """An S3 server that honours conditions on writes; it accepts any credentials."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], url, folder / "log"):
        import boto3

        server = Server(url, _s3_environment(url))
        boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="testkey", aws_secret_access_key="testsecret", region_name="us-east-1"
        ).create_bucket(Bucket="bucket")
        yield server


@contextlib.contextmanager
def gcs_emulator(folder: Path) -> Iterator[Server]:
    """A Google Cloud Storage server; it ignores conditions on writes."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", "import sys; from gcp_storage_emulator.__main__ import main; main(sys.argv[1:])"]
    command += ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", "bucket"]
    with running(command, url, folder / "log"):
        yield Server(url, {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test"})


@contextlib.contextmanager
def mlflow_on_postgres(folder: Path, store: Server) -> Iterator[Server]:
    """An MLflow server as a cluster has it: PostgreSQL behind it, artifacts on S3."""
    import pgserver

    database = pgserver.get_server(folder / "postgres", cleanup_mode="stop")
    try:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", database.get_uri().replace("postgresql://", "postgresql+psycopg2://")]
        command += ["--artifacts-destination", "s3://bucket/mlflow", "--serve-artifacts"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        with running(command, f"{url}/health", folder / "log", {**store.environment, **quiet}):
            yield Server(url, {"MLFLOW_TRACKING_URI": url})
    finally:
        database.cleanup()
