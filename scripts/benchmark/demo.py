"""The seconds of a demo that ran on this machine."""

import json
from pathlib import Path

from modelyard.components.errors import InvalidInput, NotAvailable
from modelyard.scripts.benchmark.figure import Figure, Row, Setting

MOST = 90.0


def _measure(setting: Setting) -> list[Row]:
    if setting.demo is None:
        raise NotAvailable("not measured: run `modelyard demo` here and give its demo.json with --demo")
    seconds, releases = read_seconds(setting.demo)
    total = sum(seconds.values())
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:3]
    return [
        Row(
            work=f"the demo: {releases} releases, sum of its {len(seconds)} steps",
            unit="s",
            ours=total,
            target=f"at most {MOST:g} s",
            reached=total <= MOST,
            note="longest: " + ", ".join(f"{name} {seconds[name]:.1f} s" for name in slowest),
        )
    ]


FIGURE = Figure("demo", "The demo", _measure)


def read_seconds(path: Path) -> tuple[dict[str, float], int]:
    """A demo's seconds by step, and how many models it released.

    Raises:
        InvalidInput: the file is not what the demo writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(value) for name, value in content["seconds"].items()}, len(content["releases"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("--demo", str(path), f"give the demo.json that `modelyard demo` wrote ({error})") from error
