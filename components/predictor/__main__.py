"""Serves one model: ``python -m modelyard.components.predictor --model_name fraud --model_dir DIR``.

The same command runs on a laptop and as the container of a KServe pod. What else it takes from its environment says
``modelyard.components.predictor.configuration``.
"""

import argparse
import logging
import os
import signal
import sys
from types import FrameType

from modelyard.components.errors import InvalidInput
from modelyard.components.lean_imports import left_out, treat_process_as_step
from modelyard.components.predictor.configuration import Configuration
from modelyard.components.predictor.status import StatusFile


def _arguments() -> argparse.Namespace:
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    parser = argparse.ArgumentParser("python -m modelyard.components.predictor", description="Serves one signed model by HTTP.")
    parser.add_argument("--model_name", required=True, help="name that the model was signed under, and is asked for by")
    parser.add_argument("--model_dir", required=True, help="its signed directory")
    parser.add_argument("--http_port", type=int, default=8080, help="port to listen on (default 8080)")
    # A pod is reached at its own address; a laptop's predictor is nobody else's business.
    host = "0.0.0.0" if in_pod else "127.0.0.1"  # noqa: S104
    parser.add_argument("--host", default=host, help="address to listen on (default: loopback; in a pod all)")
    parser.add_argument("--fd", type=int, help="descriptor of an inherited listening TCP socket, instead of host and port")
    parser.add_argument("--status_file", help="file to say the state of this process in, as JSON")
    return parser.parse_args()


def main() -> int:
    """Runs a predictor; returns its exit status."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    arguments = _arguments()
    status = StatusFile(arguments.status_file)
    status.version, status.digest = os.environ.get("MODEL_VERSION", ""), os.environ.get("MODEL_DIGEST", "")

    def end(number: int, frame: FrameType | None) -> None:
        status.write("draining", "it was ended before it was ready")
        sys.exit(0)

    # Until the loop that serves has handlers of its own.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Whoever reads this may send a signal.
    status.write("starting")

    treat_process_as_step()
    from modelyard.components.predictor.lean_kserve import import_kserve_model

    import_kserve_model()
    # A signer by AWS comes with the library that verifies signatures, and is of no use here.
    with left_out("boto3"):
        import model_signing  # noqa: F401
    from modelyard.components.predictor.served_model import ServedModel
    from modelyard.components.predictor.server import CALLED_WRONGLY, Predictor, listen

    try:
        configuration = Configuration.from_environment()
        model = ServedModel(arguments.model_name, arguments.model_dir, configuration)
        listening = listen(arguments.host, arguments.http_port, arguments.fd)
    except InvalidInput as error:
        logging.getLogger("modelyard.predictor").error("%s", error)
        status.write("failed", str(error))
        return CALLED_WRONGLY
    status.port = listening.port
    return Predictor(model, configuration, listening, status).run()


if __name__ == "__main__":
    sys.exit(main())
