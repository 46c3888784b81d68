"""Fetches a model for a serving pod: ``python -m modelyard.components.initializer s3://models/fraud/5f3c…-9b1d… /mnt/models``.

KServe runs it as the init container ``storage-initializer``. It ends with 0 once the model lies at the destination, whole,
verified and the one that the pod asks for (see ``modelyard.components.initializer.asked_for``); else with 1 and the reason in
one line, which is the message of the container's termination, too, and with nothing left at the destination.

Whose signature counts is configured as everywhere, see ``modelyard.components.settings`` and ``modelyard.components.signing``;
credentials are those that ``modelyard.components.storage`` and MLflow read from their environment.
"""

import errno
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from modelyard.components import termination
from modelyard.components.errors import ModelyardError
from modelyard.components.lean_imports import treat_process_as_step

_USAGE = "call it with two arguments: where the model is, and the folder to put it into"


def main(arguments: list[str]) -> int:
    """Runs the initializer; returns its exit status."""
    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, _end)
    if len(arguments) != 2:
        return _refuse(_USAGE)
    source, destination = arguments
    treat_process_as_step()
    from modelyard.components.initializer.asked_for import AskedFor
    from modelyard.components.initializer.initializing import initialize

    try:
        asked = AskedFor.from_environment()
        initialize(source, Path(destination), asked)
    except ModelyardError as error:
        return _refuse(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; give the pod more ephemeral storage" if full else ""
        return _refuse(f"{source} cannot be put into {destination}: {error.strerror or error}{remedy}")
    print(f"{destination} holds {asked.model_name}, {asked.digest}, from {source}: verified")
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Transfers would be waited for otherwise. What is left is removed by whoever starts next.
    os._exit(128 + number)


def _refuse(reason: str) -> int:
    line = " ".join(reason.split())
    print(f"refused: {line}", file=sys.stderr)
    termination.tell(line)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
