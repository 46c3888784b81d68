"""Signing a model and verifying it, against OpenSSF model-signing as it comes (SHA-256)."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from modelyard.scripts.benchmark.figure import Figure, Row, Setting
from modelyard.scripts.benchmark.measuring import Clock, Task, measure, measure_in_turn

LEAST = 2.0
_OURS, _PEER = "modelyard", "model-signing's default"
_PAYLOAD = "weights.bin"
_CHUNK = 1 << 24
# The first time brings the model into the page cache and imports what is needed; the second is timed.
_ONCE_BEFORE = (False, True)


def _measure(setting: Setting) -> list[Row]:
    size = setting.size(2_000_000_000, 1_000_000)
    setting.say(f"writing a model of {_size(size)}")
    folders = {name: str(setting.scratch / folder) for name, folder in ((_OURS, "ours"), (_PEER, "default"))}
    measure(Task(write_model, {"folders": list(folders.values()), "size": size}), setting.scratch)
    rows = []
    for verb, ours, theirs in (("sign", sign, sign_by_default), ("verify", verify, verify_by_default)):
        setting.say(f"{verb} a model of {_size(size)}")
        tasks = {name: Task(work, {"folder": folders[name]}) for name, work in ((_OURS, ours), (_PEER, theirs))}
        measured = measure_in_turn(tasks, setting.scratch, setting.size(3, 1))
        speeds = {name: size / 1e9 / measurement.seconds for name, measurement in measured.items()}
        rows.append(
            Row(
                work=f"{verb} a model of {_size(size)}, in the page cache",
                unit="GB/s",
                ours=speeds[_OURS],
                peer_name=_PEER,
                peer=speeds[_PEER],
                larger_is_better=True,
                target=f"at least {LEAST} GB/s",
                reached=speeds[_OURS] >= LEAST,
                note=f"CPU {measured[_OURS].cpu_seconds:.1f} / {measured[_PEER].cpu_seconds:.1f} s",
                measurements=measured,
            )
        )
    return rows


FIGURE = Figure("sign", "Signing and verifying", _measure, needs=("model_signing",))


def _size(size: int) -> str:
    return f"{size / 1e9:g} GB" if size >= 1e9 else f"{size / 1e6:g} MB"


# What follows runs in processes of its own.


def write_model(clock: Clock, folders: list[str], size: int) -> dict[str, Any]:
    """Writes a model that is one large file, the same one in each folder, and makes the key pair."""
    import numpy as np

    from modelyard.components.signing.keys import private_key_path

    private_key_path()
    first, *others = (Path(folder) for folder in folders)
    first.mkdir()
    draws = np.random.default_rng(0)
    with (first / _PAYLOAD).open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(draws.bytes(min(_CHUNK, size - start)))
    for other in others:
        other.mkdir()
        (other / _PAYLOAD).hardlink_to(first / _PAYLOAD)
    return {}


def sign(clock: Clock, folder: str) -> dict[str, Any]:
    """As ``sign_model`` signs its copy of the model."""
    from modelyard.components.signing.signature import configured_signer, sign_directory

    directory = Path(folder)
    signer = configured_signer("key")
    for timed in _ONCE_BEFORE:
        for name in ("provenance.json", "model.sig"):
            (directory / name).unlink(missing_ok=True)
        with clock if timed else nullcontext():
            provenance = sign_directory(directory, signer, model_name="benchmark")
    return {"digest": provenance.model_digest}


def verify(clock: Clock, folder: str) -> dict[str, Any]:
    """As whatever loads a model verifies it."""
    from modelyard.components.signing.verification import verify_model

    for timed in _ONCE_BEFORE:
        with clock if timed else nullcontext():
            provenance = verify_model(folder, model_name="benchmark")
    return {"digest": provenance.model_digest}


def sign_by_default(clock: Clock, folder: str) -> dict[str, Any]:
    """With model-signing's own configuration and the same key."""
    from model_signing import signing

    from modelyard.components.signing.keys import private_key_path

    signer = signing.Config().use_elliptic_key_signer(private_key=private_key_path())
    for timed in _ONCE_BEFORE:
        with clock if timed else nullcontext():
            signer.sign(folder, f"{folder}.sig")
    return {}


def verify_by_default(clock: Clock, folder: str) -> dict[str, Any]:
    """With model-signing's own configuration and the same key."""
    from model_signing import verifying

    from modelyard.components import settings

    verifier = verifying.Config().use_elliptic_key_verifier(public_key=settings.verification_key())
    for timed in _ONCE_BEFORE:
        with clock if timed else nullcontext():
            verifier.verify(folder, f"{folder}.sig")
    return {}
