"""A refusal of the API server."""

from typing import Any


class ApiError(Exception):
    """A refusal, as the API server words it."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.details, self.headers = (
            status,
            reason,
            message,
            details or {},
            headers or {},
        )
