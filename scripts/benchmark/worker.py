"""The process that ``measuring`` starts: does one piece of work and writes down what it took.

It ends when the process that started it does, however that ends: its standard input is a pipe from there.
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path

from modelyard.scripts.benchmark.import_clock import own_peak_gib
from modelyard.scripts.benchmark.measuring import Clock


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _module, _, _function = sys.argv[1].partition(":")
    _clock = Clock()
    _facts = getattr(importlib.import_module(_module), _function)(
        _clock, **json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    )
    _answer = {"seconds": _clock.seconds, "cpu_seconds": _clock.cpu_seconds, "peak_gib": own_peak_gib(), "facts": _facts}
    Path(sys.argv[3]).write_text(json.dumps(_answer), encoding="utf-8")
