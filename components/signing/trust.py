"""Whose signatures count. This comes from the environment, never from what lies beside the model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed

if TYPE_CHECKING:
    from model_signing._signing.signing import Verifier


@dataclass(frozen=True)
class TrustedKey:
    """Signatures by the private half of one EC key count.

    Attributes:
        path: the public key, PEM.
    """

    path: Path
    signed_by: ClassVar[tuple[str, ...]] = ("key", "pkcs11")
    material: ClassVar[str] = "publicKey"

    def verifier(self) -> "Verifier":
        """model-signing's verifier of such signatures."""
        from model_signing._signing import sign_ec_key

        from modelyard.components.signing.keys import load_public_key

        load_public_key(self.path)
        return sign_ec_key.Verifier(self.path)

    def check(self, bundle: str, signer: str) -> None:
        """Checks what model-signing does not: that the provenance names this key."""
        from modelyard.components.signing.keys import fingerprint, load_public_key

        if signer != fingerprint(load_public_key(self.path)):
            raise VerificationFailed(f"it says that {signer} signed it, which is not the trusted key")


@dataclass(frozen=True)
class TrustedCertificates:
    """Signatures by the owner of a current certificate count.

    Attributes:
        roots: trusted root certificates, PEM.
        identity: name that the signer's certificate must give.
    """

    roots: Path
    identity: str
    signed_by: ClassVar[tuple[str, ...]] = ("certificate",)
    material: ClassVar[str] = "x509CertificateChain"

    def verifier(self) -> "Verifier":
        """model-signing's verifier of such signatures."""
        from model_signing._signing import sign_certificate

        from modelyard.components.signing import certificates

        certificates.read(_file(self.roots))
        return sign_certificate.Verifier([self.roots])

    def check(self, bundle: str, signer: str) -> None:
        """Checks what model-signing does not: that the certificates count now, and whose they are."""
        from modelyard.components.signing import certificates

        certificates.check_chain(bundle, self.roots, self.identity)


@dataclass(frozen=True)
class TrustedIdentity:
    """Signatures by somebody whom an OpenID Connect issuer vouched for count, as sigstore recorded it.

    Attributes:
        identity: e-mail address or URI of the signer.
        issuer: the OpenID Connect issuer.
        configuration: trust configuration of a private sigstore; None for the public one.
    """

    identity: str
    issuer: str
    configuration: Path | None
    signed_by: ClassVar[tuple[str, ...]] = ("sigstore",)
    material: ClassVar[str] = "certificate"

    def verifier(self) -> "Verifier":
        """model-signing's verifier of such signatures."""
        from model_signing._signing import sign_sigstore
        from sigstore.errors import Error

        trust = _file(self.configuration) if self.configuration else None
        try:
            return sign_sigstore.Verifier(identity=self.identity, oidc_issuer=self.issuer, trust_config=trust)
        except (Error, ValueError, OSError) as error:
            raise NotAvailable(
                f"sigstore's trust configuration cannot be had ({error}). For a private instance, or without a network, set "
                f"MODELYARD_SIGSTORE_TRUST_CONFIG to the path of its file"
            ) from error

    def check(self, bundle: str, signer: str) -> None:
        """Nothing: sigstore checks the identity itself, and its log vouches for the time."""


Trust = TrustedKey | TrustedCertificates | TrustedIdentity


def configured_trust() -> Trust:
    """Whose signatures count here, as the environment says (see ``modelyard.components.signing``).

    Raises:
        InvalidInput: ``MODELYARD_TRUST`` says something else than it can.
        NotAvailable: a variable is missing.
    """
    kind = os.environ.get("MODELYARD_TRUST", "key")
    if kind == "key":
        return TrustedKey(settings.verification_key())
    if kind == "certificate":
        return TrustedCertificates(Path(_required("MODELYARD_TRUSTED_CERTIFICATES")), _required("MODELYARD_TRUSTED_IDENTITY"))
    if kind == "sigstore":
        configuration = os.environ.get("MODELYARD_SIGSTORE_TRUST_CONFIG")
        return TrustedIdentity(
            _required("MODELYARD_TRUSTED_IDENTITY"),
            _required("MODELYARD_TRUSTED_ISSUER"),
            Path(configuration) if configuration else None,
        )
    raise InvalidInput("MODELYARD_TRUST", kind, "use key, certificate or sigstore")


def _file(path: Path) -> Path:
    if not path.is_file():
        raise NotAvailable(f"{path}, which says whose signatures count, is missing; mount it or correct the variable")
    return path


def _required(variable: str) -> str:
    if not (value := os.environ.get(variable)):
        raise NotAvailable(f"{variable} must be set, because MODELYARD_TRUST is {os.environ['MODELYARD_TRUST']!r}")
    return value
