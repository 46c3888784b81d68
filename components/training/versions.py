"""Versions of the libraries that a model depends on, for its specification and for the name of its checkpoint."""

from importlib import metadata


def library_versions(*modules: str) -> dict[str, str]:
    """Version of this package and of each imported module, by name."""
    import importlib

    versions = {module: str(importlib.import_module(module).__version__) for module in modules}
    return {"modelyard": metadata.version("modelyard"), **versions}
