import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.signing.contents import digests, list_files
from modelyard.components.signing.provenance import code_revision
from modelyard.components.signing.signature import configured_signer, sign_directory
from modelyard.components.signing.verification import verify_model
from tests.support.certificates import new_authority

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.fixture
def unsigned(signed) -> Path:
    for name in ("provenance.json", "model.sig"):
        (signed.directory / name).unlink()
    return signed.directory


def test_signing_needs_the_directory_to_be_unsigned(signed):
    with pytest.raises(InvalidInput, match="already"):
        sign_directory(signed.directory, configured_signer("key"), model_name="fraud")


@pytest.mark.parametrize("odd", ["link", "empty folder", "name"])
def test_what_no_signature_would_cover_is_refused_before_signing(unsigned, odd):
    if odd == "link":
        (unsigned / "link").symlink_to("model.ubj")
    elif odd == "name":
        (unsigned / "a\nb").write_text("x")
    else:
        (unsigned / "empty").mkdir()
    before = list_names(unsigned)
    with pytest.raises(InvalidInput, match="model directory"):
        sign_directory(unsigned, configured_signer("key"), model_name="fraud")
    assert list_names(unsigned) == before


def list_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "x" * 101, "fraud.promotions"])
def test_a_name_that_could_not_be_registered_is_refused(unsigned, name):
    with pytest.raises(InvalidInput, match="model_name"):
        sign_directory(unsigned, configured_signer("key"), model_name=name)


def test_an_unknown_method_is_refused(home):
    with pytest.raises(InvalidInput, match="key, certificate, pkcs11, sigstore"):
        configured_signer("hope")


def test_files_named_like_gits_are_signed_like_others(unsigned):
    (unsigned / ".gitattributes").write_text("* text\n")
    (unsigned / ".git").mkdir()
    (unsigned / ".git" / "config").write_text("x")
    sign_directory(unsigned, configured_signer("key"), model_name="fraud")
    verify_model(unsigned)
    (unsigned / ".git" / "config").write_text("y")
    with pytest.raises(VerificationFailed, match="altered"):
        verify_model(unsigned)


def test_digests_are_those_of_the_tools_that_define_them(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "deep" / "file").write_bytes(bytes(range(256)) * 5000)
    from blake3 import blake3

    sha256, fast = digests(tmp_path, list_files(tmp_path))
    for name in ("empty", "deep/file"):
        told = subprocess.run(["sha256sum", tmp_path / name], capture_output=True, text=True, check=True).stdout.split()[0]
        assert sha256[name].hex() == told
        assert fast[name] == "blake3:" + blake3((tmp_path / name).read_bytes()).hexdigest()


def test_the_code_revision_is_the_checkouts_commit_or_what_the_image_says(monkeypatch):
    monkeypatch.setenv("MODELYARD_CODE_REVISION", "abc")
    assert code_revision() == "abc"
    monkeypatch.delenv("MODELYARD_CODE_REVISION")
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        pytest.skip("this is no git checkout")
    head = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert code_revision().removesuffix("-dirty") == head.stdout.strip()


def test_a_package_inside_somebody_elses_repository_does_not_take_its_commit(tmp_path):
    package = tmp_path / "site-packages" / "modelyard" / "components"
    shutil.copytree(Path(__file__).parents[3] / "components", package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    outside = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'Editable' not in repr(finder)]"
    code = "from modelyard.components.signing import provenance as p; print(p.__file__); print(repr(p.code_revision()))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site-packages")}
    environment.pop("MODELYARD_CODE_REVISION", None)
    done = subprocess.run(
        [sys.executable, "-c", f"{outside}; {code}"],
        capture_output=True, text=True, check=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    path, revision = done.stdout.split()
    assert Path(path).is_relative_to(tmp_path)
    assert revision == "''"


@pytest.mark.parametrize("value", [None, "", "token=x;pin-value=1234"])
def test_a_missing_pkcs11_uri_is_named_but_never_shown(home, monkeypatch, value):
    monkeypatch.delenv("MODELYARD_PKCS11_URI", raising=False)
    if value is not None:
        monkeypatch.setenv("MODELYARD_PKCS11_URI", value)
    with pytest.raises(NotAvailable, match="MODELYARD_PKCS11_URI") as raised:
        configured_signer("pkcs11")
    assert "1234" not in str(raised.value)


@pytest.fixture
def token(tmp_path, monkeypatch) -> str:
    """A software HSM that holds an EC key pair; the URI of the private one, without its PIN."""
    pytest.importorskip("PyKCS11", reason="PyKCS11 is not installed")
    if not SOFTHSM.exists():
        pytest.skip("softhsm2 is not installed")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm.conf"))
    script = Path(__file__).parents[2] / "support" / "softhsm.py"
    subprocess.run([sys.executable, script, SOFTHSM], check=True)
    slot = subprocess.run([sys.executable, script, SOFTHSM, "slot"], check=True, capture_output=True, text=True).stdout.strip()
    # By slot: model-signing 1.1.1 compares a token's label with its padding, which PyKCS11 1.5.20 takes off.
    return f"pkcs11:slot-id={slot};object=signing"


def test_a_key_in_a_hardware_token_signs_what_its_public_half_verifies(token, unsigned, tmp_path, monkeypatch):
    (tmp_path / "pin").write_text("1234")
    monkeypatch.setenv("MODELYARD_PKCS11_URI", f"{token}?module-path={SOFTHSM}&pin-source=file:{tmp_path / 'pin'}")
    signer = configured_signer("pkcs11")
    made = sign_directory(unsigned, signer, model_name="fraud")
    assert made.method == "pkcs11"
    public = signer.configuration._signer.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "token.pub").write_bytes(pem)
    with pytest.raises(VerificationFailed):
        verify_model(unsigned)
    monkeypatch.setenv("MODELYARD_VERIFICATION_KEY", str(tmp_path / "token.pub"))
    assert verify_model(unsigned).signer == made.signer


@pytest.mark.parametrize("problem", ["object=other", "pin"])
def test_a_hardware_token_that_does_not_open_is_an_error_without_its_pin(token, tmp_path, monkeypatch, problem):
    where = token.replace("object=signing", problem) if problem != "pin" else token
    pin = "4321" if problem == "pin" else "1234"
    monkeypatch.setenv("MODELYARD_PKCS11_URI", f"{where}?module-path={SOFTHSM}&pin-value={pin}")
    with pytest.raises((InvalidInput, NotAvailable)) as raised:
        configured_signer("pkcs11")
    assert pin not in str(raised.value)


def test_without_an_identity_sigstore_does_not_open_a_browser(home, monkeypatch):
    for variable in list(os.environ):
        if variable.startswith(("ACTIONS_ID_TOKEN", "GITHUB_", "GITLAB_", "CI", "BUILDKITE", "CIRCLE", "SIGSTORE", "GCE")):
            monkeypatch.delenv(variable)
    monkeypatch.delenv("MODELYARD_IDENTITY_TOKEN_FILE", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotAvailable, match="MODELYARD_IDENTITY_TOKEN_FILE"):
        configured_signer("sigstore")


def test_a_token_that_has_expired_is_refused_before_anything_is_sent(home, tmp_path, monkeypatch):
    import jwt

    claims = {"iss": "https://issuer", "sub": "me", "aud": "sigstore", "iat": time.time() - 100, "exp": time.time() - 50}
    (tmp_path / "token").write_text(jwt.encode(claims, "k" * 32))
    monkeypatch.setenv("MODELYARD_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(InvalidInput, match="MODELYARD_IDENTITY_TOKEN_FILE"):
        configured_signer("sigstore")
    monkeypatch.setenv("MODELYARD_IDENTITY_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(NotAvailable, match="MODELYARD_IDENTITY_TOKEN_FILE"):
        configured_signer("sigstore")


@pytest.fixture
def private_sigstore(tmp_path, monkeypatch) -> Path:
    """The trust configuration of a private sigstore whose services are not there."""
    authority = new_authority("fulcio")
    root = base64.b64encode(authority.certificate.public_bytes(serialization.Encoding.DER)).decode()
    key = authority.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    validity = {"start": "2020-01-01T00:00:00Z"}
    log = {
        "baseUrl": "https://127.0.0.1:9",
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": base64.b64encode(key).decode(),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": validity,
        },
        "logId": {"keyId": base64.b64encode(hashlib.sha256(key).digest()).decode()},
    }
    service = {"url": "https://127.0.0.1:9", "majorApiVersion": 1, "validFor": validity, "operator": "test"}
    configuration = {
        "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
        "trustedRoot": {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "test", "commonName": "fulcio"},
                    "uri": "https://127.0.0.1:9",
                    "certChain": {"certificates": [{"rawBytes": root}]},
                    "validFor": validity,
                }
            ],
            "ctlogs": [log],
            "timestampAuthorities": [],
        },
        "signingConfig": {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service],
            "oidcUrls": [service],
            "rekorTlogUrls": [service],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        },
    }
    path = tmp_path / "trust.json"
    path.write_text(json.dumps(configuration))
    monkeypatch.setenv("MODELYARD_SIGSTORE_TRUST_CONFIG", str(path))
    return path


def test_where_sigstore_is_trusted_a_signature_by_a_key_is_refused(signed, private_sigstore, monkeypatch):
    monkeypatch.setenv("MODELYARD_TRUST", "sigstore")
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "release@example.org")
    monkeypatch.setenv("MODELYARD_TRUSTED_ISSUER", "https://issuer")
    with pytest.raises(VerificationFailed, match="another way than the trusted one"):
        verify_model(signed.directory)


@pytest.mark.parametrize("problem", ["missing", "garbage"])
def test_a_trust_configuration_that_cannot_be_read_trusts_nobody(signed, private_sigstore, monkeypatch, problem):
    monkeypatch.setenv("MODELYARD_TRUST", "sigstore")
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "release@example.org")
    monkeypatch.setenv("MODELYARD_TRUSTED_ISSUER", "https://issuer")
    private_sigstore.unlink() if problem == "missing" else private_sigstore.write_text("{}")
    with pytest.raises(NotAvailable):
        verify_model(signed.directory)


@pytest.mark.parametrize("variable", ["MODELYARD_TRUSTED_IDENTITY", "MODELYARD_TRUSTED_ISSUER"])
def test_sigstore_without_an_identity_or_an_issuer_trusts_nobody(signed, private_sigstore, monkeypatch, variable):
    monkeypatch.setenv("MODELYARD_TRUST", "sigstore")
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "release@example.org")
    monkeypatch.setenv("MODELYARD_TRUSTED_ISSUER", "https://issuer")
    monkeypatch.delenv(variable)
    with pytest.raises(NotAvailable, match=variable):
        verify_model(signed.directory)


def test_an_unknown_kind_of_trust_is_refused(signed, monkeypatch):
    monkeypatch.setenv("MODELYARD_TRUST", "anybody")
    with pytest.raises(InvalidInput, match="MODELYARD_TRUST"):
        verify_model(signed.directory)


def test_a_sigstore_that_does_not_answer_is_an_error(home, private_sigstore, tmp_path, monkeypatch):
    import jwt

    claims = {"iss": "https://issuer", "sub": "me", "aud": "sigstore", "iat": time.time() - 5, "exp": time.time() + 500}
    (tmp_path / "token").write_text(jwt.encode(claims, "k" * 32))
    monkeypatch.setenv("MODELYARD_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(NotAvailable, match="cannot be reached"):
        configured_signer("sigstore")
