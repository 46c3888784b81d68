"""What a figure is: a target, and rows that set this package beside a peer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from modelyard.scripts.benchmark.measuring import Measurement

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        work: what was done, with its size.
        unit: of ``ours`` and ``peer``.
        ours: this package's figure.
        peer_name: what it is compared with; empty if with nothing.
        peer: the peer's figure.
        target: what is to be reached, for people; empty if the row is for information.
        reached: whether it was; None without a target.
        larger_is_better: true for a throughput.
        differences: values in which the results differ; None where results are not compared.
        note: what a reader must know, such as what was scaled up.
        measurements: everything that was measured for this row, by name.
    """

    work: str
    unit: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    target: str = ""
    reached: bool | None = None
    larger_is_better: bool = False
    differences: int | None = None
    note: str = ""
    measurements: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """``ours`` divided by ``peer``."""
        return self.ours / self.peer if self.peer else None


@dataclass(frozen=True)
class Setting:
    """What a figure is measured with.

    Attributes:
        scratch: an empty folder of its own, removed afterwards.
        quick: small sizes, to see that everything works rather than how fast.
        demo: ``demo.json`` of a demo that ran, if one is given.
        say: tells the person who waits what is measured now.
    """

    scratch: Path
    quick: bool = False
    demo: Path | None = None
    say: Callable[[str], None] = print

    def size(self, full: T, quick: T) -> T:
        """A size, number of repeats or other setting for this run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Figure:
    """One kind of work whose cost is compared.

    Attributes:
        name: for ``--only``.
        title: for people.
        measure: does the work and the peers' work.
        needs: libraries that the peers need, by import name.
    """

    name: str
    title: str
    measure: Callable[[Setting], list[Row]]
    needs: tuple[str, ...] = ()
