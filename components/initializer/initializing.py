"""Fetching one model into a pod's volume: verified first, then laid out for its server, whole or not at all."""

from pathlib import Path

from modelyard.components.initializer.asked_for import TRITON, AskedFor
from modelyard.components.initializer.placing import placed_whole
from modelyard.components.initializer.sources import bring
from modelyard.components.signing.verification import verify_model


def initialize(source: str, destination: Path, asked: AskedFor) -> None:
    """Puts the model that is asked for into ``destination``, if ``source`` holds that one, signed by whom we trust.

    A repeated call finds what the first one left and changes nothing; what a killed one left is replaced.

    Args:
        source: what ``modelyard.components.initializer.sources`` lists.
        destination: folder, which may exist and is empty but for what an earlier call put there.
        asked: which model it must be, and how it is laid out.

    Raises:
        VerificationFailed: it is not signed, altered, or another model or version.
        InvalidInput: there is no such source, or something else is in the destination.
        NotAvailable: the source cannot be reached.
        OSError: the volume cannot be written to, or is full.
    """
    with placed_whole(destination) as content:
        signed = content if asked.layout != TRITON else content.with_name("signed")
        bring(source, signed, asked)
        verify_model(signed, model_name=asked.model_name, digest=asked.digest)
        if asked.layout == TRITON:
            from modelyard.components.serving.triton.repository import write_repository

            content.mkdir()
            write_repository(signed, content, model_name=asked.model_name)
