import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelyard.components.registry.promotion import promote_model
from modelyard.components.registry.registration import Registered, register_model
from modelyard.components.rollout.plan import parse_plan
from modelyard.components.rollout.record import Progress
from modelyard.components.rollout.rolling_out import run_rollout
from modelyard.components.serving.target import ServedModel
from tests.support.signed_models import attestations, sign_model, train_small_model
from tests.support.simulated_target import Behaviour, SimulatedTarget, SimulatedTime

PLAN: dict[str, Any] = {
    "steps": [5, 25, 50, 100],
    "bake_seconds": 60,
    "min_samples": 100,
    "look_seconds": 10,
    "deadline_seconds": 600,
    "shadow_seconds": 0,
    "limits": {},
}


@dataclass(frozen=True)
class Laptop:
    """A registry with three versions: the first is champion, the others were judged against it; the second challenges."""

    home: Path
    versions: dict[str, ServedModel]


@pytest.fixture(scope="session")
def _template(tmp_path_factory) -> Laptop:
    root = tmp_path_factory.mktemp("laptop")
    with pytest.MonkeyPatch.context() as patch:
        _at_home(patch, root / "home")
        made: list[Registered] = []
        # The one that challenges is registered last.
        for seed in (0, 2, 1):
            model = train_small_model(root / f"model{seed}", seed)
            against = {"version": made[0].version, "digest": made[0].digest} if made else None
            papers = attestations(root / f"papers{seed}", model, champion=against)
            sign_model(model, **papers, signed_model=root / f"signed{seed}", model_name="fraud")
            made.append(register_model(root / f"signed{seed}", evaluation=papers["evaluation"], model_name="fraud"))
            if seed == 0:
                promote_model("fraud", made[0].version, made[0].digest)
    return Laptop(root / "home", {one.version: ServedModel(one.version, one.digest, one.uri) for one in made})


def _at_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    for variable in [name for name in os.environ if name.startswith(("MODELYARD_", "MLFLOW_"))]:
        patch.delenv(variable)
    patch.setenv("MODELYARD_HOME", str(home))


@pytest.fixture
def laptops(_template, tmp_path, monkeypatch) -> Callable[[], Laptop]:
    """Makes laptops with the same registry, each for the test to change. The signed models stay where they are."""
    made: list[Path] = []

    def make() -> Laptop:
        home = tmp_path / f"home{len(made)}"
        made.append(home)
        home.mkdir()
        shutil.copy(_template.home / "mlflow.db", home / "mlflow.db")
        shutil.copytree(_template.home / "keys", home / "keys")
        _at_home(monkeypatch, home)
        return Laptop(home, _template.versions)

    return make


@pytest.fixture
def laptop(laptops) -> Laptop:
    """One of them."""
    return laptops()


class Trial:
    """A simulated target with the champion in charge, and rollouts at it with the real registry.

    Args:
        laptop: the registry.
        behaviour: how versions answer; see ``SimulatedTarget``.
        serving: the version in charge, or empty.
        rate: requests a second.
    """

    def __init__(
        self,
        laptop: Laptop,
        behaviour: dict[str, Behaviour] | None = None,
        *,
        serving: str = "1",
        rate: float = 50.0,
        seed: int = 0,
    ) -> None:
        self.laptop, self.time = laptop, SimulatedTime()
        self.target = SimulatedTarget(self.time, behaviour=behaviour, rate=rate, seed=seed)
        if serving:
            self.target.serve(laptop.versions[serving])

    def run(self, version: str = "3", **changes: Any) -> Progress:
        """Rolls a version out; ``changes`` are to the plan's parameters."""
        model = self.laptop.versions[version]
        return run_rollout(
            self.target,
            parse_plan(**{**PLAN, **changes}),
            model_name="fraud",
            version=model.version,
            digest=model.digest,
            uri=model.uri,
            on_this_machine=True,
            clock=self.time,
            now=self.time,
            sleep=self.time.sleep,
            replay=self.target.answer_golden_rows,
        )

    @property
    def in_charge(self) -> str:
        """The version in charge."""
        return self.target.stable.model.version if self.target.stable else ""


@pytest.fixture
def trial(laptop) -> Callable[..., Trial]:
    """Makes a ``Trial`` at the laptop's registry."""

    def make(behaviour: dict[str, Behaviour] | None = None, **details: Any) -> Trial:
        return Trial(laptop, behaviour, **details)

    return make
