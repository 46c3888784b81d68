"""The one verification: is this directory, byte for byte, the model it is said to be, signed by whom we trust?

    >>> verify_model("models/fraud/5f3c…", model_name="fraud", digest="blake3:5f3c…").run_id
    '0d4f…'

Beyond what OpenSSF model-signing checks, a model is refused if

- any file is not covered, whatever its name and whatever the signature says should be left out, or a folder is empty;
- ``provenance.json`` is for another model or another version than the one expected, or than its files are;
- it lies in the store of models under another model's name or another version's digest;
- the signature is written differently from how signers write it, which would be a change that nobody notices;
- it was signed in another way than the one that is trusted, or by a certificate that does not count today.

A directory that others can write to may change between a check and its use: use ``load_verified_model``, which checks and
loads a private copy.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.components import settings
from modelyard.components.artifacts.digest import file_digest, payload_digest
from modelyard.components.errors import InvalidInput, VerificationFailed
from modelyard.components.signing.contents import SIGNATURE_FILE, list_files
from modelyard.components.signing.provenance import PROVENANCE_FILE, Provenance
from modelyard.components.signing.trust import Trust, configured_trust
from modelyard.components.storage.uris import local_path

if TYPE_CHECKING:
    from model_signing._signing.signing import Signature, Verifier

    from modelyard.components.artifacts.scoring import Scorer

_NAMED_BY_DIGEST = re.compile(r"([0-9a-f]{64})(-[0-9a-f]{16})?")


def verify_model(
    directory: str | os.PathLike[str], *, model_name: str = "", digest: str = "", trust: Trust | None = None
) -> Provenance:
    """Verifies a signed model directory.

    Args:
        directory: the signed model directory.
        model_name: the model it must be; empty to accept any.
        digest: the model digest it must have (``blake3:…``); empty to accept any.
        trust: whose signatures count; by default what the environment says.

    Returns:
        What the verified ``provenance.json`` says.

    Raises:
        VerificationFailed: the directory is not what it is said to be; it must not be used.
        InvalidInput: there is no such directory.
        NotAvailable: it is not configured whose signatures count.
    """
    return _verify(Path(directory), Path(directory), model_name=model_name, digest=digest, trust=trust or configured_trust())


def load_verified_model(
    directory: str | os.PathLike[str], *, model_name: str = "", digest: str = "", trust: Trust | None = None
) -> "Scorer":
    """Verifies a signed model and loads it from the very bytes that were verified, through a private copy.

    Args and errors are those of ``verify_model``; a golden row that gets another score is ``VerificationFailed`` too.
    """
    from modelyard.components.artifacts.scoring import load_scorer

    if not Path(directory).is_dir():
        raise InvalidInput("model directory", str(directory), "give the path of an existing folder")
    with tempfile.TemporaryDirectory(prefix="modelyard-") as private:
        copy = Path(private, "model")
        shutil.copytree(directory, copy, symlinks=True)
        _verify(copy, Path(directory), model_name=model_name, digest=digest, trust=trust or configured_trust())
        return load_scorer(copy)


def _verify(directory: Path, place: Path, *, model_name: str, digest: str, trust: Trust) -> Provenance:
    """Verifies what is in ``directory`` as if it lay at ``place``."""
    if not directory.is_dir():
        raise InvalidInput("model directory", str(place), "give the path of an existing folder")
    verifier = trust.verifier()
    signature = directory / SIGNATURE_FILE
    if not signature.is_file():
        raise VerificationFailed(f"{place} is not signed: it has no {SIGNATURE_FILE}. Use a model that sign_model wrote")
    try:
        bundle = signature.read_bytes().decode("ascii")
        provenance = _read_provenance(directory, _signed_files(bundle, verifier, trust.material))
        if provenance.method not in trust.signed_by:
            raise VerificationFailed(f"it says that it was signed by {provenance.method}, which is not what is trusted here")
        trust.check(bundle, provenance.signer)
        if provenance.model_digest != payload_digest(provenance.files):
            raise VerificationFailed(f"its files are not the model {provenance.model_digest} that it says it is")
        _check_expectations(provenance, model_name, digest)
        # As it is called and as it is: a link must not make one version look like another.
        _check_place(provenance, _as_called(place))
        _check_place(provenance, place.resolve())
        _check_files(directory, provenance.files)
    except (InvalidInput, VerificationFailed, ValueError, OSError) as error:
        raise VerificationFailed(f"{place} must not be used: {error}") from error
    return provenance


def _signed_files(bundle: str, verifier: "Verifier", material: str) -> dict[str, bytes]:
    """SHA-256 digests of all files that an authentic signature lists, by name."""
    from cryptography.exceptions import InvalidSignature
    from OpenSSL import crypto
    from sigstore.errors import Error

    try:
        signed = verifier.verify(_read_signature(bundle, material))
    except (InvalidSignature, crypto.X509StoreContextError, crypto.Error) as error:
        raise VerificationFailed(f"the signature is not by whom we trust ({error or 'it does not fit the key'})") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, Error) as error:
        raise VerificationFailed(str(error) or f"the signature cannot be read ({type(error).__name__})") from error
    serialization = signed.serialization_type
    left_out = set(serialization.pop("ignore_paths", [])) - {SIGNATURE_FILE}
    if left_out:
        raise VerificationFailed(f"the signature leaves out {', '.join(sorted(left_out))}: it does not cover the whole model")
    if serialization != {"method": "files", "hash_type": "sha256", "allow_symlinks": False}:
        raise VerificationFailed(f"the signature lists files in another way than sign_model does: {serialization}")
    return {entry.identifier: entry.digest.digest_value for entry in signed.resource_descriptors()}


def _read_signature(bundle: str, material: str) -> "Signature":
    """Reads a signature that is of the trusted kind and written as its library writes it, to the last byte."""
    from model_signing._signing import sign_sigstore, sign_sigstore_pb

    content = json.loads(bundle)
    if material not in content["verificationMaterial"]:
        raise VerificationFailed(f"it was signed in another way than the trusted one (its signature has no {material})")
    reader = sign_sigstore if material == "certificate" else sign_sigstore_pb
    with tempfile.NamedTemporaryFile("w", suffix=".sig", encoding="ascii") as copy:
        copy.write(bundle)
        copy.flush()
        signature: Any = reader.Signature.read(Path(copy.name))
    if json.loads(signature.bundle.to_json()) != content or json.dumps(content, separators=(",", ":")) != bundle:
        raise VerificationFailed("the file of the signature was altered")
    return signature


def _read_provenance(directory: Path, signed: dict[str, bytes]) -> Provenance:
    if PROVENANCE_FILE not in signed:
        raise VerificationFailed(f"it has no {PROVENANCE_FILE}, so nothing says which model it is; sign it with sign_model")
    text = (directory / PROVENANCE_FILE).read_bytes()
    if hashlib.sha256(text).digest() != signed[PROVENANCE_FILE]:
        raise VerificationFailed(f"{PROVENANCE_FILE} was altered")
    provenance = Provenance.from_json(text)
    if {*provenance.files, PROVENANCE_FILE} != signed.keys():
        raise VerificationFailed(f"{PROVENANCE_FILE} lists other files than the signature")
    return provenance


def _check_files(directory: Path, expected: dict[str, str]) -> None:
    found = set(list_files(directory)) - {PROVENANCE_FILE}
    missing, added = expected.keys() - found, found - expected.keys()
    altered = [name for name in sorted(found & expected.keys()) if file_digest(directory / name) != expected[name]]
    for what, names in (("removed", missing), ("added", added), ("altered", altered)):
        if names:
            was = "was" if len(names) == 1 else "were"
            shown = ", ".join(sorted(names)[:5])
            raise VerificationFailed(f"{len(names)} of its files {was} {what} since it was signed: {shown}")


def _check_expectations(provenance: Provenance, model_name: str, digest: str) -> None:
    if model_name and provenance.model_name != model_name:
        raise VerificationFailed(f"it is the model {provenance.model_name!r}, not {model_name!r}")
    if digest and provenance.model_digest != digest:
        raise VerificationFailed(f"it is another version: its digest is {provenance.model_digest}, not {digest}")


def _check_place(provenance: Provenance, place: Path) -> None:
    """Checks a directory that is named as those in the store of models are: it must be what its name says."""
    named = _NAMED_BY_DIGEST.fullmatch(place.name)
    if not named:
        return
    _check_expectations(provenance, "", f"blake3:{named[1]}")
    if _local_store() in place.parents:
        _check_expectations(provenance, place.parent.name, "")


def _local_store() -> Path | None:
    """The folder of released models, where it is on this machine."""
    if settings.in_cluster() and "MODELYARD_MODEL_STORE" not in os.environ:
        return None
    path = local_path(settings.model_store())
    return path and _as_called(path)


def _as_called(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100, because resolve() would follow links.
