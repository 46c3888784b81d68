"""The EC key pair that models are signed and verified with by default.

On a laptop it is made on first use; anywhere else a missing key is an error, because a key that nobody else knows would
sign what nobody else can verify.
"""

import hashlib
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.storage.files import atomic_file

_CURVES = ("secp256r1", "secp384r1", "secp521r1")


def private_key_path() -> Path:
    """Path of the private key to sign with, whose public half others verify by; makes the laptop's pair on first use.

    Raises:
        NotAvailable: there is no key where one is configured.
        InvalidInput: the file is not an EC key, others can read it, or the public key beside it is another one's.
    """
    path = settings.signing_key()
    if not path.exists() and "MODELYARD_SIGNING_KEY" not in os.environ and not settings.in_cluster():
        _make_private_key(path)
    key = load_private_key(path)
    public = settings.verification_key()
    if not public.exists() and public.parent == path.parent and not settings.in_cluster():
        with atomic_file(public) as partial:
            partial.write_bytes(_public_pem(key.public_key()))
    if public.exists() and load_public_key(public) != key.public_key():
        raise InvalidInput(
            "MODELYARD_SIGNING_KEY",
            str(path),
            f"it does not belong to the public key {public}, so nobody would accept its signatures; give both of one pair",
        )
    return path


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The EC public key in a PEM file.

    Raises:
        NotAvailable: there is no such file.
        InvalidInput: it holds something else.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except FileNotFoundError as error:
        raise NotAvailable(
            f"there is no public key at {path} to verify signatures with. Set MODELYARD_VERIFICATION_KEY to the path of the "
            f"signer's public key (signing.pub), or mount the Secret that holds it"
        ) from error
    except ValueError as error:
        raise InvalidInput("MODELYARD_VERIFICATION_KEY", str(path), f"give an EC public key in PEM form ({error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise InvalidInput("MODELYARD_VERIFICATION_KEY", str(path), "give an EC public key on P-256, P-384 or P-521")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """A short name of a public key: SHA-256 of its DER form."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(der).hexdigest()


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The EC private key in a PEM file that its owner alone can read.

    Raises:
        NotAvailable: there is no such file.
        InvalidInput: it holds something else, or others can read it.
    """
    if not path.exists():
        raise NotAvailable(
            f"there is no signing key at {path}. Mount the Secret that holds signing.pem and signing.pub there, or set "
            f"MODELYARD_SIGNING_KEY to the path of an EC private key in PEM form"
        )
    mode = path.stat().st_mode
    # In a cluster the pod is the boundary, and KFP mounts every Secret with mode 0644: it has no setting for that.
    if mode & (0o002 if settings.in_cluster() else 0o077):
        raise InvalidInput(
            "MODELYARD_SIGNING_KEY",
            f"{path} (mode {mode & 0o777:04o})",
            "others can read or change it: treat the key as known and make a new one, with mode 0600",
        )
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            "MODELYARD_SIGNING_KEY", str(path), "give an EC private key in PEM form without a password"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise InvalidInput(
            "MODELYARD_SIGNING_KEY", str(path), "give an EC private key on P-256, P-384 or P-521; others cannot sign models"
        )
    return key


def _make_private_key(path: Path) -> None:
    """Makes a key pair for this laptop; of several processes that try at once, one makes it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Not by atomic_file: the content must not be readable by others for a moment, and a key that exists must win.
    partial = path.parent / f".partial-{path.name}-{secrets.token_hex(8)}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            return
    finally:
        partial.unlink()
