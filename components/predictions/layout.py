"""Where the rows of a prediction log lie, and what their columns are; the writer and the reader share it.

``<log>/<model name>/date=YYYY-MM-DD/<version>-<UTC time of writing>-<random>.parquet``, the date that of the requests, UTC.

| column | type | holds |
|---|---|---|
| ``request_id`` | text | what the answer's header ``x-request-id`` said |
| ``row`` | 32-bit integer | position of the row in its request, from 0 |
| ``time`` | microseconds, UTC | when the request came |
| ``model_name``, ``version``, ``digest`` | text | who answered |
| ``key`` | text | what the traffic is split by, such as a customer; empty if the request gave none |
| ``mirrored`` | true or false | whether it was a copy (Host ends in ``-shadow``) of a request that another version answered |
| ``score`` | 64-bit float | the probability that was answered |
| ``decision`` | 8-bit integer | the decision that was answered, 0 or 1 |
| ``features`` | struct | what the model saw: 64-bit floats and text, null where missing |
"""

import re
from datetime import date, datetime

from modelyard.components.errors import InvalidInput

SUFFIX = ".parquet"
_DAY = re.compile(r"date=(\d{4}-\d{2}-\d{2})")
# What MLflow and other registries give as versions; it becomes a part of a file's name.
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")


def check_version(version: str) -> str:
    """Returns ``version`` if a log's file can be named for it.

    Raises:
        InvalidInput: it cannot.
    """
    if not _VERSION.fullmatch(version):
        raise InvalidInput("version", version, "use 1 to 63 letters, digits, '.', '_', '+' and '-', a letter or digit first")
    return version


def day_folder(day: date) -> str:
    """Name of the folder that holds a day's rows."""
    return f"date={day.isoformat()}"


def day_of(folder: str) -> date | None:
    """The day whose rows a folder of this name holds; None if it is no such folder."""
    found = _DAY.fullmatch(folder)
    try:
        return date.fromisoformat(found[1]) if found else None
    except ValueError:
        return None


def file_name(version: str, written: datetime, token: str) -> str:
    """Name of a file: the version that answered, the time of writing (UTC), and something that makes it unique."""
    return f"{version}-{written:%Y%m%dT%H%M%S}-{token}{SUFFIX}"


def is_file_of(name: str, version: str) -> bool:
    """Whether ``file_name`` gives such a name for ``version``."""
    return name.endswith(SUFFIX) and name.removesuffix(SUFFIX).rsplit("-", 2)[0] == version
