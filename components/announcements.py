"""Lines of a step's log that whoever waits for a run on this machine is shown at once."""

MARK = "modelyard: "


def announce(text: str) -> None:
    """Says one line on how far a step has come; for steps that take many minutes, at most a few lines each."""
    print(f"{MARK}{text}", flush=True)
