"""What a predictor says of itself to whoever started it: a small JSON file, and in a pod the message of its termination.

{"state": "ready", "reason": "", "pid": 4711, "version": "3", "digest": "blake3:5f3c…", "port": 8080}
"""

import json
import logging
import os
from pathlib import Path
from typing import Literal

from modelyard.components import termination
from modelyard.components.storage.files import write_text

State = Literal["starting", "ready", "failed", "draining"]

logger = logging.getLogger("modelyard.predictor")


class StatusFile:
    """Writes the state of this process, whole each time.

    Attributes:
        version: the version that is served or was to be.
        digest: its digest, as far as it is known.
        port: the port that it answers on; 0 until it is known.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = Path(path) if path else None
        self.version = ""
        self.digest = ""
        self.port = 0

    def write(self, state: State, reason: str = "") -> None:
        """Says the state, and why: why it failed, or why the last reload was refused.

        A file that cannot be written is told in the log: whatever the predictor does meanwhile is more important.
        """
        try:
            self._write(state, reason)
        except OSError as error:
            logger.warning("the state %s cannot be told in %s: %s", state, self._path, error)

    def _write(self, state: State, reason: str) -> None:
        if self._path is not None:
            content = {
                "state": state,
                "reason": reason,
                "pid": os.getpid(),
                "version": self.version,
                "digest": self.digest,
                "port": self.port,
            }
            write_text(self._path, json.dumps(content) + "\n")
        if state == "failed":
            termination.tell(reason)
