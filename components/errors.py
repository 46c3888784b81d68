"""Errors a user can act on: what was given, where, and what to do instead.

Every check in the collection raises one of these, so that a pipeline step, the command line and a notebook can show the
same message. Each subclasses the built-in that Python code would expect, so callers need not import this module.
"""

from collections.abc import Iterator
from typing import Any

_SHOWN_CHARACTERS = 200


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
        # A field may be named by a client, too.
        super().__init__(f"{_cut(iter([field]))} = {_cut(_representation(value))}: {remedy}")


class VerificationFailed(ModelyardError):
    """A model that is not what it is said to be: unsigned, altered, or another version. It must not be used."""


class NotAvailable(ModelyardError, RuntimeError):
    """Something outside this package (a GPU, a server, an optional library) that the request needs and that is absent."""


def _cut(pieces: Iterator[str]) -> str:
    """The pieces together, as far as they are shown; the rest is not even made."""
    text = ""
    for piece in pieces:
        text += piece
        if len(text) > _SHOWN_CHARACTERS:
            return text[:_SHOWN_CHARACTERS] + "…"
    return text


def _representation(value: Any) -> Iterator[str]:
    """``repr(value)`` in pieces: what a client sent may be large, and nested deeper than ``repr`` can follow.

    Each level gives a character at least, so that who stops after some has gone down no further.
    """
    kind = type(value)
    if kind is dict:
        yield "{"
        for position, (name, entry) in enumerate(value.items()):
            yield ", " if position else ""
            yield from _representation(name)
            yield ": "
            yield from _representation(entry)
        yield "}"
    elif kind is list or kind is tuple:
        yield "[" if kind is list else "("
        for position, entry in enumerate(value):
            yield ", " if position else ""
            yield from _representation(entry)
        yield "]" if kind is list else ",)" if len(value) == 1 else ")"
    elif kind is str or kind is bytes:
        yield repr(value[:_SHOWN_CHARACTERS])
    else:
        yield repr(value)
