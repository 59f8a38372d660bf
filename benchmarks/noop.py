"""P4's baseline: a Serve application that does nothing, behind the same ingress."""

from fastapi import FastAPI, Response
from ray import serve

api = FastAPI()


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Noop:
    """Answers every request with the same bytes.

    Args:
        body: JSON, as long as a real answer.
    """

    def __init__(self, body: str) -> None:
        self._body = body

    @api.post("/v1/recommendations", response_model=None)
    async def answer(self) -> Response:
        """The constant answer."""
        return Response(self._body, media_type="application/json")
