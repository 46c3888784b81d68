"""Names of registered models, which become folder names, object keys and names in the registry."""

import re

from modelyard.components.errors import InvalidInput

PROMOTIONS_SUFFIX = ".promotions"
# What a Kubernetes label takes, so that whatever serves a model can carry its name.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def check_model_name(name: str) -> str:
    """Returns ``name`` if a model can be called so.

    Raises:
        InvalidInput: it is empty, too long, would not do as a folder's name, or is kept for the registry's own records.
    """
    if not _NAME.fullmatch(name) or name.endswith(PROMOTIONS_SUFFIX):
        raise InvalidInput(
            "model_name",
            name,
            "use 1 to 63 letters, digits, '-', '_' and '.', starting and ending with a letter or a digit, "
            f"and not ending with {PROMOTIONS_SUFFIX!r}",
        )
    return name
