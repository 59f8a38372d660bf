"""Errors as RFC 9457 problem details: what is wrong, in which field, and what to do about it."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from streaming.schema import BadEventError

_TITLES = {
    400: "Bad request",
    401: "Token missing or wrong",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    422: "Invalid request",
    500: "Internal error",
    503: "Not available now",
}


_LONGEST_FIELD: Final = 200
"""A caller may have made the name up, and it is sent back."""


class Problem(Exception):  # noqa: N818 - the RFC's own word
    """An error for the caller; the same over HTTP and through a Serve handle.

    Args:
        status: the HTTP status.
        detail: what is wrong, and the remedy.
        field: the field at fault, if one is.
        retry_after_s: when trying again makes sense.
    """

    def __init__(self, status: int, detail: str, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(status, detail, field, retry_after_s)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s
        self.field = field[:_LONGEST_FIELD] if field else field

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}" if self.field else self.detail

    def response(self) -> JSONResponse:
        """The problem as application/problem+json."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": _TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        if self.field:
            body["field"] = self.field
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(body, self.status, headers, media_type="application/problem+json")


def of_bad_event(error: BadEventError, at: str = "") -> Problem:
    """The problem that a refused event is."""
    if error.field == "value" and error.reason.startswith("Invalid JSON"):  # as pydantic puts it
        return Problem(400, f"the body is not JSON: {error.reason.removeprefix('Invalid JSON: ')}", "body")
    return Problem(422, error.reason, f"{at}{error.field}")


def of_invalid(fault: Mapping[str, Any]) -> Problem:
    """The problem that one of pydantic's errors about a request is."""
    if fault["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {fault.get('ctx', {}).get('error', '')}", "body")
    reason = fault["msg"].removeprefix("Value error, ")
    field = ".".join(map(str, fault["loc"]))
    if not field and ": " in reason:
        field, reason = reason.split(": ", 1)
    return Problem(422, reason, field or "body")


def install(api: FastAPI) -> None:
    """Make every error of the application a problem detail."""

    @api.exception_handler(Problem)
    async def _problem(_: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @api.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        return of_invalid({**fault, "loc": fault["loc"][1:]}).response()  # body, query, path or header comes first

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"nothing at {request.url.path[:200]}; the API is described at /docs"
        return Problem(error.status_code, detail).response()

    @api.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        return Problem(500, f"{type(error).__name__}; the log of the Gateway has the details").response()
