"""``modelyard verify``: whether a directory is the signed model that it is said to be."""

import argparse
import os
from pathlib import Path

from modelyard.components.errors import InvalidInput
from modelyard.scripts import cli


def verify_command(arguments: argparse.Namespace) -> int:
    from modelyard.components.signing.trust import TrustedKey
    from modelyard.components.signing.verification import verify_model

    if arguments.home:
        os.environ["MODELYARD_HOME"] = arguments.home
    digest = _registered_digest(arguments) if arguments.version else arguments.digest
    trust = TrustedKey(Path(arguments.key).expanduser().resolve()) if arguments.key else None
    provenance = verify_model(arguments.directory, model_name=arguments.name, digest=digest, trust=trust)
    print(f"{arguments.directory}: verified")
    rows = {
        "model": provenance.model_name + ("" if arguments.name else "  (not compared: no --name given)"),
        "digest": provenance.model_digest + ("" if digest else "  (not compared: no --digest or --version given)"),
        "files": f"{len(provenance.files)}, all as signed, none added",
        "signer": f"{provenance.signer} ({provenance.method})",
        "signed": provenance.created,
        "run": provenance.run_id,
        "data": provenance.data_digest,
        "code": provenance.code_revision,
    }
    for name, value in rows.items():
        if value:
            print(f"  {name:<8}{value}")
    return cli.OK


def _registered_digest(arguments: argparse.Namespace) -> str:
    """The digest that the registry has for the version asked for."""
    from modelyard.components.registry.versions import get_version
    from modelyard.components.tracking.connection import client, reachable

    if not arguments.name:
        raise InvalidInput("--version", arguments.version, "give the model's --name as well")
    with reachable():
        registered: str = get_version(client(), arguments.name, arguments.version).tags["digest"]
    if arguments.digest and arguments.digest != registered:
        raise InvalidInput("--digest", arguments.digest, f"version {arguments.version} has {registered}; give one of the two")
    return registered
