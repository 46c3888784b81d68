"""Making a signature: which way, with whose key, and over a directory that is complete."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from modelyard.components import settings
from modelyard.components.artifacts.digest import payload_digest
from modelyard.components.artifacts.names import check_model_name
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.signing import provenance
from modelyard.components.signing.contents import SIGNATURE_FILE, digests, list_files
from modelyard.components.storage.files import write_text

if TYPE_CHECKING:
    from model_signing import hashing, signing

METHODS = ("key", "certificate", "pkcs11", "sigstore")


@dataclass(frozen=True)
class Signer:
    """A configured way to sign.

    Attributes:
        method: one of ``METHODS``.
        identity: fingerprint of the key, or the name in the certificate.
        configuration: model-signing's configuration, ready to sign.
    """

    method: str
    identity: str
    configuration: "signing.Config"


def configured_signer(method: str) -> Signer:
    """The signer that the environment configures for ``method`` (see ``modelyard.components.signing``).

    Raises:
        InvalidInput: there is no such method, or its key or certificate cannot be used.
        NotAvailable: what it needs is not configured or not there.
    """
    makers = {"key": _key_signer, "certificate": _certificate_signer, "pkcs11": _pkcs11_signer, "sigstore": _sigstore_signer}
    if method not in makers:
        raise InvalidInput("method", method, f"use one of {', '.join(METHODS)}")
    return makers[method]()


def sign_directory(
    directory: str | os.PathLike[str], signer: Signer, *, model_name: str, run_id: str = "", data_digest: str = ""
) -> provenance.Provenance:
    """Adds ``provenance.json`` and ``model.sig`` to a directory that is complete otherwise. Each file is read once.

    Args:
        directory: the model directory, which nobody else writes to meanwhile.
        signer: who signs.
        model_name: the registered model.
        run_id: MLflow run that trained it.
        data_digest: digest of its training data.

    Raises:
        InvalidInput: the directory holds what no signature would cover, or is signed already.
        NotAvailable: the signer's service or token cannot be reached.
    """
    from sigstore.errors import Error as SigstoreError

    folder = Path(directory)
    for name in (provenance.PROVENANCE_FILE, SIGNATURE_FILE):
        if (folder / name).exists():
            raise InvalidInput("model directory", str(folder), f"it has {name} already; sign what training wrote")
    signed, files = digests(folder, list_files(folder))
    made = provenance.Provenance(
        model_name=check_model_name(model_name),
        model_digest=payload_digest(files),
        run_id=run_id,
        data_digest=data_digest,
        code_revision=provenance.code_revision(),
        package_version=provenance.package_version(),
        method=signer.method,
        signer=signer.identity,
        created=provenance.now(),
        files=files,
    )
    text = made.to_json()
    signed[provenance.PROVENANCE_FILE] = hashlib.sha256(text.encode()).digest()
    with tempfile.TemporaryDirectory(prefix="modelyard-") as elsewhere:
        bundle = Path(elsewhere, SIGNATURE_FILE)
        try:
            signer.configuration.set_hashing_config(_hashed(signed)).sign(folder, bundle)
        except (SigstoreError, OSError) as error:
            raise NotAvailable(f"signing by {signer.method} failed ({error or type(error).__name__}); try again") from error
        write_text(folder / provenance.PROVENANCE_FILE, text)
        write_text(folder / SIGNATURE_FILE, bundle.read_text(encoding="ascii"))
    return made


def _hashed(signed: dict[str, bytes]) -> "hashing.Config":
    """A hashing configuration that has done its work already: these are the files' SHA-256 digests."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    class Hashed(hashing.Config):
        def hash(self, model_path: hashing.PathLike, *, files_to_hash: Any = None) -> manifest.Manifest:
            items = [
                manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest("sha256", value))
                for name, value in signed.items()
            ]
            described = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE_FILE]}
            return manifest.Manifest(Path(os.fsdecode(model_path)).name, items, manifest.SerializationType.from_args(described))

    return Hashed()


def _key_signer() -> Signer:
    from model_signing import signing

    from modelyard.components.signing import keys

    path = keys.private_key_path()
    identity = keys.fingerprint(keys.load_private_key(path).public_key())
    return Signer("key", identity, signing.Config().use_elliptic_key_signer(private_key=path))


def _certificate_signer() -> Signer:
    from model_signing import signing

    from modelyard.components.signing import certificates, keys

    key = settings.signing_key()
    keys.load_private_key(key)
    path = _path_from("MODELYARD_SIGNING_CERTIFICATE", "the key's certificate, then its intermediates, in PEM form")
    leaf, *_ = certificates.read(path)
    try:
        # The chain repeats the certificate: model-signing 1.1.1 cannot do with an empty one.
        configuration = signing.Config().use_certificate_signer(
            private_key=key, signing_certificate=path, certificate_chain=[path]
        )
    except ValueError as error:
        raise InvalidInput("MODELYARD_SIGNING_CERTIFICATE", str(path), f"it does not fit the signing key ({error})") from error
    return Signer("certificate", certificates.subject_names(leaf)[0], configuration)


def _pkcs11_signer() -> Signer:
    from model_signing import signing

    from modelyard.components.signing import keys

    uri = os.environ.get("MODELYARD_PKCS11_URI", "")
    if not uri.startswith("pkcs11:"):
        # The value is not shown: it may hold the PIN.
        raise NotAvailable("MODELYARD_PKCS11_URI must be set to the key's PKCS #11 URI: pkcs11:token=…;object=…?pin-source=…")
    try:
        from PyKCS11 import PyKCS11Error
    except ImportError as error:
        raise NotAvailable("signing by PKCS #11 needs PyKCS11: install model-signing[pkcs11]") from error
    modules = os.environ.get("MODELYARD_PKCS11_MODULES")
    try:
        configuration = signing.Config().use_pkcs11_signer(pkcs11_uri=uri, module_paths=[modules] if modules else [])
    except (PyKCS11Error, ValueError, OSError) as error:
        raise InvalidInput("MODELYARD_PKCS11_URI", "(not shown)", f"it does not lead to an EC key ({error})") from error
    # model-signing has no public way to ask for the key that it found.
    found: Any = configuration._signer
    return Signer("pkcs11", keys.fingerprint(found.public_key()), configuration)


def _sigstore_signer() -> Signer:
    from model_signing import signing
    from sigstore import oidc
    from sigstore.errors import Error

    variable = "MODELYARD_IDENTITY_TOKEN_FILE"
    token: str | None
    try:
        if os.environ.get(variable):
            token = _path_from(variable, "an OpenID Connect token").read_text(encoding="ascii").strip()
        else:
            token = oidc.detect_credential()
        identity = oidc.IdentityToken(token).identity if token else ""
    except (Error, ValueError) as error:
        raise InvalidInput(variable, "(not shown)", f"give a current OpenID Connect token for sigstore ({error})") from error
    if not token:
        raise NotAvailable(
            f"signing by sigstore found no identity here: run it where one is ambient, or set {variable} to the path of an "
            f"OpenID Connect token for the audience sigstore"
        )
    trust = os.environ.get("MODELYARD_SIGSTORE_TRUST_CONFIG")
    try:
        configuration = signing.Config().use_sigstore_signer(identity_token=token, trust_config=Path(trust) if trust else None)
    except (Error, ValueError, OSError) as error:
        raise NotAvailable(
            f"signing by sigstore: its services cannot be reached ({error or type(error).__name__}); for a private instance "
            f"set MODELYARD_SIGSTORE_TRUST_CONFIG to the path of its trust configuration"
        ) from error
    return Signer("sigstore", identity, configuration)


def _path_from(variable: str, what: str) -> Path:
    path = os.environ.get(variable)
    if not path or not Path(path).is_file():
        raise NotAvailable(f"{variable} must be set to the path of {what}; it is {path!r}")
    return Path(path)
