"""The path that is asked thousands of times a second goes past the framework's machinery."""

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import Problem, of_invalid


class Straight:
    """ASGI middleware: JSON that is posted to one path is answered by a function; all else is the app's.

    Routing, dependencies and a body that becomes Python objects before it is checked took a quarter of what a Gateway
    holds its interpreter for. A path that comes this way has a route of the app as well, which describes it and takes
    what is posted as another type. Both give the same answers, except to a body that is no JSON in UTF-8, whose fault
    is put in other words.

    Args:
        app: what answers everything else.
        path: of the requests to answer.
        body: what they must hold, as JSON.
        answer: makes JSON of one; a `Problem` that it raises is the answer.
    """

    def __init__(
        self, app: ASGIApp, path: str, body: type[BaseModel], answer: Callable[[Any], Awaitable[bytes]]
    ) -> None:
        self._app, self._path, self._body, self._answer = app, path, body, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if not self._ours(scope):
            await self._app(scope, receive, send)
            return
        try:
            content = await _content(receive)
            if content is None:
                return
            answer = await self._answer(self._checked(content))
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _ours(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        # Another type would let any page in a browser post here unasked; the app refuses it.
        here = scope["path"] == scope.get("root_path", "").rstrip("/") + self._path
        return here and (b"content-type", b"application/json") in scope["headers"]

    def _checked(self, content: bytes) -> BaseModel:
        try:
            return self._body.model_validate_json(content)
        except ValidationError as error:
            raise of_invalid(error.errors(include_url=False)[0]) from None


async def _content(receive: Receive) -> bytes | None:
    """All of a request's body; None where its caller has gone."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
