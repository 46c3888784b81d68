"""What the nodes of a training are told, as JSON in the job's folder."""

from dataclasses import asdict, dataclass
from typing import Any

from modelyard.components.artifacts.model import Feature, ModelSpec


@dataclass(frozen=True)
class Assignment:
    """One training on several nodes.

    Attributes:
        trainer: ``xgboost`` or ``torch``.
        nodes: how many.
        features, label: of the model.
        model_file: name of the model's file.
        parameters: fields of ``BoostingParameters`` or ``NetworkParameters``.
        shaping: everything that the model depends on besides the rows.
        learned: what XGBoost is told; empty for torch.
        device: ``cpu`` or ``cuda``.
        rounds, patience, checkpoint_rounds: as in ``session.Plan``.
        share: share of positives among all training rows.
        train_digest, validation_digest: digests of the datasets.
    """

    trainer: str
    nodes: int
    features: list[dict[str, Any]]
    label: str
    model_file: str
    parameters: dict[str, Any]
    shaping: dict[str, Any]
    learned: dict[str, Any]
    device: str
    rounds: int
    patience: int
    checkpoint_rounds: int
    share: float
    train_digest: str
    validation_digest: str

    @property
    def spec(self) -> ModelSpec:
        """The model's specification, without a threshold of its own."""
        features = tuple(
            Feature(feature["name"], None if feature["categories"] is None else tuple(feature["categories"]))
            for feature in self.features
        )
        return ModelSpec(features, self.label, self.model_file, 0.5)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON-ready values."""
        return asdict(self)
