"""The ``modelyard`` command.

Each subcommand lives in a module of its own, which is imported when it is called, so that ``--help`` answers at once.
"""

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from modelyard.components.errors import InvalidInput, ModelyardError, NotAvailable

OK, FAILED, BAD_INPUT, REFUSED, NOT_AVAILABLE, CANCELLED, TIMED_OUT = 0, 1, 2, 3, 4, 5, 6

_EXIT_CODES = """\
exit codes:
  0  it did what it was asked to
  1  a run failed, or a check found something wrong
  2  the command line or an input cannot be used as given
  3  the local run ended well, but the gates or the rollout refused the model (fail or inconclusive)
  4  something it needs is not there: a server, a library, a place to write
  5  the cluster's run was cancelled
  6  the wait for the cluster's run ran out of time
  130, 143  interrupted (Ctrl-C, SIGTERM)
  141       what reads its output went away
"""
_EXAMPLES = """\
examples:
  modelyard run quickstart                         the whole way on simulated data
  modelyard describe release                       a pipeline's parameters
  modelyard run release -p model_name=fraud -p feature_repo_uri=./repo --params more.yaml
  modelyard submit release --params release.yaml --host http://localhost:8080 --wait
  modelyard schedule release --cron "0 0 2 * * *" --params release.yaml
  modelyard verify .modelyard/models/… --name fraud
  modelyard serve fraud                            the champion, behind a proxy on this machine
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading package metadata takes time."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        print(f"modelyard {metadata.version('modelyard')}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The command's whole grammar."""
    parser = argparse.ArgumentParser(
        prog="modelyard",
        formatter_class=_Help,
        description="Takes a tabular model from features to live traffic, on this machine or on a Kubeflow Pipelines cluster.",
        epilog=f"{_EXAMPLES}\n{_EXIT_CODES}",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, too")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    run = _command(
        commands,
        "run",
        "run a pipeline on this machine",
        "Runs a compiled pipeline on this machine, one line for each step. Parameters: modelyard describe NAME.\n"
        "Full logs, run.json and the artifacts are in HOME/runs/. Retries, caching and limits are for clusters:\n"
        "here a failing step ends the run at once.",
        "examples:\n  modelyard run quickstart --home /tmp/yard\n"
        "  modelyard run release --params release.yaml -p test_days=7 "
        '-p \'gates={"absolute": [{"metric": "pr_auc", "min": 0.3}]}\'\n'
        "  modelyard run ./my_pipeline.yaml --params values.json",
    )
    _add_pipeline(run)
    run.add_argument("--home", metavar="DIR", help="folder of all local state (default: $MODELYARD_HOME, else ./.modelyard)")

    describe = _command(
        commands, "describe", "list a pipeline's parameters", "Lists a pipeline's parameters; without a name, the pipelines."
    )
    describe.add_argument(
        "pipeline", metavar="NAME|FILE", nargs="?", help="a pipeline of this installation, or a compiled YAML"
    )

    compile_ = _command(
        commands,
        "compile",
        "compile every pipeline and component to YAML",
        "Compiles every pipeline to compiled/NAME.yaml and every component to compiled/components/NAME.yaml.\n"
        "The same sources give the same bytes on every Python and platform.",
        "examples:\n  modelyard compile\n  modelyard compile --check\n"
        "  modelyard compile --registry registry.example.com/ml --tag 2026-07 --output build/compiled",
    )
    compile_.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is missing, stale or left over")
    compile_.add_argument(
        "--registry", help="registry and path of the images (default: $MODELYARD_REGISTRY, else the project's)"
    )
    compile_.add_argument("--tag", help="tag of the images (default: $MODELYARD_TAG, else the package's version)")
    compile_.add_argument("--output", metavar="DIR", help="where to write (default: the checkout's compiled/)")

    cluster_notes = (
        "The host comes from --host, else $KF_PIPELINES_ENDPOINT, else the kubeconfig or the pod's service account. A bearer\n"
        "token comes from $KF_PIPELINES_TOKEN or the file that $KF_PIPELINES_TOKEN_FILE names, never from the command line."
    )
    submit = _command(
        commands,
        "submit",
        "start a pipeline on a cluster",
        f"Starts one run of a compiled pipeline on a Kubeflow Pipelines server.\n{cluster_notes}",
        "examples:\n  modelyard submit release --host http://localhost:8080 --params release.yaml --wait",
    )
    _add_pipeline(submit)
    _add_cluster(submit)
    submit.add_argument("--run-name", metavar="TEXT", help="name of the run (default: the pipeline's name and the time)")
    submit.add_argument("--wait", action="store_true", help="wait for the end; the exit code tells how it went")
    submit.add_argument("--timeout", type=float, default=86400.0, metavar="SECONDS", help="longest wait (default: a day)")

    schedule = _command(
        commands,
        "schedule",
        "run a pipeline on a cluster again and again",
        f"Creates the recurring run of this name, or updates the one that is there.\n{cluster_notes}",
        'cron has six fields, seconds first: "0 0 2 * * *" is every day at 02:00 UTC.\n\n'
        "dates in text parameters, filled in for each run (UTC):\n"
        "  [[ScheduledTime]]                                     20260731020000\n"
        "  [[ScheduledTime.2006-01-02]]                          2026-07-31 (Go's reference date as the format)\n"
        "  [[CurrentTime]]                                       when the run really started\n"
        "  {{$.scheduledTime.strftime('%Y-%m-%d')}}              2026-07-31\n\n"
        'example:\n  modelyard schedule release --cron "0 0 2 * * *" --params release.yaml '
        "-p 'data_end=[[ScheduledTime.2006-01-02]]'",
    )
    _add_pipeline(schedule)
    _add_cluster(schedule)
    schedule.add_argument("--cron", required=True, metavar="FIELDS", help="when to run: six fields, seconds first, UTC")
    schedule.add_argument("--name", metavar="TEXT", help="name of the recurring run (default: the pipeline's name)")
    schedule.add_argument("--paused", action="store_true", help="create or leave it switched off")

    verify = _command(
        commands,
        "verify",
        "check a signed model",
        "Checks that a model directory is signed, unaltered, and the version it is said to be.",
        "examples:\n  modelyard verify ./model --name fraud\n  modelyard verify ./model --digest blake3:1c4f… --key ops.pub",
    )
    verify.add_argument("directory", metavar="DIR", help="the signed model directory")
    verify.add_argument("--name", default="", help="the model's name")
    verify.add_argument("--digest", default="", help="the payload's digest, blake3:…")
    verify.add_argument("--version", default="", help="the registered version that it must be (needs --name)")
    verify.add_argument(
        "--key", metavar="FILE", help="the signer's public key (default: $MODELYARD_VERIFICATION_KEY, else the home's)"
    )
    verify.add_argument("--home", metavar="DIR", help="folder of all local state (default: $MODELYARD_HOME, else ./.modelyard)")

    _add_serving(commands)

    docs = _command(
        commands,
        "docs",
        "write the components' and pipelines' pages",
        "Writes a Markdown page beside each component and pipeline, from its interface and docstring.",
    )
    docs.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a page is missing or stale, or a parameter undocumented"
    )

    # Both parse their own arguments; see main.
    commands.add_parser("demo", help="three releases of a fraud model under live traffic, the last rolled back", add_help=False)
    commands.add_parser("benchmark", help="measure against the alternatives, side by side", add_help=False)
    return parser


_MODULES = {
    "run": "run_command",
    "describe": "describe",
    "compile": "compile_all",
    "submit": "cluster",
    "schedule": "cluster",
    "verify": "verify",
    "serve": "serving",
    "status": "serving",
    "stop": "serving",
    "promote": "serving",
    "rollback": "serving",
    "split": "serving",
    "docs": "documentation",
}
_OWN_ARGUMENTS = ("demo", "benchmark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code (``modelyard --help`` lists them)."""
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be written must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _run(words: list[str]) -> int:
    debug = False
    try:
        if words and words[0] in _OWN_ARGUMENTS:
            return importlib.import_module(f"modelyard.scripts.{words[0]}").main(words[1:])
        given = build_parser().parse_args(words)
        debug = given.debug
        module = importlib.import_module(f"modelyard.scripts.{_MODULES[given.command]}")
        return getattr(module, f"{given.command}_command")(given)
    except ModelyardError as error:
        if debug:
            traceback.print_exc()
        print(f"modelyard: {error}", file=sys.stderr)
        if isinstance(error, InvalidInput):
            return BAD_INPUT
        return NOT_AVAILABLE if isinstance(error, NotAvailable) else FAILED
    except KeyboardInterrupt:
        print("modelyard: interrupted", file=sys.stderr)
        return 130


def _command(commands: Any, name: str, summary: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=description, epilog=epilog, formatter_class=_Help)


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", metavar="NAME|FILE", help="a pipeline of this installation, or a compiled YAML")
    parser.add_argument(
        "-p",
        dest="assignments",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a parameter; lists and objects as JSON",
    )
    parser.add_argument("--params", metavar="FILE", help="parameters from a JSON or YAML file; -p wins")


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="URL", help="the Kubeflow Pipelines server")
    parser.add_argument("--namespace", default="", help="the profile's namespace, where the server has several users")
    parser.add_argument("--experiment", default="Default", help="the experiment to put runs into (default: Default)")
    parser.add_argument("--no-cache", action="store_true", help="run every step, whatever the server has cached")


def _add_serving(commands: Any) -> None:
    serve = _command(
        commands,
        "serve",
        "serve a model on this machine",
        "Serves a model's champion behind a proxy on 127.0.0.1, in processes that stay until modelyard stop.\n"
        "Without a name, brings back everything that was served before a stop or a reboot.",
        "examples:\n  modelyard serve fraud\n  modelyard serve fraud --version 3 --port 9000\n  modelyard serve",
    )
    serve.add_argument("name", metavar="NAME", nargs="?", default="", help="the registered model")
    serve.add_argument("--version", default="", help="the registered version (default: the champion)")
    serve.add_argument(
        "--port", type=int, default=0, help="the proxy's port (default: as it was, else $MODELYARD_SERVING_PORT, else 8080)"
    )
    status = _command(
        commands,
        "status",
        "show what is served, and how it is",
        "Shows each model's versions with their share of the traffic, what they did, and the last rollout.\n"
        "Exits with 1 if something that is to be served does not answer.",
        "examples:\n  modelyard status\n  modelyard status fraud --target kserve --namespace models",
    )
    status.add_argument("name", metavar="NAME", nargs="?", default="", help="one model (default: all on this machine)")
    status.add_argument("--json", action="store_true", help="everything there is to know, for scripts")
    stop = _command(
        commands,
        "stop",
        "end all serving on this machine",
        "Ends proxy and predictors once what they are at is answered. modelyard serve brings them back.",
    )
    promote = _command(
        commands,
        "promote",
        "put the version on trial, or another one, in charge by hand",
        "Ends the rollout that is under way, and gives the version on trial all the traffic without waiting for a decision.\n"
        "With --version, another registered version, ready before it gets the traffic. The registry must agree: the version\n"
        "becomes champion only in place of the one that it was judged against.",
        "examples:\n  modelyard promote fraud\n"
        "  modelyard promote fraud --version 4 --target kserve --namespace models --reason 'a fix that cannot wait'",
    )
    promote.add_argument("name", metavar="NAME", help="the served model")
    promote.add_argument("--version", default="", help="the registered version (default: the one on trial)")
    promote.add_argument("--reason", default="", metavar="TEXT", help="why, for the registry")
    rollback = _command(
        commands,
        "rollback",
        "end a trial, or put the version served before back in charge",
        "Ends the trial that is under way. If there is none, puts the version served before back in charge, verified.\n"
        "In one step, and also without MLflow, which is told later.",
        "examples:\n  modelyard rollback fraud --reason 'too many complaints'\n"
        "  modelyard rollback fraud --target kserve --namespace models",
    )
    rollback.add_argument("name", metavar="NAME", help="the served model")
    rollback.add_argument("--reason", default="", metavar="TEXT", help="why, for the registry")
    split = _command(
        commands,
        "split",
        "give a second version a share of the traffic",
        "Serves a second version beside the one in charge, with a share of the traffic or of a copy of it.",
        "examples:\n  modelyard split fraud --version 4 --share 50\n"
        "  modelyard split fraud --version 4 --share 100 --mirror\n  modelyard split fraud --end",
    )
    split.add_argument("name", metavar="NAME", help="the served model")
    split.add_argument("--version", default="", help="the registered version")
    split.add_argument("--share", type=int, metavar="PERCENT", help="percent of the traffic, 0 to 100")
    split.add_argument("--mirror", action="store_true", help="give it a copy of the traffic and throw its answers away")
    split.add_argument("--end", action="store_true", help="end the split: all traffic to the version in charge")
    for command in (status, split, promote, rollback):
        command.add_argument(
            "--target", choices=("local", "kserve"), default="local", help="where it is served (default: local, this machine)"
        )
        command.add_argument(
            "--namespace", default="", help="of the InferenceService, for kserve (default: that of the kubeconfig's context)"
        )
    for command in (serve, status, stop, split, promote, rollback):
        command.add_argument(
            "--home", metavar="DIR", help="folder of all local state (default: $MODELYARD_HOME, else ./.modelyard)"
        )


if __name__ == "__main__":
    sys.exit(main())
