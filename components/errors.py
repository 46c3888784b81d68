"""Errors a user can act on: what was given, where, and what to do instead.

Every check in the collection raises one of these, so that a pipeline step, the command line and a notebook can show the
same message. Each subclasses the built-in that Python code would expect, so callers need not import this module.
"""

from typing import Any


class ModelyardError(Exception):
    """Base of every error that this package raises on purpose; its message is meant for the user."""


class InvalidInput(ModelyardError, ValueError):
    """A parameter, column or file that cannot be used as given.

    Args:
        field: name of the parameter, column or file, as the user wrote it.
        value: what was found there. Never pass a secret.
        remedy: what to do instead, as an imperative sentence.
    """

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:200] + "…"
        super().__init__(f"{field} = {shown}: {remedy}")


class VerificationFailed(ModelyardError):
    """A model that is not what it is said to be: unsigned, altered, or another version. It must not be used."""


class NotAvailable(ModelyardError, RuntimeError):
    """Something outside this package (a GPU, a server, an optional library) that the request needs and that is absent."""
