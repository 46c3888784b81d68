"""A predictor behind the proxy of the local serving target, for as long as the process that started this one lives.

Run as ``python -m modelyard.scripts.benchmark.proxied FOLDER PREDICTOR_PORT PORT``; it ends when its input does.
"""

import os
import signal
import sys
from pathlib import Path

from modelyard.components.serving.local.proxy import Backend, Proxy, Route
from modelyard.scripts.benchmark.wire import MODEL_NAME

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    _proxy = Proxy(Path(sys.argv[1]), int(sys.argv[3]))
    try:
        _proxy.start()
        _proxy.apply([Route(MODEL_NAME, stable=Backend(f"{MODEL_NAME}-1", int(sys.argv[2])))])
        os.read(0, 1)
    finally:
        _proxy.stop()
