import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from modelyard.components.serving.local import processes
from modelyard.components.serving.local.processes import ProcessIdentity, find, identify, spawn_detached
from tests.components.serving.local.conftest import until


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "a (odd) name) R 1 "])
    yield process
    process.kill()
    process.wait()


def test_a_process_is_itself_until_it_ends(sleeper):
    identity = identify(sleeper.pid)
    assert identity.pid == sleeper.pid
    assert "a (odd) name) R 1 " in identity.command + " "
    assert identity.alive()
    assert ProcessIdentity.from_json(identity.to_json()) == identity
    assert identity.signal(signal.SIGKILL)
    # Nobody has waited for it yet: it is dead all the same.
    until(lambda: not identity.alive())
    sleeper.wait()
    assert not identity.alive()
    assert not identity.signal(signal.SIGTERM)


@pytest.mark.parametrize("change", [{"started": "another boot/1"}, {"command": "envoy -c other"}])
def test_another_process_with_the_same_pid_is_not_it_and_gets_no_signal(sleeper, change):
    recorded = replace(identify(sleeper.pid), **change)
    assert not recorded.alive()
    assert not recorded.signal(signal.SIGKILL)
    assert sleeper.poll() is None


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_a_pid_that_cannot_be_is_nobody(pid):
    assert identify(pid) is None


def test_what_belongs_to_somebody_else_is_nobody(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert identify(os.getpid()) is None


def test_processes_are_found_by_their_words_but_not_the_one_that_looks(sleeper):
    (found,) = find("a (odd)", "name) R")
    assert found.pid == sleeper.pid
    assert os.getpid() not in [process.pid for process in find(sys.executable)]


@pytest.mark.skipif(not shutil.which("ps"), reason="there is no ps to ask")
def test_what_ps_says_is_understood_alike_where_there_is_no_proc(sleeper, monkeypatch):
    here = identify(sleeper.pid)
    monkeypatch.setattr(sys, "platform", "darwin")
    there = identify(sleeper.pid)
    assert (there.pid, there.command.rstrip()) == (here.pid, here.command.rstrip())
    assert there.alive()
    assert identify(2**22 + 1) is None
    assert sleeper.pid in [process.pid for process in processes.find("(odd)")]
    sleeper.kill()
    until(lambda: not there.alive())


def test_a_detached_process_has_its_own_session_folder_log_and_no_parent_that_waits(tmp_path):
    told = "os.getcwd(), sorted(os.environ), os.getsid(0) != int(sys.argv[1])"
    code = f"import os, sys, time; print({told}, flush=True); time.sleep(600)"
    command = [sys.executable, "-P", "-c", code, str(os.getsid(0)), "detached here"]
    spawn_detached(command, environment={"ONLY": "this"}, folder=tmp_path, log=tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text().endswith("\n"))
    (found,) = [process for process in find("detached here") if not process.command.startswith("/bin/sh")]
    assert found.signal(signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    assert said.startswith(f"{tmp_path} [")
    assert "'ONLY'" in said
    assert "'HOME'" not in said
    assert said.endswith("True\n")
    assert ((tmp_path / "log").stat().st_mode & 0o777) == 0o600
    until(lambda: identify(found.pid) is None)
