"""A real Triton server on loopback: its core, its HTTP front end and its metrics.

They come from the wheel of nvidia-pytriton, which brings Triton's Python backend alone. It cannot be installed beside this
package (it wants another NumPy) and need not be::

    pip install --no-deps --target FOLDER nvidia-pytriton==0.7.0
    export MODELYARD_TRITON=FOLDER

A model of the backends that it lacks is scored in the Python backend by what they run: ONNX Runtime, and Treelite for FIL.
"""

import contextlib
import os
import shutil
import site
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.servers import free_port, running

_STAND_IN = """
from pathlib import Path

import numpy
import triton_python_backend_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"], args["model_version"])
        if (folder / "xgboost.ubj").exists():
            import treelite

            model = treelite.frontend.load_xgboost_model(folder / "xgboost.ubj", format_choice="ubjson")
            self.names = "input__0", "output__0"
            self.score = lambda rows: treelite.gtil.predict(model, rows, nthread=1).reshape(-1, 1)
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(folder / "model.onnx")
            self.names = "features", "score"
            self.score = lambda rows: session.run(["score"], {"features": rows})[0]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        backend = triton_python_backend_utils
        # Its own conversions are for NumPy 1.
        rows = numpy.from_dlpack(backend.get_input_tensor_by_name(request, self.names[0]))
        scores = backend.Tensor.from_dlpack(self.names[1], numpy.ascontiguousarray(self.score(rows), numpy.float32))
        return backend.InferenceResponse([scores])
"""


def require() -> Path:
    """The folder of the wheel; skips the test where there is none."""
    if not os.environ.get("MODELYARD_TRITON"):
        pytest.skip("no Triton server here: see tests/services/triton.py for how to get one, and set MODELYARD_TRITON")
    return Path(os.environ["MODELYARD_TRITON"])


@contextlib.contextmanager
def serving(repository: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Serves a repository that ``write_repository`` wrote; yields the URLs of its models and of its metrics.

    Args:
        repository: the repository; it is copied.
        folder: an empty folder for the copy and the log.
    """
    package = require()
    server = package / "pytriton" / "tritonserver"
    models, backends = folder / "models", folder / "backends"
    shutil.copytree(repository, models)
    for model in models.iterdir():
        config = (model / "config.pbtxt").read_text()
        for backend in ("fil", "onnxruntime"):
            config = config.replace(f'backend: "{backend}"', 'backend: "python"')
        (model / "config.pbtxt").write_text(config)
        (model / "1" / "model.py").write_text(_STAND_IN)
    shutil.copytree(server / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    for program in (Path(stub), server / "bin" / "tritonserver"):
        program.chmod(0o755)
    http, metrics = free_port(), free_port()
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={models}", f"--backend-directory={backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={http}", "--allow-grpc=false"]
    command += ["--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--model-load-thread-count=1"]
    # As the cluster's runtime has it: what the configuration leaves out is not guessed from the model.
    command += ["--disable-auto-complete-config", "--exit-on-error=true", "--strict-readiness=true"]
    environment = {
        "LD_LIBRARY_PATH": str(package / "nvidia_pytriton.libs"),
        "PYTHONPATH": os.pathsep.join(site.getsitepackages()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    url = f"http://127.0.0.1:{http}"
    with running(command, f"{url}/v2/health/ready", folder / "log", environment):
        yield url, f"http://127.0.0.1:{metrics}/metrics"
