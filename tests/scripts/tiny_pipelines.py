"""Pipelines of a few steps, each of which does one thing that a local run has to cope with."""

from typing import NamedTuple

from kfp import dsl

from modelyard.components.interface import component


@component("train")
def say(text: str, note: dsl.Output[dsl.Artifact], count: int = 1) -> NamedTuple("Outputs", [("said", str), ("words", int)]):
    """Says a text.

    Args:
        text: What to say.
        count: How often.

    Returns:
        note: The text as a file.
        said: The text.
        words: How many words that was.
    """
    from pathlib import Path

    said = " ".join([text] * count)
    Path(note.path).write_text(said)
    return (said, len(said.split()))


@component("train")
def surroundings() -> NamedTuple("Outputs", [("folder", str), ("entries", int), ("path", list), ("environment", dict)]):
    """Tells where it runs.

    Returns:
        folder: The current folder.
        entries: How many files that holds.
        path: sys.path.
        environment: Environment variables.
    """
    import os
    import sys
    from pathlib import Path

    return (str(Path.cwd()), len(list(Path.cwd().iterdir())), sys.path, dict(os.environ))


@component("train")
def types(sizes: list, options: dict, ratio: float) -> NamedTuple("Outputs", [("sizes_types", list), ("option_type", str)]):
    """Tells what its numbers are.

    Args:
        sizes: Some numbers.
        options: A number called depth.
        ratio: A number.

    Returns:
        sizes_types: Type of each size.
        option_type: Type of depth.
    """
    return ([type(size).__name__ for size in sizes], type(options["depth"]).__name__)


@component("train")
def fail(message: str):
    """Fails, and says why in two exceptions.

    Args:
        message: What the first one says.
    """
    print("some words before the failure")
    try:
        raise KeyError(message)
    except KeyError as error:
        raise ValueError("second of two") from error


@component("train")
def wait(folder_uri: str, partial: dsl.Output[dsl.Artifact], heed_sigterm: bool = True):
    """Waits to be ended; on SIGTERM it writes a checkpoint.

    Args:
        folder_uri: Where it writes its process id and the checkpoint.
        heed_sigterm: Whether it ends on SIGTERM.

    Returns:
        partial: Half of an output.
    """
    import os
    import signal
    import time
    from pathlib import Path

    from modelyard.components.announcements import announce
    from modelyard.components.errors import NotAvailable

    announce("waiting for the end")
    print("and saying so in many words")

    def checkpoint(number, frame):
        if heed_sigterm:
            time.sleep(0.3)
            Path(folder_uri, "checkpoint").write_text("saved")
            raise NotAvailable("told to stop: the checkpoint is kept\nRun it again to go on")

    signal.signal(signal.SIGTERM, checkpoint)
    Path(partial.path).write_text("half")
    Path(folder_uri, "started.new").write_text(str(os.getpid()))
    Path(folder_uri, "started.new").rename(Path(folder_uri, "started"))
    while True:
        time.sleep(0.05)


@component("train")
def leave_a_child(folder_uri: str):
    """Starts a process that holds on to its standard output, and ends.

    Args:
        folder_uri: Where it writes the child's process id.
    """
    import subprocess
    from pathlib import Path

    child = subprocess.Popen(["sleep", "600"])
    Path(folder_uri, "child").write_text(str(child.pid))


@component("train")
def end_by_signal(number: int):
    """Ends itself by a signal.

    Args:
        number: The signal.
    """
    import os

    os.kill(os.getpid(), number)


@component("ops")
def judge(verdict: str) -> NamedTuple("Outputs", [("decision", str), ("reasons", str)]):
    """Gives a decision.

    Args:
        verdict: The decision.

    Returns:
        decision: The verdict.
        reasons: Why.
    """
    return (verdict, "because")


@dsl.pipeline(name="speech", description="Says a text.\nNothing more.")
def speech(
    text: str,
    count: int = 2,
    ratio: float = 0.5,
    loud: bool = False,
    words: list = ["a", "b"],
    options: dict = {"volume": 3},
    place_uri: str = "",
) -> str:
    """Says a text.

    Args:
        text: What to say.
        count: How often.
        ratio: Of no use.
        loud: Of no use either.
        words: A list.
        options: An object.
        place_uri: A path.

    Returns:
        What was said.
    """
    task = say(text=text, count=count)
    task.set_cpu_limit("1").set_memory_limit("1G").set_display_name("a name of its own")
    return task.outputs["said"]


@dsl.pipeline(name="branches")
def branches(kind: str, verdict: str = "pass"):
    with dsl.If(kind == "loud"):
        say(text="HEY")
    with dsl.Else():
        judged = judge(verdict=verdict)
        with dsl.If(judged.outputs["decision"] == "pass"):
            say(text="passed")
        with dsl.Else():
            surroundings()


@dsl.pipeline(name="places")
def places(place_uri: str = "") -> NamedTuple(
    "Outputs", [("folder", str), ("entries", int), ("path", list), ("environment", dict)]
):
    task = surroundings()
    say(text=place_uri)
    results = NamedTuple("Outputs", [("folder", str), ("entries", int), ("path", list), ("environment", dict)])  # noqa: UP014
    return results(**{name: task.outputs[name] for name in ("folder", "entries", "path", "environment")})


@dsl.pipeline(name="failure")
def failure(message: str = "first of two"):
    said = say(text="before")
    # A cluster would start it again five times, half a minute apart at first.
    fail(message=message).set_retry(5, backoff_duration="30s").after(said)


@dsl.pipeline(name="waiting")
def waiting(folder_uri: str, heed_sigterm: bool = True):
    said = say(text="before")
    wait(folder_uri=folder_uri, heed_sigterm=heed_sigterm).set_retry(3).after(said)


@dsl.pipeline(name="child")
def child(folder_uri: str):
    leave_a_child(folder_uri=folder_uri)


@dsl.pipeline(name="killed")
def killed(number: int = 9):
    end_by_signal(number=number)


@dsl.pipeline(name="loop")
def loop():
    with dsl.ParallelFor(["one", "two", "three"]) as text:
        say(text=text)


@dsl.pipeline(name="numbers")
def numbers(sizes: list = [128, 0.5, 1e300], options: dict = {"depth": 3}):
    types(sizes=sizes, options=options, ratio=1.0)


@dsl.pipeline(name="dated")
def dated():
    say(text=dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER)


ALL = {
    function.name: function for function in (speech, branches, places, failure, waiting, child, killed, loop, numbers, dated)
}
