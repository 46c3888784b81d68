"""Signing certificates: whose they are, and whether they count today.

OpenSSF model-signing checks a chain at the moment its certificate began to be valid, so for it no certificate ever expires.
The bundle of such a signature carries no trusted time either. Hence the rule here: the whole chain must be valid now, and a
model that outlives its certificate is signed again. (Signatures by sigstore are different: their certificates live for
minutes, and a transparency log vouches for the time of signing; sigstore checks that itself.) Revocation lists are not read.
"""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from modelyard.components.errors import InvalidInput, VerificationFailed


def read(path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file, of which there is at least one.

    Raises:
        InvalidInput: there are none.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise InvalidInput("certificate file", str(path), f"give certificates in PEM form ({error})") from error


def subject_names(certificate: x509.Certificate) -> list[str]:
    """The names a certificate gives its owner: e-mail addresses, URIs and host names, else the common names.

    Raises:
        InvalidInput: it gives none.
    """
    names: list[str] = []
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName):
            names += alternatives.get_values_for_type(kind)
    except x509.ExtensionNotFound:
        pass
    if not names:
        names = [str(entry.value) for entry in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if not names:
        raise InvalidInput("certificate", certificate.subject.rfc4514_string(), "use one that names its owner")
    return names


def check_chain(bundle: str, roots: Path, identity: str) -> None:
    """Checks that the certificates in a signature lead to a trusted root, count now, and are the expected signer's.

    Args:
        bundle: text of a Sigstore bundle, of which the signature itself is checked elsewhere.
        roots: PEM file of the trusted roots.
        identity: name that the signer's certificate must give.

    Raises:
        VerificationFailed: otherwise.
    """
    content = json.loads(bundle)["verificationMaterial"]["x509CertificateChain"]["certificates"]
    chain = [x509.load_der_x509_certificate(base64.b64decode(entry["rawBytes"])) for entry in content]
    store = crypto.X509Store()
    for root in read(roots):
        store.add_cert(crypto.X509.from_cryptography(root))
    store.set_time(datetime.now(UTC))
    leaf, *others = [crypto.X509.from_cryptography(certificate) for certificate in chain]
    context = crypto.X509StoreContext(store, leaf, others)
    try:
        path = context.get_verified_chain()
    except (crypto.X509StoreContextError, crypto.Error) as error:
        raise VerificationFailed(
            f"the signer's certificate ({chain[0].subject.rfc4514_string()}, valid until "
            f"{chain[0].not_valid_after_utc:%Y-%m-%d}) does not count: {error}. Sign the model again with a current one"
        ) from error
    used = {certificate.to_cryptography().public_bytes(Encoding.DER) for certificate in path}
    for certificate in chain:
        # Otherwise a certificate that nothing depends on could be altered without anybody noticing.
        if certificate.public_bytes(Encoding.DER) not in used:
            raise VerificationFailed(
                f"the signature brings a certificate that it does not need: {certificate.subject.rfc4514_string()}"
            )
    if identity not in subject_names(chain[0]):
        raise VerificationFailed(f"the model was signed by {', '.join(subject_names(chain[0]))}, not by {identity}")
