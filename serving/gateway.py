"""The Gateway deployment: the HTTP API, and the same methods for Serve handles, answered by an engine of its own."""

import asyncio
import hmac
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Annotated, Any, Final, TypeVar

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle

from pinrec.versions import version_number
from serving import problems
from serving.api import (
    Accepted,
    Activation,
    Models,
    Ready,
    RecommendationRequest,
    Rollback,
    SimilarItems,
    Status,
    UserHistory,
)
from serving.config import AppSettings
from serving.limits import LimitBody
from serving.logs import log_with_serve
from serving.metrics import render
from serving.overview import answered, ask, troubles
from serving.problems import Problem
from serving.straight import Straight
from serving.tokens import read_token
from streaming.publisher import Delivery, EventPublisher, PublishError, with_event_id
from streaming.schema import BadEventError, EventCodec, Id, Recommendation, UserEvent, first_problem
from streaming.topics import KafkaUnreachableError

MAX_EVENTS: Final = 1_000
"""Events of one POST."""
MAX_BODY_BYTES: Final = 512 * 1024

_CONFIRM_S: Final = 10.0
_PATIENCE_S: Final = 10.0

api = FastAPI(
    title="PinRec",
    description="A streaming, real-time recommender. Errors are RFC 9457 problem details.",
    version="1",
)


async def _list(request: RecommendationRequest) -> bytes:
    gateway: Any = serve.get_replica_context().servable_object
    answer: bytes = await gateway.recommend_json(request)
    return answer


api.add_middleware(Straight, path="/v1/recommendations", body=RecommendationRequest, answer=_list)
api.add_middleware(LimitBody, most=MAX_BODY_BYTES)  # around the one before
problems.install(api)

Answer = TypeVar("Answer")

_ID = TypeAdapter[str](Id)
_EVENTS = TypeAdapter(list[UserEvent])


def _checked_id(text: str, field: str = "user_id") -> str:
    try:
        return _ID.validate_python(text)
    except ValidationError as error:
        raise Problem(422, first_problem(error).reason, field) from None


def _confirm(deliveries: "list[Future[Delivery]]") -> None:
    late = wait(deliveries, timeout=_CONFIRM_S).not_done
    if late:
        raise PublishError(f"Kafka did not confirm {len(late)} records within {_CONFIRM_S:g} s; they may still arrive")
    for delivery in deliveries:
        delivery.result()


async def _patiently(answering: Awaitable[Answer | Problem]) -> Answer:
    """An answer of the engine; the Problem that it is instead is raised."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await answering
    except TimeoutError:
        raise Problem(503, f"no answer within {_PATIENCE_S:g} s; /v1/status says more", retry_after_s=1) from None
    if isinstance(answer, Problem):
        # Some are one object for all: with each raise it would hold on to one more request.
        raise answer.with_traceback(None)
    return answer


# What the class uses of this module stands above it: Serve serialises the application where it is decorated.
@serve.deployment
@serve.ingress(api)
class Gateway:
    """Validates and answers. Lists are made here: a call to another process costs more than a list."""

    def __init__(
        self,
        settings: AppSettings,
        recommender: DeploymentHandle[Any],
        ingestor: DeploymentHandle[Any],
        trainer: DeploymentHandle[Any],
    ) -> None:
        # Here, not above: who only builds the application need not wait for torch.
        from serving.engine import Engine

        log_with_serve()
        context = serve.get_replica_context()
        self._settings = settings
        self._gateways: DeploymentHandle[Any] = serve.get_deployment_handle(context.deployment, context.app_name)
        self._recommender, self._ingestor, self._trainer = recommender, ingestor, trainer
        self._codec = EventCodec(settings.vocabulary, settings.ingest.max_future_s)
        self._engine = Engine(settings, context.rank.rank)
        self._publisher: EventPublisher | None = None
        self._connecting = Lock()
        self._publishing = ThreadPoolExecutor(4, "publish")

    @api.post(
        "/v1/recommendations", response_model=None, responses={200: {"model": Recommendation}}, tags=["recommend"]
    )
    async def recommend_http(self, request: RecommendationRequest) -> Response:
        """A list for a user, from the newest known state of their history."""
        return Response(await self.recommend_json(request), media_type="application/json")

    async def recommend_json(self, request: RecommendationRequest) -> bytes:
        """See `recommend`."""
        return (await _patiently(self._engine.recommend(request))).json

    async def recommend(self, request: RecommendationRequest) -> Recommendation:
        """A list; for `serve.get_app_handle("pinrec").recommend.remote(request)` as well.

        Raises:
            Problem: the request cannot be answered.
        """
        return (await _patiently(self._engine.recommend(request))).read()

    @api.post("/v1/events", status_code=202, tags=["events"])
    async def publish_http(self, request: Request) -> Accepted:
        """Publish one event (an object) or up to 1,000 (an array); answered when Kafka has them all.

        An event without `event_id` is given one, so that what is stored can be named.
        """
        body = await request.body()
        try:
            several = body.lstrip()[:1] == b"["
            events = _EVENTS.validate_json(body) if several else [UserEvent.model_validate_json(body)]
        except ValidationError as error:
            raise problems.of_bad_event(first_problem(error)) from None
        return await self.publish(events)

    async def publish(self, events: list[UserEvent]) -> Accepted:
        """Publish events; all are checked before the first is sent.

        Raises:
            Problem: one is refused (none is sent), or Kafka does not answer.
        """
        if not 1 <= len(events) <= MAX_EVENTS:
            raise Problem(422, f"send 1 to {MAX_EVENTS} events at a time", "events")
        for i, event in enumerate(events):
            try:
                self._codec.check(event)
            except BadEventError as error:
                raise problems.of_bad_event(error, f"{i}." if len(events) > 1 else "") from None
        return Accepted(event_ids=await self._with_kafka(self._publish, events))

    # An id may hold slashes; a path holds them as they are, even where the caller has quoted them.
    @api.get("/v1/users/{user_id:path}", tags=["users"])
    async def user(self, user_id: str) -> UserHistory:
        """What is known of a user.

        Raises:
            Problem: 404 when nothing is.
        """
        return await _patiently(self._engine.user(_checked_id(user_id)))

    @api.delete("/v1/users/{user_id:path}", status_code=202, tags=["users"])
    async def delete_user(self, user_id: str, authorization: Annotated[str, Header()] = "") -> dict[str, str]:
        """Forget a user: the deletion is an event too, so it comes after every event published before it."""
        self._authorise(authorization)
        await self._with_kafka(self._delete, _checked_id(user_id))
        return {"status": "accepted", "user_id": user_id}

    @api.get("/v1/items/{item_id:path}/similar", tags=["items"])
    async def similar(
        self,
        item_id: str,
        k: Annotated[int, Query(ge=1, description="length of the list; generation.max_k at most")] = 20,
        categories: Annotated[list[str], Query(max_length=64, description="only items of one of these")] = [],  # noqa: B006 - FastAPI copies it
    ) -> SimilarItems:
        """The items most like an item, whose update need not be a second old.

        Raises:
            Problem: 404 for an item that is not in the catalogue.
        """
        return await _patiently(self._engine.similar(_checked_id(item_id, "item_id"), k, categories))

    @api.get("/v1/models", tags=["models"])
    async def models(self) -> Models:
        """The versions in the registry, newest first."""
        return await _patiently(self._engine.models())

    @api.post("/v1/models/{version}/activate", status_code=202, tags=["models"])
    async def activate(
        self, version: str, how: Activation | None = None, authorization: Annotated[str, Header()] = ""
    ) -> Models:
        """Point the registry at a version; replicas load and check it, then flip.

        One that was refused or withdrawn is activated with `{"force": true}` only.
        """
        self._authorise(authorization)
        await _patiently(self._engine.activate(version, how is not None and how.force))
        return await self.models()

    @api.post("/v1/models/rollback", status_code=202, tags=["models"])
    async def rollback(self, why: Rollback | None = None, authorization: Annotated[str, Header()] = "") -> Models:
        """Go back to the newest older version that passed the gate; the one left never serves again by itself."""
        self._authorise(authorization)
        await _patiently(self._engine.rollback(why.reason if why else ""))
        return await self.models()

    @api.get("/v1/status", tags=["operate"])
    async def status(self) -> Status:
        """How every replica is, and what is wrong if something is."""
        replies = await asyncio.gather(
            ask(self._gateways, "replica_status"), ask(self._recommender), ask(self._ingestor), ask(self._trainer)
        )
        gateways, recommenders, ingestors, trainers = map(answered, replies)
        versions = sorted({g["model_version"] for g in gateways if g["model_version"]}, key=version_number)
        return Status(
            ready=bool(versions),
            degraded=troubles(self._settings, *replies),
            model_version=versions[-1] if versions else None,
            users=max((replica["users"] or 0 for replica in gateways + recommenders), default=None),
            gateways=gateways,
            recommenders=recommenders,
            ingestors=ingestors,
            trainer=trainers[0] if trainers else None,
        )

    async def replica_status(self) -> dict[str, Any]:
        """How this replica is."""
        return await self._engine.status()

    @api.get("/healthz", tags=["operate"])
    async def healthz(self) -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @api.get("/readyz", tags=["operate"])
    async def readyz(self) -> Ready:
        """A model is live; `behind` says why a replica goes on with an older one than it should.

        Raises:
            Problem: 503 when none is.
        """
        report = await self.replica_status()
        if report["model_version"] is None:
            raise Problem(503, "no model is live yet", retry_after_s=5)
        return Ready(model_version=report["model_version"], behind=report["behind"])

    @api.get("/metrics", tags=["operate"], response_class=PlainTextResponse)
    async def metrics(self) -> PlainTextResponse:
        """The figures of /v1/status in Prometheus's text format."""
        return PlainTextResponse(render(await self.status()), media_type="text/plain; version=0.0.4")

    def _authorise(self, authorization: str) -> None:
        token = authorization.removeprefix("Bearer ")
        wanted = read_token(self._settings)
        if wanted is None or not hmac.compare_digest(token.encode(), wanted.encode()):
            raise Problem(401, "send the admin token: 'Authorization: Bearer <token>'", "authorization")

    def check_health(self) -> None:
        """Serve restarts a replica whose scheduler has died.

        Raises:
            RuntimeError: it has.
        """
        self._engine.check_health()

    async def _with_kafka(self, work: Any, *args: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._publishing, work, *args)
        except BadEventError as error:
            raise problems.of_bad_event(error) from None
        except (KafkaUnreachableError, PublishError) as error:
            raise Problem(503, f"not published: {error}", retry_after_s=5) from None

    def _connected(self) -> EventPublisher:
        with self._connecting:
            if self._publisher is None:  # Kafka may be down when a gateway starts; queries do not need it
                self._publisher = EventPublisher(self._settings.kafka, self._codec)
            return self._publisher

    def _publish(self, events: list[UserEvent]) -> list[str]:
        publisher = self._connected()
        named = [with_event_id(event) for event in events]
        _confirm([publisher.publish(event) for event in named])
        return [event.event_id or "" for event in named]

    def _delete(self, user_id: str) -> None:
        _confirm([self._connected().delete_user(user_id)])
