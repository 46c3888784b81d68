"""The MLflow run of a training: parameters, metrics of each round, what it was trained on, and how it ended."""

import json
import os
import time
from typing import Any

from modelyard.components import tracking
from modelyard.components.errors import NotAvailable
from modelyard.components.tracking.connection import experiment_id, reachable
from modelyard.components.training.labelled_rows import LabelledRows

_METRICS_A_CALL = 1000
_PARAMETERS_A_CALL = 100
_MAX_PARAMETER = 6000
_MAX_DIGEST = 36
_MAX_SCHEMA = 60_000


class TrackedRun:
    """A run that this training made, or one that it was given by ``MLFLOW_RUN_ID``.

    A given run belongs to whoever gave it: it is added to, and its status is left alone.

    Args:
        model_name: the experiment's and the run's name, where none is given by the environment.
        earlier_run_id: the run that a stopped training of the same kind was logging to.

    Raises:
        NotAvailable: the tracking server cannot be reached, or has no such run.
    """

    def __init__(self, model_name: str, earlier_run_id: str = "") -> None:
        self._client = tracking.client()
        given = os.environ.get("MLFLOW_RUN_ID", "")
        self._mine = not given
        self._logged: dict[str, int] = {}
        with reachable():
            if given:
                self.run_id = self._existing(given)
                if not self.run_id:
                    raise NotAvailable(f"MLFLOW_RUN_ID names run {given}, which MLflow has not got: unset it, or name another")
            else:
                self.run_id = self._existing(earlier_run_id)
            if self.run_id:
                if self._mine:
                    self._client.update_run(self.run_id, status="RUNNING")
            else:
                run = self._client.create_run(experiment_id(self._client, model_name), run_name=model_name)
                self.run_id = run.info.run_id
        self._resumed = self.run_id in (given, earlier_run_id)

    def describe(self, parameters: dict[str, Any], tags: dict[str, str], rows: dict[str, LabelledRows]) -> None:
        """Logs parameters, tags and the datasets, by their context (such as ``training``); repeating it adds nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param
        from mlflow.exceptions import MlflowException

        items = [Param(name, _text(value)[:_MAX_PARAMETER]) for name, value in sorted(parameters.items())]
        with reachable():
            for start in range(0, len(items), _PARAMETERS_A_CALL):
                try:
                    self._client.log_batch(self.run_id, params=items[start : start + _PARAMETERS_A_CALL])
                except MlflowException as error:
                    raise NotAvailable(
                        f"run {self.run_id} of MLflow has other parameters already ({str(error).splitlines()[0][:300]}): "
                        "give this training a run of its own"
                    ) from error
            self.tag(tags)
            inputs = [
                DatasetInput(
                    Dataset(
                        name=context,
                        digest=data.digest.removeprefix("blake3:")[:_MAX_DIGEST],
                        source_type="local",
                        source=json.dumps({"uri": str(data.path)}),
                        schema=_schema(data),
                        profile=json.dumps({"num_rows": data.rows, "num_positives": data.positives}),
                    ),
                    [InputTag("mlflow.data.context", context)],
                )
                for context, data in rows.items()
            ]
            self._client.log_inputs(self.run_id, datasets=inputs)

    def tag(self, tags: dict[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        with reachable():
            self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items() if value])

    def log_history(self, history: dict[str, list[float]], *, last: bool = False) -> None:
        """Logs the rounds that the run has not got yet, one metric a name, the round as its step.

        Args:
            history: value of each round by metric.
            last: whether failing to log is an error; before, the next call makes up for it.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        try:
            with reachable():
                for name, values in history.items():
                    start = self._logged.get(name)
                    if start is None:
                        start = self._steps_logged(name) if self._resumed else 0
                    for first in range(start, len(values), _METRICS_A_CALL):
                        chunk = values[first : first + _METRICS_A_CALL]
                        self._client.log_batch(
                            self.run_id, metrics=[Metric(name, value, now, first + step) for step, value in enumerate(chunk)]
                        )
                        start = first + len(chunk)
                    self._logged[name] = start
        except NotAvailable as error:
            if last:
                raise
            print(f"{error}; training goes on, and the metrics are logged later.")

    def finish(self, metrics: dict[str, float]) -> None:
        """Logs the result and, if the run is this training's own, says that it ended well."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with reachable():
            self._client.log_batch(self.run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
            if self._mine:
                self._client.set_terminated(self.run_id, "FINISHED")

    def end_badly(self, status: str) -> None:
        """Says that the run ``FAILED`` or was ``KILLED``, if it is this training's own."""
        if not self._mine:
            return
        try:
            with reachable():
                self._client.set_terminated(self.run_id, status)
        except NotAvailable as error:
            print(f"The run's status could not be set to {status}: {error}")

    def _existing(self, run_id: str) -> str:
        from mlflow.exceptions import MlflowException

        if not run_id:
            return ""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return ""
        return run_id if run.info.lifecycle_stage == "active" else ""

    def _steps_logged(self, name: str) -> int:
        history = self._client.get_metric_history(self.run_id, name)
        return max((metric.step for metric in history), default=-1) + 1


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _schema(data: LabelledRows) -> str:
    columns = [{"name": name, "type": str(kind)} for name, kind in data.schema.items()]
    text = json.dumps({"mlflow_colspec": columns})
    return text if len(text) <= _MAX_SCHEMA else json.dumps({"columns": len(columns)})
