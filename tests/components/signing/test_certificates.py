from datetime import timedelta

import pytest

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.signing.signature import configured_signer, sign_directory
from modelyard.components.signing.verification import verify_model
from tests.support.certificates import DAY, issue, new_authority, write_certificates, write_private_key


@pytest.fixture
def root():
    return new_authority("root")


@pytest.fixture
def sign(root, home, signed, tmp_path, monkeypatch):
    """Signs the model again by a certificate, and trusts the root and the signer's address."""
    for name in ("provenance.json", "model.sig"):
        (signed.directory / name).unlink()
    monkeypatch.setenv("MODELYARD_TRUST", "certificate")
    monkeypatch.setenv("MODELYARD_TRUSTED_CERTIFICATES", str(write_certificates(tmp_path / "roots.pem", root.certificate)))
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "release@example.org")

    def sign(issuer=None, intermediates=(), **details):
        key = write_private_key(tmp_path / "signer.pem")
        leaf = issue("signer", key, issuer or root, authority=False, **{"email": "release@example.org", **details})
        monkeypatch.setenv("MODELYARD_SIGNING_KEY", str(tmp_path / "signer.pem"))
        path = write_certificates(tmp_path / "signer.crt", leaf, *intermediates)
        monkeypatch.setenv("MODELYARD_SIGNING_CERTIFICATE", str(path))
        sign_directory(signed.directory, configured_signer("certificate"), model_name="fraud")
        return signed.directory

    return sign


def test_a_model_signed_by_a_current_certificate_verifies_and_names_the_signer(sign):
    provenance = verify_model(sign(), model_name="fraud")
    assert (provenance.method, provenance.signer) == ("certificate", "release@example.org")


def test_a_chain_over_an_intermediate_verifies(sign, root):
    middle = new_authority("middle", root)
    assert verify_model(sign(middle, [middle.certificate])).signer == "release@example.org"


def test_a_missing_intermediate_is_noticed(sign, root):
    middle = new_authority("middle", root)
    with pytest.raises(VerificationFailed):
        verify_model(sign(middle))


def test_an_expired_certificate_does_not_count(sign):
    with pytest.raises(VerificationFailed, match="expired"):
        verify_model(sign(start=-9 * DAY, end=-timedelta(seconds=1)))


def test_a_certificate_of_the_future_does_not_count(sign):
    with pytest.raises(VerificationFailed, match="not yet valid"):
        verify_model(sign(start=DAY))


def test_an_expired_intermediate_does_not_count(sign, root):
    middle = new_authority("middle", root, end=-timedelta(seconds=1))
    with pytest.raises(VerificationFailed, match="expired"):
        verify_model(sign(middle, [middle.certificate], start=-9 * DAY))


def test_an_expired_root_does_not_count(sign, root, tmp_path):
    old = new_authority("root", end=-timedelta(seconds=1))
    write_certificates(tmp_path / "roots.pem", old.certificate)
    with pytest.raises(VerificationFailed, match="expired"):
        verify_model(sign(old, start=-9 * DAY))


def test_a_certificate_by_another_root_does_not_count(sign):
    with pytest.raises(VerificationFailed):
        verify_model(sign(new_authority("root")))


def test_a_certificate_of_somebody_else_does_not_count(sign):
    with pytest.raises(VerificationFailed, match=r"signed by intern@example\.org, not by release@example\.org"):
        verify_model(sign(email="intern@example.org"))


def test_a_common_name_is_no_way_around_the_alternative_names(sign, monkeypatch):
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "signer")
    with pytest.raises(VerificationFailed, match="not by signer"):
        verify_model(sign())


def test_a_certificate_without_alternative_names_goes_by_its_common_name(sign, monkeypatch):
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "signer")
    assert verify_model(sign(email="")).signer == "signer"


def test_a_certificate_for_another_use_does_not_count(sign):
    with pytest.raises(VerificationFailed, match="cannot be used for signing"):
        verify_model(sign(code_signing=False))


def test_a_certificate_that_nothing_depends_on_is_refused(sign, root):
    with pytest.raises(VerificationFailed, match="does not need"):
        verify_model(sign(root, [new_authority("bystander").certificate]))


def test_every_byte_of_a_signature_with_a_chain_counts(sign, root):
    middle = new_authority("middle", root)
    path = sign(middle, [middle.certificate]) / "model.sig"
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(VerificationFailed):
            verify_model(path.parent)
    path.write_bytes(content)
    verify_model(path.parent)


@pytest.mark.parametrize("variable", ["MODELYARD_TRUSTED_CERTIFICATES", "MODELYARD_TRUSTED_IDENTITY"])
def test_without_roots_or_an_identity_no_certificate_is_trusted(sign, variable, monkeypatch):
    directory = sign()
    monkeypatch.delenv(variable)
    with pytest.raises(NotAvailable, match=variable):
        verify_model(directory)


def test_a_file_of_roots_that_is_missing_or_holds_none_is_an_error(sign, tmp_path):
    directory = sign()
    (tmp_path / "roots.pem").write_text("")
    with pytest.raises(InvalidInput, match="certificate file"):
        verify_model(directory)
    (tmp_path / "roots.pem").unlink()
    with pytest.raises(NotAvailable, match=r"roots\.pem"):
        verify_model(directory)


def test_a_certificate_of_another_key_cannot_sign(sign, tmp_path, monkeypatch):
    sign()
    write_private_key(tmp_path / "signer.pem")
    with pytest.raises(InvalidInput, match="MODELYARD_SIGNING_CERTIFICATE"):
        configured_signer("certificate")
    monkeypatch.delenv("MODELYARD_SIGNING_CERTIFICATE")
    with pytest.raises(NotAvailable, match="MODELYARD_SIGNING_CERTIFICATE"):
        configured_signer("certificate")
