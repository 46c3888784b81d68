"""What the predictor is measured beside: the same model, through the same loader, in servers as one would write them.

Run as ``python -m modelyard.scripts.benchmark.serving_peers NAME MODEL PORT``.
"""

import sys
from collections.abc import Callable
from typing import Any

from modelyard.scripts.benchmark.wire import MODEL_NAME

READY = "/v2/health/ready"


def serve_with_fastapi(model: str, port: int) -> None:
    """Bare FastAPI and orjson: nothing is checked, counted or logged, and the answer is the scores alone."""
    import numpy as np
    import orjson
    import uvicorn
    from fastapi import FastAPI, Request, Response

    from modelyard.components.artifacts.scoring import load_scorer

    scorer = load_scorer(model)
    names = scorer.spec.feature_names
    app = FastAPI()

    @app.get(READY)
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/models/{model_name}:predict")
    async def predict(model_name: str, request: Request) -> Response:
        rows = orjson.loads(await request.body())["instances"]
        if isinstance(rows[0], dict):
            rows = [[row[name] for name in names] for row in rows]
        scores = scorer.score_matrix(np.array(rows, np.float32))
        answer = orjson.dumps({"predictions": scores}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(answer, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")


def serve_with_kserve(model: str, port: int) -> None:
    """kserve's own server with a model as its documentation has one, and nothing logged."""
    import logging
    import socket

    # Asked for in the arguments that kserve reads when it is imported: otherwise it logs each request.
    sys.argv = [sys.argv[0], "--configure_logging=false", "--enable_latency_logging=false"]

    import kserve
    import numpy as np
    from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
    from kserve.protocol.rest.server import RESTServer
    from kserve.utils.utils import generate_uuid

    from modelyard.components.artifacts.scoring import Scorer, load_scorer

    logging.getLogger().setLevel(logging.WARNING)

    class Model(kserve.Model):
        scorer: Scorer

        def load(self) -> bool:
            self.scorer = load_scorer(model)
            self.ready = True
            return self.ready

        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            if isinstance(payload, dict):
                scores = self.scorer.score_matrix(np.array(payload["instances"], np.float32))
                return {"predictions": scores.tolist()}
            scores = self.scorer.score_matrix(payload.inputs[0].as_numpy())
            output = kserve.InferOutput("probability", list(scores.shape), "FP64")
            output.set_data_from_numpy(scores, binary_data=payload.use_binary_outputs)
            number = payload.id or generate_uuid()
            return kserve.InferResponse(number, self.name, [output], use_binary_outputs=payload.use_binary_outputs)

    served = Model(MODEL_NAME)
    served.load()
    server = kserve.ModelServer(http_port=port, enable_grpc=False)
    server.register_model(served)
    rest = RESTServer(FASTAPI_APP_IMPORT_STRING, server.dataplane, server.model_repository_extension, port)
    # Started as a whole it listens on all addresses.
    with socket.create_server(("127.0.0.1", port)) as listener:
        rest.run(sockets=[listener])


PEERS: dict[str, Callable[[str, int], None]] = {"fastapi": serve_with_fastapi, "kserve": serve_with_kserve}

if __name__ == "__main__":
    PEERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
