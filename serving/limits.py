"""No request body may be larger than a bound, whether it says its length or not."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import Problem


class LimitBody:
    """ASGI middleware: 413 for a body above `most` bytes, before it is held in memory."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    def _too_large(self) -> Problem:
        # A new one each time: what is raised again and again holds on to all that was in hand each time.
        return Problem(413, f"at most {self._most} bytes are taken; send several smaller requests", "body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._most:
                await self._too_large().response()(scope, receive, send)
                return
        seen = 0
        refused = False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise self._too_large()
            return message

        async def answered(message: Message) -> None:
            # Whoever reads the body may make something else of the error: FastAPI answers 400.
            nonlocal refused
            if seen <= self._most:
                await send(message)
            elif not refused:
                refused = True
                await self._too_large().response()(scope, receive, send)

        await self._app(scope, counted, answered)
