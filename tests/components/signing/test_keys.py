import os
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from modelyard.components import settings
from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.components.signing.keys import fingerprint, load_private_key, load_public_key, private_key_path
from tests.support.certificates import write_private_key, write_public_key


@pytest.fixture(autouse=True)
def _laptop(tmp_path, monkeypatch):
    for variable in ("MODELYARD_SIGNING_KEY", "MODELYARD_VERIFICATION_KEY", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))


def signer_of(path):
    return fingerprint(load_private_key(path).public_key())


def in_a_cluster(monkeypatch, secret):
    monkeypatch.delenv("MODELYARD_HOME")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(settings, "MOUNTED_KEYS", secret)


def test_a_laptop_makes_its_key_pair_once_and_for_its_owner_alone(tmp_path):
    path = private_key_path()
    assert path == tmp_path / "home" / "keys" / "signing.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    assert private_key_path().read_bytes() == before
    assert fingerprint(load_public_key(settings.verification_key())) == signer_of(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["signing.pem", "signing.pub"]


def test_a_public_key_that_was_not_written_yet_is_written_by_the_next_use():
    path = private_key_path()
    settings.verification_key().unlink()
    private_key_path()
    assert fingerprint(load_public_key(settings.verification_key())) == signer_of(path)


def test_processes_that_start_together_agree_on_one_key(tmp_path):
    code = (
        "from modelyard.components.signing.keys import *; print(fingerprint(load_private_key(private_key_path()).public_key()))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1
    assert [process.returncode for process in started] == [0] * 6
    assert sorted(entry.name for entry in (tmp_path / "home" / "keys").iterdir()) == ["signing.pem", "signing.pub"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_a_key_that_others_can_read_is_refused(mode):
    private_key_path().chmod(mode)
    with pytest.raises(InvalidInput, match=f"{mode:04o}.*others can read"):
        private_key_path()


def test_a_configured_key_that_is_missing_is_an_error_and_none_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_SIGNING_KEY", str(tmp_path / "none.pem"))
    with pytest.raises(NotAvailable, match=r"none\.pem.*MODELYARD_SIGNING_KEY"):
        private_key_path()
    assert not (tmp_path / "none.pem").exists()


def test_a_cluster_uses_the_mounted_secret_and_never_makes_a_key(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    in_a_cluster(monkeypatch, secret)
    with pytest.raises(NotAvailable, match="Secret"):
        private_key_path()
    assert not secret.exists()
    secret.mkdir()
    key = write_private_key(secret / "signing.pem", mode=0o644)
    assert private_key_path() == secret / "signing.pem"
    assert not (secret / "signing.pub").exists()
    write_public_key(secret / "signing.pub", key)
    assert settings.verification_key() == secret / "signing.pub"
    (secret / "signing.pem").chmod(0o666)
    with pytest.raises(InvalidInput, match="change it"):
        private_key_path()


def test_a_key_that_does_not_belong_to_the_public_one_is_refused_before_it_signs(tmp_path):
    write_public_key(settings.verification_key(), write_private_key(private_key_path().with_name("other.pem")))
    with pytest.raises(InvalidInput, match="nobody would accept"):
        private_key_path()


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: None,
    ],
    ids=["ed25519", "rsa", "unusual curve", "garbage"],
)
def test_only_ec_keys_on_the_usual_curves_can_sign_and_verify(make, tmp_path, monkeypatch):
    key = make()
    path = tmp_path / "key.pem"
    if key is None:
        path.write_bytes(b"garbage")
        (tmp_path / "key.pub").write_bytes(b"garbage")
    else:
        write_private_key(path, key)
        write_public_key(tmp_path / "key.pub", key)
    path.chmod(0o600)
    monkeypatch.setenv("MODELYARD_SIGNING_KEY", str(path))
    with pytest.raises(InvalidInput, match="MODELYARD_SIGNING_KEY"):
        private_key_path()
    with pytest.raises(InvalidInput, match="MODELYARD_VERIFICATION_KEY"):
        load_public_key(tmp_path / "key.pub")


def test_a_key_with_a_password_is_refused_without_asking_for_it(tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "key.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
        )
    )
    path.chmod(0o600)
    monkeypatch.setenv("MODELYARD_SIGNING_KEY", str(path))
    with pytest.raises(InvalidInput, match="without a password"):
        private_key_path()


def test_a_killed_first_use_leaves_nothing_that_the_next_trips_over(tmp_path):
    """Stops the making of a key at each of its system calls in turn."""
    code = (
        "import os, sys; from modelyard.components.signing import keys\n"
        "limit = int(sys.argv[1]); count = 0\n"
        "def watch(event, arguments):\n"
        "    global count\n"
        "    if event in ('open', 'os.link', 'os.remove', 'os.rename') and any('keys' in str(a) for a in arguments):\n"
        "        count += 1\n"
        "        if count == limit: os._exit(9)\n"
        "sys.addaudithook(watch)\n"
        "keys.private_key_path()\n"
    )
    stopped = 0
    for limit in range(1, 40):
        home = tmp_path / f"home{limit}"
        environment = {**os.environ, "MODELYARD_HOME": str(home)}
        done = subprocess.run([sys.executable, "-c", code, str(limit)], env=environment, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == 9
        stopped += 1
        again = subprocess.run([sys.executable, "-c", code, "0"], env=environment, check=False)
        assert again.returncode == 0
        assert {"signing.pem", "signing.pub"} <= {entry.name for entry in (home / "keys").iterdir()}
    assert stopped >= 5
