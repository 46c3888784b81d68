"""``provenance.json``: which model a signed directory holds, where it came from, and the BLAKE3 digest of each other file.

The signature covers this file, so nobody can pass one version of a model, or one model, for another.
"""

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import get_origin, get_type_hints

from modelyard.components.errors import VerificationFailed

PROVENANCE_FILE = "provenance.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """Which model this is and where it came from.

    Attributes:
        model_name: the registered model.
        model_digest: digest of the payload (``blake3:…``), as ``modelyard.components.artifacts.digest`` defines it.
        run_id: MLflow run that trained it; empty if there was none.
        data_digest: digest of the training data; empty if the model does not say.
        code_revision: git commit of the code that signed it; empty if unknown.
        package_version: version of this package that signed it.
        method: how it was signed: key, certificate, pkcs11 or sigstore.
        signer: who signed it: the fingerprint of a key, or the identity in a certificate.
        created: moment of signing, UTC, ISO 8601.
        files: digest (``blake3:…``) of each file but this one and the signature, by its path in the directory.
    """

    model_name: str
    model_digest: str
    run_id: str
    data_digest: str
    code_revision: str
    package_version: str
    method: str
    signer: str
    created: str
    files: dict[str, str]

    def to_json(self) -> str:
        """The text of ``provenance.json``."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> "Provenance":
        """Reads what ``to_json`` wrote.

        Raises:
            VerificationFailed: the text says less than it must, or is of a format that this package does not know.
        """
        try:
            content = json.loads(text)
            version = content.pop("format_version")
        except (ValueError, AttributeError, KeyError) as error:
            raise VerificationFailed(f"{PROVENANCE_FILE} cannot be read ({error})") from error
        if version != FORMAT_VERSION:
            raise VerificationFailed(
                f"{PROVENANCE_FILE} has format {version!r}, but this package reads {FORMAT_VERSION}; upgrade it"
            )
        types = get_type_hints(cls)
        if content.keys() != types.keys() or not all(
            isinstance(content[name], get_origin(kind) or kind) for name, kind in types.items()
        ):
            raise VerificationFailed(f"{PROVENANCE_FILE} must give {', '.join(types)}, and nothing else")
        return cls(**content)


def package_version() -> str:
    """The version of this package."""
    return metadata.version("modelyard")


def code_revision() -> str:
    """The git commit of this package's code; empty where it is neither configured nor in a checkout.

    ``MODELYARD_CODE_REVISION`` says so in an image. A checkout with changes that are not committed gets ``-dirty``.
    """
    if configured := os.environ.get("MODELYARD_CODE_REVISION"):
        return configured
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parent)]
    try:
        # An environment inside somebody's repository is no checkout of this package.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True, timeout=20)
        described = subprocess.run(
            [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()


def now() -> str:
    """This moment, as ``Provenance.created`` gives it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
