import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.components.errors import InvalidInput, NotAvailable, VerificationFailed
from modelyard.components.signing import verification
from modelyard.components.signing.signature import configured_signer, sign_directory
from modelyard.components.signing.trust import TrustedKey, configured_trust
from modelyard.components.signing.verification import load_verified_model, verify_model
from tests.support.certificates import write_private_key, write_public_key

FIXTURES = Path(__file__).parent / "fixtures"
UPSTREAM = Path(sys.executable).with_name("model_signing")


def upstream(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the upstream command ``model_signing``."""
    return subprocess.run([str(UPSTREAM), *map(str, arguments)], capture_output=True, text=True, check=False)


def sign_by_upstream(directory: Path, home: Path, *options: str | Path) -> None:
    """Signs a directory again with the same key, by the upstream command."""
    (directory / "model.sig").unlink()
    done = upstream(
        "sign", "key", "--private_key", home / "keys/signing.pem", "--signature", directory / "model.sig", *options, directory
    )
    assert done.returncode == 0, done.stderr


def test_a_signed_model_verifies_and_says_what_it_is(signed):
    assert verify_model(signed.directory) == signed.provenance
    assert signed.provenance.model_name == "fraud"
    assert signed.provenance.data_digest == "blake3:" + "d" * 64
    assert verify_model(signed.directory, model_name="fraud", digest=signed.provenance.model_digest) == signed.provenance


def test_the_upstream_command_accepts_a_model_that_we_signed(signed, home):
    arguments = ("--signature", signed.directory / "model.sig", "--public_key", home / "keys/signing.pub")
    for options in ((), ("--no-ignore-git-paths",)):
        done = upstream("verify", "key", *arguments, *options, signed.directory)
        assert done.returncode == 0, done.stderr
    (signed.directory / "model.ubj").write_bytes(b"other")
    assert upstream("verify", "key", *arguments, signed.directory).returncode == 1


def test_what_the_upstream_command_signed_verifies_if_it_covers_everything(signed, home):
    sign_by_upstream(signed.directory, home, "--no-ignore-git-paths")
    assert verify_model(signed.directory) == signed.provenance


def test_a_signature_that_leaves_out_git_files_is_refused(signed, home):
    sign_by_upstream(signed.directory, home)
    with pytest.raises(VerificationFailed, match=r"leaves out \.git"):
        verify_model(signed.directory)


def test_a_signer_cannot_widen_the_list_of_ignored_files(signed, home):
    (signed.directory / "extra").mkdir()
    (signed.directory / "extra" / "payload.py").write_text("import os\n")
    sign_by_upstream(signed.directory, home, "--no-ignore-git-paths", "--ignore-paths", signed.directory / "extra")
    with pytest.raises(VerificationFailed, match="leaves out extra"):
        verify_model(signed.directory)


@pytest.mark.parametrize("name", [".git/hooks/run", ".gitattributes", ".github/x", ".gitignore", "card/x", "x", "model.sig2"])
def test_an_added_file_is_refused_whatever_its_name(signed, name):
    path = signed.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("payload")
    with pytest.raises(VerificationFailed, match=f"added since it was signed: {name}"):
        verify_model(signed.directory)


@pytest.mark.parametrize("name", ["empty", "card/empty", ".git"])
def test_an_added_empty_folder_is_refused(signed, name):
    (signed.directory / name).mkdir()
    with pytest.raises(VerificationFailed, match="empty folder"):
        verify_model(signed.directory)


@pytest.mark.parametrize("target", ["model.ubj", "/etc/passwd", "nowhere", "card"])
def test_a_symbolic_link_is_refused(signed, target):
    (signed.directory / "link").symlink_to(target)
    with pytest.raises(VerificationFailed, match="regular files"):
        verify_model(signed.directory)


@pytest.mark.parametrize("name", ["model.ubj", "provenance.json", "model.sig"])
def test_a_file_replaced_by_a_link_to_the_same_bytes_is_refused(signed, tmp_path, name):
    shutil.move(signed.directory / name, tmp_path / "elsewhere")
    (signed.directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VerificationFailed):
        verify_model(signed.directory)


def test_a_special_file_is_refused_and_not_read(signed):
    os.mkfifo(signed.directory / "pipe")
    with pytest.raises(VerificationFailed, match="regular files"):
        verify_model(signed.directory)


def test_a_folder_in_the_place_of_the_signature_is_refused(signed):
    (signed.directory / "model.sig").unlink()
    (signed.directory / "model.sig").mkdir()
    (signed.directory / "model.sig" / "payload").write_text("x")
    with pytest.raises(VerificationFailed, match="not signed"):
        verify_model(signed.directory)


def test_every_missing_file_is_noticed(signed):
    for path in sorted(path for path in signed.directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(VerificationFailed):
            verify_model(signed.directory)
        path.write_bytes(content)
    verify_model(signed.directory)


def test_every_renamed_file_is_noticed(signed):
    for path in sorted(path for path in signed.directory.rglob("*") if path.is_file()):
        path.rename(path.with_name("renamed"))
        with pytest.raises(VerificationFailed):
            verify_model(signed.directory)
        path.with_name("renamed").rename(path)
    verify_model(signed.directory)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(signed, data):
    files = sorted(path for path in signed.directory.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.integers(1, 255))
    path.write_bytes(content[:position] + bytes([content[position] ^ change]) + content[position + 1 :])
    try:
        with pytest.raises(VerificationFailed):
            verify_model(signed.directory)
    finally:
        path.write_bytes(content)


def test_every_byte_of_the_signature_counts(signed):
    path = signed.directory / "model.sig"
    content = path.read_bytes()
    for position in range(len(content)):
        # A changed last bit keeps most characters within base64's alphabet.
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(VerificationFailed):
            verify_model(signed.directory)
    path.write_bytes(content)
    verify_model(signed.directory)


def loose_base64(text: str) -> str:
    """Another text that decodes to the same bytes: bits that padding leaves unused are set."""
    bundle = json.loads(text)
    envelope = bundle["dsseEnvelope"]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for place, name in ((envelope, "payload"), (envelope["signatures"][0], "sig")):
        if place[name].endswith("="):
            body = place[name].rstrip("=")
            other = body[:-1] + alphabet[alphabet.index(body[-1]) | 1] + place[name][len(body) :]
            assert base64.b64decode(other) == base64.b64decode(place[name])
            place[name] = other
            return json.dumps(bundle, separators=(",", ":"))
    return text + " "


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text + "\n",
        lambda text: json.dumps(json.loads(text), indent=1),
        lambda text: text.replace('"tlogEntries"', '"tlogEntrie\\u0073"'),
        lambda text: text.replace('"tlogEntries":[]', '"tlogEntries":[],"tlogEntries":[]'),
        loose_base64,
    ],
    ids=["newline", "indented", "escaped", "doubled", "base64"],
)
def test_the_same_signature_written_differently_is_refused(signed, rewrite):
    path = signed.directory / "model.sig"
    text = path.read_text()
    path.write_text(rewrite(text))
    assert path.read_text() != text
    with pytest.raises(VerificationFailed):
        verify_model(signed.directory)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_or_lengthened_file_is_noticed(signed, data):
    files = sorted(path for path in signed.directory.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    other = data.draw(
        st.one_of(st.integers(0, len(content) - 1).map(lambda end: content[:end]), st.binary(min_size=1).map(content.__add__))
    )
    path.write_bytes(other)
    try:
        with pytest.raises(VerificationFailed):
            verify_model(signed.directory)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "garbage", '{"verificationMaterial": 1}', '{"verificationMaterial": {"publicKey": {}}}']
)
def test_garbage_in_the_place_of_the_signature_is_refused(signed, text):
    (signed.directory / "model.sig").write_text(text)
    with pytest.raises(VerificationFailed, match="must not be used"):
        verify_model(signed.directory)


def test_garbage_that_is_no_text_is_refused(signed):
    (signed.directory / "model.sig").write_bytes(bytes(range(256)))
    with pytest.raises(VerificationFailed, match="must not be used"):
        verify_model(signed.directory)


def test_an_unsigned_model_is_refused(signed):
    (signed.directory / "model.sig").unlink()
    with pytest.raises(VerificationFailed, match="not signed"):
        verify_model(signed.directory)


def test_a_signature_by_another_key_is_refused(signed, tmp_path):
    key = write_public_key(tmp_path / "other.pub", write_private_key(tmp_path / "other.pem"))
    with pytest.raises(VerificationFailed, match="must not be used"):
        verify_model(signed.directory, trust=TrustedKey(key))


def test_the_hint_at_a_key_in_the_signature_is_not_what_decides(signed, tmp_path):
    """An attacker signs with a key of their own and claims that it is the trusted one."""
    other = write_private_key(tmp_path / "other.pem")
    shutil.move(signed.directory / "model.sig", tmp_path / "genuine.sig")
    from model_signing import hashing, signing

    strict = hashing.Config().set_ignored_paths(paths=["model.sig"], ignore_git_paths=False)
    signing.Config().use_elliptic_key_signer(private_key=tmp_path / "other.pem").set_hashing_config(strict).sign(
        signed.directory, signed.directory / "model.sig"
    )
    forged = json.loads((signed.directory / "model.sig").read_text())
    genuine = json.loads((tmp_path / "genuine.sig").read_text())
    forged["verificationMaterial"] = genuine["verificationMaterial"]
    (signed.directory / "model.sig").write_text(json.dumps(forged, separators=(",", ":")))
    with pytest.raises(VerificationFailed, match="not by whom we trust"):
        verify_model(signed.directory)
    assert other.public_key()


def test_an_older_version_in_the_place_of_a_newer_one_is_refused(signed, newer):
    shutil.rmtree(newer.directory)
    shutil.copytree(signed.directory, newer.directory)
    with pytest.raises(VerificationFailed, match="another version"):
        verify_model(newer.directory, model_name="fraud", digest=newer.provenance.model_digest)


def test_another_model_in_the_place_of_this_one_is_refused(signed):
    with pytest.raises(VerificationFailed, match="is the model 'fraud', not 'credit'"):
        verify_model(signed.directory, model_name="credit")


def test_a_version_that_lies_where_another_should_be_is_refused_without_being_told(signed, newer, tmp_path):
    hexadecimal = newer.provenance.model_digest.removeprefix("blake3:")
    for name in (hexadecimal, f"{hexadecimal}-{'0' * 16}"):
        shutil.copytree(signed.directory, tmp_path / name)
        with pytest.raises(VerificationFailed, match="another version"):
            verify_model(tmp_path / name)
    shutil.rmtree(tmp_path / hexadecimal)
    shutil.copytree(newer.directory, tmp_path / hexadecimal)
    assert verify_model(tmp_path / hexadecimal) == newer.provenance


def test_a_place_is_the_same_however_its_path_is_written(signed, newer, tmp_path, monkeypatch):
    place = tmp_path / newer.provenance.model_digest.removeprefix("blake3:")
    shutil.copytree(signed.directory, place)
    monkeypatch.chdir(place)
    (tmp_path / "link").symlink_to(place)
    for path in (".", f"../{place.name}", place / "card" / "..", tmp_path / "link"):
        with pytest.raises(VerificationFailed, match="another version"):
            verify_model(path)


def test_a_link_called_like_one_version_does_not_lead_to_another(signed, newer, tmp_path):
    place = tmp_path / newer.provenance.model_digest.removeprefix("blake3:")
    place.symlink_to(signed.directory)
    with pytest.raises(VerificationFailed, match="another version"):
        verify_model(place)


def test_a_model_that_lies_among_those_of_another_is_refused(signed, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_MODEL_STORE", str(tmp_path / "store"))
    name = signed.provenance.model_digest.removeprefix("blake3:")
    for model, fits in (("fraud", True), ("credit", False)):
        shutil.copytree(signed.directory, tmp_path / "store" / model / name)
        if fits:
            verify_model(tmp_path / "store" / model / name)
        else:
            with pytest.raises(VerificationFailed, match="not 'credit'"):
                verify_model(tmp_path / "store" / model / name)


def test_a_genuine_signature_of_another_version_does_not_fit(signed, newer):
    shutil.copy(newer.directory / "model.sig", signed.directory / "model.sig")
    with pytest.raises(VerificationFailed):
        verify_model(signed.directory)
    shutil.copy(newer.directory / "provenance.json", signed.directory / "provenance.json")
    with pytest.raises(VerificationFailed, match="altered"):
        verify_model(signed.directory)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("model_digest", "blake3:" + "0" * 64, "not the model"),
        ("signer", "sha256:" + "0" * 64, "not the trusted key"),
        ("method", "certificate", "signed by certificate"),
        ("format_version", 2, "format 2"),
        ("files", {}, "lists other files"),
        ("run_id", 7, "must give"),
        ("more", "x", "must give"),
    ],
)
def test_a_provenance_that_says_something_untrue_is_refused_even_if_signed(signed, home, entry, value, message):
    path = signed.directory / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    sign_by_upstream(signed.directory, home, "--no-ignore-git-paths")
    with pytest.raises(VerificationFailed, match=message):
        verify_model(signed.directory)


def test_a_signature_without_a_provenance_is_refused(signed, home):
    (signed.directory / "provenance.json").unlink()
    sign_by_upstream(signed.directory, home, "--no-ignore-git-paths")
    with pytest.raises(VerificationFailed, match=r"no provenance\.json"):
        verify_model(signed.directory)


def test_following_links_when_signing_is_refused(signed, home):
    sign_by_upstream(signed.directory, home, "--no-ignore-git-paths", "--allow_symlinks")
    with pytest.raises(VerificationFailed, match="another way"):
        verify_model(signed.directory)


def test_a_signature_of_another_kind_than_the_trusted_one_is_refused(signed, tmp_path, monkeypatch):
    from tests.support.certificates import new_authority, write_certificates

    monkeypatch.setenv("MODELYARD_TRUST", "certificate")
    monkeypatch.setenv("MODELYARD_TRUSTED_IDENTITY", "somebody")
    roots = write_certificates(tmp_path / "roots.pem", new_authority("root").certificate)
    monkeypatch.setenv("MODELYARD_TRUSTED_CERTIFICATES", str(roots))
    with pytest.raises(VerificationFailed, match="in another way than the trusted one"):
        verify_model(signed.directory)


def test_what_lies_beside_the_model_does_not_say_whom_to_trust(signed, tmp_path):
    """A directory signed by a stranger, who put their public key wherever it might be looked for."""
    stranger = tmp_path / "stranger.pem"
    key = write_private_key(stranger)
    for name in ("provenance.json", "model.sig"):
        (signed.directory / name).unlink()
    write_public_key(signed.directory / "signing.pub", key)
    (signed.directory / "keys").mkdir()
    write_public_key(signed.directory / "keys" / "signing.pub", key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_SIGNING_KEY", str(stranger))
        patch.setenv("MODELYARD_VERIFICATION_KEY", str(signed.directory / "signing.pub"))
        sign_directory(signed.directory, configured_signer("key"), model_name="fraud")
        verify_model(signed.directory)
    with pytest.raises(VerificationFailed):
        verify_model(signed.directory)


def test_without_a_public_key_nothing_is_trusted(signed, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_VERIFICATION_KEY", str(tmp_path / "none.pub"))
    with pytest.raises(NotAvailable, match="MODELYARD_VERIFICATION_KEY"):
        verify_model(signed.directory)


def test_a_missing_directory_is_bad_input_and_not_a_forgery(home, tmp_path):
    for work in (verify_model, load_verified_model):
        with pytest.raises(InvalidInput, match="model directory"):
            work(tmp_path / "none")


def test_a_verified_model_answers(signed):
    scorer = load_verified_model(signed.directory, model_name="fraud", digest=signed.provenance.model_digest)
    assert scorer.score(pl.DataFrame({"amount": [2.0, -2.0], "night": [0.0, 0.0]})).shape == (2,)


def test_an_altered_model_is_not_loaded(signed):
    with (signed.directory / "model.ubj").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationFailed, match=r"altered since it was signed: model\.ubj"):
        load_verified_model(signed.directory)


def test_what_is_loaded_is_what_was_verified_even_if_the_directory_changes_in_between(signed, newer, monkeypatch):
    rows = pl.DataFrame({"amount": [0.3], "night": [0.1]})
    expected = load_verified_model(signed.directory).score(rows)
    genuine = verification._verify

    def verify_then_swap(directory, place, **expectations):
        provenance = genuine(directory, place, **expectations)
        for name in ("model.ubj", "golden_rows.json", "modelyard.json"):
            shutil.copy(newer.directory / name, signed.directory / name)
        return provenance

    monkeypatch.setattr(verification, "_verify", verify_then_swap)
    assert load_verified_model(signed.directory).score(rows) == expected
    monkeypatch.undo()
    assert load_verified_model(newer.directory).score(rows) != expected


def test_what_was_altered_only_while_it_was_copied_is_not_loaded(signed, newer, monkeypatch):
    def swap_copy_and_restore(source, destination, **details):
        monkeypatch.undo()
        kept = (signed.directory / "model.ubj").read_bytes()
        shutil.copy(newer.directory / "model.ubj", signed.directory / "model.ubj")
        shutil.copytree(source, destination, **details)
        (signed.directory / "model.ubj").write_bytes(kept)

    trust = configured_trust()
    monkeypatch.setattr(verification.shutil, "copytree", swap_copy_and_restore)
    with pytest.raises(VerificationFailed, match=r"altered since it was signed: model\.ubj"):
        load_verified_model(signed.directory, trust=trust)


def test_loading_leaves_no_copy_behind(signed, tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    load_verified_model(signed.directory)
    (signed.directory / "added").write_text("x")
    with pytest.raises(VerificationFailed):
        load_verified_model(signed.directory)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("version", sorted(path.name for path in FIXTURES.iterdir()) if FIXTURES.is_dir() else [])
def test_models_signed_by_every_past_format_still_verify(version):
    folder = FIXTURES / version
    provenance = verify_model(folder / "signed", model_name="fraud", trust=TrustedKey(folder / "signing.pub"))
    assert provenance.model_digest == (folder / "digest").read_text().strip()
    load_verified_model(folder / "signed", trust=TrustedKey(folder / "signing.pub"))


def test_a_signature_is_an_in_toto_statement_over_every_file(signed):
    bundle = json.loads((signed.directory / "model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    listed = {entry["name"] for entry in statement["predicate"]["resources"]}
    present = {path.relative_to(signed.directory).as_posix() for path in signed.directory.rglob("*") if path.is_file()}
    assert listed == present - {"model.sig"}
