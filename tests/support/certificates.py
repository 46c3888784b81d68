"""Certificates for tests: a root, an intermediate and a signer's, valid whenever a test wants."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Somebody who issues certificates."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def issue(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: Authority | None,
    *,
    authority: bool,
    start: timedelta = -10 * DAY,
    end: timedelta = 10 * DAY,
    email: str = "",
    code_signing: bool = True,
) -> x509.Certificate:
    """A certificate that counts from ``start`` to ``end``, both relative to now; without an issuer it signs itself."""
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = dict.fromkeys(("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=code_signing and not authority,
                key_encipherment=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                **usage,
            ),
            critical=True,
        )
    )
    if email:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(email)]), critical=False)
    return builder.sign(issuer.key if issuer else key, hashes.SHA256())


def new_authority(name: str, issuer: Authority | None = None, **validity: timedelta) -> Authority:
    """A root, or an intermediate below ``issuer``."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(issue(name, key, issuer, authority=True, **validity), key)


def write_certificates(path: Path, *certificates: x509.Certificate) -> Path:
    """Writes certificates to a PEM file."""
    path.write_bytes(b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates))
    return path


def write_private_key(
    path: Path, key: ec.EllipticCurvePrivateKey | None = None, mode: int = 0o600
) -> ec.EllipticCurvePrivateKey:
    """Writes a private key, by default a new one, to a PEM file."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(mode)
    return key


def write_public_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """Writes the public half of a key to a PEM file."""
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return path
