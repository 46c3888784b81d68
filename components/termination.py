"""What a container says last: Kubernetes shows this file's content as the reason why it ended."""

import os
from pathlib import Path

TERMINATION_LOG = Path("/dev/termination-log")
_MOST_BYTES = 4096


def tell(reason: str) -> None:
    """In a pod, makes ``reason`` the message of this container's termination, cut to what Kubernetes keeps of it."""
    if "KUBERNETES_SERVICE_HOST" in os.environ and os.access(TERMINATION_LOG, os.W_OK):
        TERMINATION_LOG.write_bytes(reason.encode()[:_MOST_BYTES])
