"""``modelyard submit`` and ``modelyard schedule``: compiled pipelines on a Kubeflow Pipelines server.

A pipeline is uploaded under its name; each version is named after the package's release and its own content, so the same YAML
is never uploaded twice, and a run in the UI leads to exactly the file that ran.
"""

import argparse
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from modelyard.components.artifacts.digest import file_digest
from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable
from modelyard.scripts import cli, compiled
from modelyard.scripts.run_command import given_parameters

POLL_SECONDS = 5.0
# A server that has gone without a word never answers; the client asks four times before it says so.
_SILENCE_SECONDS = 15.0
# What creates something is sent once, and may take longer: who gives it up too early sends it again, and has two of it.
_CREATE_SECONDS = 60.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_CRON_FIELD = r"[0-9A-Za-z*?/,#-]+"


@dataclass(frozen=True)
class Uploaded:
    """A pipeline version on the server."""

    pipeline_id: str
    version_id: str


def submit_command(arguments: argparse.Namespace) -> int:
    package = compiled.read(compiled.find(arguments.pipeline))
    parameters = compiled.check_parameters(package, given_parameters(arguments))
    compiled.check_one_off_values(parameters)
    with _connect(arguments) as client:
        uploaded = _upload(client, package, arguments.namespace, cached=not arguments.no_cache)
        experiment = client.create_experiment(arguments.experiment, namespace=arguments.namespace or None)
        run = client.run_pipeline(
            experiment.experiment_id,
            arguments.run_name or f"{package.name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}",
            params=parameters,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
        )
        _say(f"run        {run.display_name}\n           {run.run_id}\n           {_ui(client)}/#/runs/details/{run.run_id}")
        if not arguments.wait:
            return cli.OK
        return wait_for_end(client, run.run_id, timeout=arguments.timeout)


def schedule_command(arguments: argparse.Namespace) -> int:
    check_cron(arguments.cron)
    package = compiled.read(compiled.find(arguments.pipeline))
    parameters = compiled.check_parameters(package, given_parameters(arguments))
    name = arguments.name or package.name
    with _connect(arguments) as client:
        uploaded = _upload(client, package, arguments.namespace, cached=not arguments.no_cache)
        experiment = client.create_experiment(arguments.experiment, namespace=arguments.namespace or None)
        former = _recurring_runs(client, name, arguments.namespace)
        created = client.create_recurring_run(
            experiment.experiment_id,
            name,
            cron_expression=arguments.cron,
            max_concurrency=1,
            # Otherwise the server would run every date since the schedule was paused or the server was down.
            no_catchup=True,
            params=parameters,
            pipeline_id=uploaded.pipeline_id,
            version_id=uploaded.version_id,
            enabled=not arguments.paused,
        )
        # The API cannot change a recurring run. The new one is there before the old ones go: whoever is interrupted in between
        # has a night's run twice, never none, and the next call removes what is left.
        for old in former:
            client.delete_recurring_run(old.recurring_run_id)
        verb = "updated" if former else "created"
        state = "paused" if arguments.paused else "on"
        _say(
            f"schedule   {name} {verb}, {state}: {arguments.cron} (UTC)\n           {created.recurring_run_id}\n"
            f"           {_ui(client)}/#/recurringrun/details/{created.recurring_run_id}"
        )
        return cli.OK


def check_cron(cron: str) -> None:
    """Checks the form of a cron expression as Kubeflow Pipelines reads it.

    Raises:
        InvalidInput: it does not have six fields, or a field holds something else than cron knows.
    """
    fields = cron.split()
    if len(fields) == 5:
        raise InvalidInput("--cron", cron, f'Kubeflow Pipelines takes six fields, seconds first; write "0 {cron}"')
    if len(fields) != 6 or not all(re.fullmatch(_CRON_FIELD, field) for field in fields):
        raise InvalidInput("--cron", cron, 'write six fields, seconds first, such as "0 0 2 * * *" for every day at 02:00 UTC')


def wait_for_end(client: Any, run_id: str, timeout: float, interval: float = POLL_SECONDS) -> int:
    """Waits for a run, telling each change of its state, and returns the command's exit code.

    kfp's own wait never returns when a run is cancelled, nor when an answer never comes. A server that is out of reach, in
    trouble or silent for a while is asked again.

    Args:
        client: a ``kfp.Client``.
        run_id: the run.
        timeout: seconds after which to give up; the run goes on.
        interval: seconds between two questions.

    Raises:
        NotAvailable: the server refuses to answer.
    """
    deadline = time.monotonic() + timeout
    told = ""
    while True:
        patience = min(_SILENCE_SECONDS, max(1.0, deadline - time.monotonic()))
        run = _ask(partial(client.runs.run_service_get_run, run_id, _request_timeout=(patience, patience)))
        state = (run.state if run else None) or told or "PENDING"
        if state != told:
            _say(f"{datetime.now():%H:%M:%S}   {state.lower()}")
            told = state
        if state in _ENDED:
            return _outcome(run, state)
        if time.monotonic() >= deadline:
            print(f"modelyard: run {run_id} is still {state.lower()} after {timeout:g} s; it goes on", file=sys.stderr)
            return cli.TIMED_OUT
        time.sleep(min(interval, max(0.0, deadline - time.monotonic())))


def without_caching(text: str) -> str:
    """A compiled pipeline whose every task runs anew, those in branches and nested pipelines too (kfp's switch misses them)."""
    documents = list(yaml.safe_load_all(text))
    for component in [documents[0]["root"], *documents[0].get("components", {}).values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}
    return yaml.safe_dump_all(documents)


def _outcome(run: Any, state: str) -> int:
    if state == "SUCCEEDED":
        return cli.OK
    tasks = (run.run_details.task_details if run.run_details else None) or []
    failed = sorted({task.display_name for task in tasks if task.state == "FAILED" and task.display_name})
    details = [f"steps: {', '.join(failed)}"] if failed else []
    details += [run.error.message] if run.error and run.error.message else []
    print(f"modelyard: the run ended {state.lower()}" + "".join(f"; {detail}" for detail in details), file=sys.stderr)
    return cli.CANCELLED if state == "CANCELED" else cli.FAILED


def _ask(question: Callable[[], Any]) -> Any:
    """The answer, or None where the server is out of reach or in trouble for the moment."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return question()
    except ApiException as error:
        if error.status and error.status < 500 and error.status != 429:
            raise
    except HTTPError:
        pass
    return None


@contextlib.contextmanager
def _connect(arguments: argparse.Namespace) -> Iterator[Any]:
    """A client of the server; what goes wrong with it becomes a message."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    host = arguments.host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    shown = host or "the Kubeflow Pipelines server of the kubeconfig"
    try:
        # kfp prints links and warnings of its own.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield _client(host, arguments.namespace)
    except ApiException as error:
        if error.status in (401, 403):
            raise NotAvailable(
                f"{shown} refuses access ({error.status} {error.reason}): put a token into KF_PIPELINES_TOKEN, or the path of "
                f"a file with one into KF_PIPELINES_TOKEN_FILE"
            ) from error
        raise ClusterError(f"{shown} answers {error.status} {error.reason}: {_message(error)}") from error
    except ReadTimeoutError as error:
        # Only what is sent once ends so: it may have been done.
        raise NotAvailable(
            f"{shown} did not answer in time: check --host, and look in the UI whether it did what it was asked"
        ) from error
    except HTTPError as error:
        raise NotAvailable(f"{shown} cannot be reached ({_cause(error)}): check --host, or forward its port") from error


class ClusterError(ModelyardError):
    """The server could not do what it was asked to."""


def _client(host: str, namespace: str) -> Any:
    import kfp
    from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

    class Client(kfp.Client):
        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            """Asks once: kfp's own asks five times, half a minute in all, even when the answer is 401."""
            return self._healthz_api.healthz_service_get_healthz(_request_timeout=(_SILENCE_SECONDS, _SILENCE_SECONDS))

    token_file = os.environ.get("KF_PIPELINES_TOKEN_FILE")
    if token_file and not Path(token_file).is_file():
        raise InvalidInput("KF_PIPELINES_TOKEN_FILE", token_file, "there is no such file")
    client = Client(
        host=host or None,
        namespace=namespace or "kubeflow",
        existing_token=os.environ.get("KF_PIPELINES_TOKEN") or None,
        # Read again for each request: such tokens are renewed every hour.
        credentials=ServiceAccountTokenVolumeCredentials(token_file) if token_file else None,
    )
    _set_timeout(client._healthz_api.api_client.rest_client)
    return client


def _set_timeout(http: Any) -> None:
    """Lets no request of a client wait for ever: kfp's own methods take no timeout, and set none."""
    request = http.request

    def in_time(method: str, *arguments: Any, **options: Any) -> Any:
        answer = _CREATE_SECONDS if method == "POST" else _SILENCE_SECONDS
        timeout = options.get("_request_timeout") or (_SILENCE_SECONDS, answer)
        return request(method, *arguments, **{**options, "_request_timeout": timeout})

    http.request = in_time


def _upload(client: Any, package: compiled.Package, namespace: str, cached: bool) -> Uploaded:
    """The version of the pipeline with this content, uploaded where the server lacks it."""
    import kfp_server_api

    with tempfile.TemporaryDirectory(prefix="modelyard-upload-") as folder:
        path = Path(folder, f"{package.name}.yaml")
        path.write_text(package.text if cached else without_caching(package.text), encoding="utf-8")
        version_name = f"{metadata.version('modelyard')}-{file_digest(path).removeprefix('blake3:')[:12]}"
        pipeline = _first(client.list_pipelines(filter=_named(package.name), namespace=namespace or None).pipelines)
        if pipeline is None:
            pipeline = client.pipelines.pipeline_service_create_pipeline(
                pipeline=kfp_server_api.V2beta1Pipeline(
                    display_name=package.name, description=package.description, namespace=namespace or None
                )
            )
        versions = client.list_pipeline_versions(pipeline.pipeline_id, filter=_named(version_name)).pipeline_versions
        version = _first(versions)
        if version is None:
            version = client.upload_pipeline_version(str(path), version_name, pipeline_id=pipeline.pipeline_id)
            _say(f"uploaded   {package.name} {version_name}")
    return Uploaded(pipeline.pipeline_id, version.pipeline_version_id)


def _recurring_runs(client: Any, name: str, namespace: str) -> list[Any]:
    found: list[Any] = []
    token = ""
    while True:
        page = client.list_recurring_runs(page_token=token, page_size=100, namespace=namespace or None, filter=_named(name))
        found += [run for run in page.recurring_runs or [] if run.display_name == name]
        token = page.next_page_token or ""
        if not token:
            return found


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _first(found: list[Any] | None) -> Any:
    return found[0] if found else None


def _ui(client: Any) -> str:
    return client._get_url_prefix().rstrip("/")


def _say(text: str) -> None:
    # sys.stdout is kept from kfp meanwhile.
    print(text, file=sys.__stdout__, flush=True)


def _message(error: Any) -> str:
    try:
        content: Mapping[str, Any] = json.loads(error.body or "{}")
        return str(content.get("message") or content.get("error") or error.body)
    except ValueError:
        return str(error.body)[:300]


def _cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason).rpartition(": ")[2] or type(reason).__name__
