"""The process that ``measuring`` starts: does one piece of work and writes down what it took."""

import importlib
import json
import sys
from pathlib import Path

from modelyard.scripts.benchmark.measuring import Clock

if __name__ == "__main__":
    _module, _, _function = sys.argv[1].partition(":")
    _clock = Clock()
    _facts = getattr(importlib.import_module(_module), _function)(
        _clock, **json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    )
    _answer = {"seconds": _clock.seconds, "cpu_seconds": _clock.cpu_seconds, "facts": _facts}
    Path(sys.argv[3]).write_text(json.dumps(_answer), encoding="utf-8")
