"""Publishing a signed model: one copy under its digest, verified where it lies, never overwritten.

s3://models/fraud/5f3c…-9b1d…/    NAME/DIGEST-SIGNATURE, one folder for each signature of a model
/home/me/.modelyard/models/fraud/5f3c…/    on this machine NAME/DIGEST, which appears at once
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.components import settings
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput
from modelyard.components.signing.contents import SIGNATURE_FILE
from modelyard.components.signing.verification import verify_model
from modelyard.components.storage import uris
from modelyard.components.storage.files import atomic_directory

if TYPE_CHECKING:
    from modelyard.components.signing.provenance import Provenance


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        uri: its signed directory.
        digest: its model digest.
    """

    uri: str
    digest: str


def publish_model(signed_model: str | os.PathLike[str], *, model_name: str, destination: str = "") -> Published:
    """Puts a signed model where serving fetches it, and verifies what lies there then.

    Files go in parallel, the signature last: without it nobody takes what is there for a model. What is there already is kept
    if it is the same, so that publishing again completes what was cut short and changes nothing otherwise.

    Args:
        signed_model: folder that ``sign_model`` wrote.
        model_name: the model it must be.
        destination: path, ``s3://`` or ``gs://`` prefix to publish under; empty for the store of models.

    Raises:
        VerificationFailed: the model, or the published copy of it, is not what it is said to be.
        InvalidInput: the destination cannot be written to, or not be read by others from where it is.
        FileExistsError: something else lies where the model belongs.
        NotAvailable: the store cannot be reached, or does not let us in.
    """
    check_model_name(model_name)
    provenance = verify_model(signed_model, model_name=model_name)
    return keep(Path(signed_model), provenance, _checked(destination) or settings.model_store())


def keep(signed: Path, provenance: "Provenance", store: str) -> Published:
    """As ``publish_model``, of a directory that is verified already."""
    name, digest = provenance.model_name, provenance.model_digest
    place = uris.join(store, name, digest.removeprefix("blake3:"))
    path = uris.local_path(place)
    if path is not None:
        if not path.exists():
            try:
                with atomic_directory(path) as partial:
                    shutil.copytree(signed, partial, symlinks=True, dirs_exist_ok=True)
                    verify_model(partial, model_name=name, digest=digest)
            except FileExistsError:
                pass  # Another process kept the same model first; its copy is verified like any other.
        verify_model(path, model_name=name, digest=digest)
        return Published(place, digest)
    # Objects appear one by one, and two signatures of one model differ: each signature gets a folder of its own, so that
    # two processes never write into the same one.
    uri = f"{place}-{_signature_name(signed)}"
    uris.upload_directory(signed, uri, last=SIGNATURE_FILE)
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        stored = uris.download(uri, Path(folder, "stored"))
        verify_model(stored, model_name=name, digest=digest)
    return Published(uri, digest)


def _checked(destination: str) -> str:
    if destination and settings.in_cluster() and uris.local_path(destination) is not None:
        raise InvalidInput(
            "destination", destination, "give an s3:// or gs:// URI: in a cluster nobody else sees a folder of this pod"
        )
    return destination


def _signature_name(signed: Path) -> str:
    from modelyard.components.artifacts.digest import file_digest

    return file_digest(signed / SIGNATURE_FILE).removeprefix("blake3:")[:16]
