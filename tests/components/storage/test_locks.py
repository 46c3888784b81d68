import multiprocessing
import os
import time
from pathlib import Path

import pytest

from modelyard.components.storage.locks import exclusive_lock, is_locked


def _add_slowly(folder: str, times: int) -> None:
    for _ in range(times):
        with exclusive_lock(Path(folder, "lock")):
            counter = Path(folder, "counter")
            seen = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(seen + 1))


def test_no_two_processes_are_inside_at_once_though_the_lock_is_removed_each_time(tmp_path):
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_slowly, args=(str(tmp_path), 40)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert (tmp_path / "counter").read_text() == "120"
    assert not (tmp_path / "lock").exists()


def test_a_lock_whose_block_failed_is_free_again(tmp_path):
    for _ in range(2):
        try:
            with exclusive_lock(tmp_path / "lock"):
                raise ValueError
        except ValueError:
            pass
    waited = []
    with exclusive_lock(tmp_path / "lock", on_wait=lambda: waited.append(True)):
        assert waited == []


def _next_descriptor() -> int:
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_whoever_will_not_wait_leaves_nothing_open(tmp_path):
    def refuse():
        raise TimeoutError

    with exclusive_lock(tmp_path / "lock"):
        before = _next_descriptor()
        for _ in range(3):
            with pytest.raises(TimeoutError), exclusive_lock(tmp_path / "lock", refuse):
                pass
        assert _next_descriptor() == before
    with exclusive_lock(tmp_path / "lock", refuse):
        pass


def test_who_looks_at_a_lock_sees_its_holder_and_holds_nothing(tmp_path):
    lock = tmp_path / "lock"
    assert not is_locked(lock)
    with exclusive_lock(lock):
        assert is_locked(lock)
    assert not is_locked(lock)
