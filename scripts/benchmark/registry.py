"""The figures, in the order in which they are measured and shown. A new one is a module with a ``FIGURE``, named here."""

from modelyard.scripts.benchmark import bootstrap, demo, fetching, serving, signing, simulation, starting
from modelyard.scripts.benchmark.figure import Figure

FIGURES: tuple[Figure, ...] = (
    fetching.FIGURE,
    signing.FIGURE,
    bootstrap.FIGURE,
    simulation.FIGURE,
    starting.FIGURE,
    serving.FIGURE,
    demo.FIGURE,
)
