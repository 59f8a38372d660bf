"""Bodies of the HTTP API and of Serve handles; `Recommendation` itself is in streaming.schema."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from streaming.schema import Id, Message


class Context(Message):
    """What the user looks at or asks for right now: an item or a search query, not both."""

    item_id: Id | None = None
    query: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.item_id is None) == (self.query is None):
            raise ValueError("context: give either item_id or query")
        return self


class RecommendationRequest(Message):
    """Ask for a list."""

    user_id: Id
    k: Annotated[int, Field(ge=1, description="length of the list; generation.max_k at most")] = 20
    outcomes: Annotated[
        dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None,
        Field(max_length=64, description="budget: outcome -> share, e.g. {'save': .7, 'click': .3}"),
    ] = None
    surface: Annotated[str | None, Field(description="where the list will be shown")] = None
    context: Context | None = None
    exclude_seen: Annotated[bool, Field(description="leave out items of the history")] = True
    exclude: Annotated[tuple[Id, ...], Field(max_length=10_000, strict=False)] = ()
    categories: Annotated[
        tuple[str, ...], Field(max_length=64, strict=False, description="only items of one of these")
    ] = ()


class SimilarItem(Message):
    """One item and how much it is like the one asked for."""

    item_id: str
    score: Annotated[float, Field(description="cosine of the two items' vectors")]
    title: str | None = None


class SimilarItems(Message):
    """The items most like an item, best first."""

    item_id: str
    model_version: str
    items: list[SimilarItem]


class Accepted(Message):
    """Kafka has acknowledged these events."""

    event_ids: list[str]


class HistoryItem(Message):
    """One event of a user's history."""

    event_id: str
    item_id: str
    item_type: Literal["item", "query"]
    action: str
    surface: str
    timestamp: float


class UserHistory(Message):
    """What is known of a user, oldest event first."""

    user_id: str
    total: Annotated[int, Field(description="events ever applied, of which the newest are kept")]
    staleness_ms: float | None
    events: list[HistoryItem]


class ModelRefusal(Message):
    """A check that a version failed, or why it was taken back."""

    check: str
    figure: float | None = None
    bound: float | None = None
    message: str


class ModelVersion(Message):
    """One version in the registry."""

    version: str
    created_at: float
    trained_until: Annotated[float, Field(description="Kafka time of the newest event in it, epoch s")]
    items: int
    current: bool
    state: Annotated[
        Literal["candidate", "passed", "refused", "withdrawn"],
        Field(description="refused: the gate never let it serve; withdrawn: it served and was taken back"),
    ]
    refusals: Annotated[list[ModelRefusal], Field(description="why it was refused or withdrawn")]
    impressions: Annotated[int, Field(description="items of its lists that users were shown")]
    engaged: Annotated[int, Field(description="of these, how many a user engaged with")]
    metrics: dict[str, float]
    problem: Annotated[str | None, Field(description="why it cannot serve, if its manifest cannot be read")] = None


class Models(Message):
    """The registry."""

    current: str | None
    pinned: str | None
    versions: list[ModelVersion]


class Ready(Message):
    """A replica answers with a model."""

    status: Literal["ready"] = "ready"
    model_version: str
    behind: Annotated[str | None, Field(description="why it goes on with an older model than it should")] = None


class Activation(Message):
    """How to activate a version."""

    force: Annotated[bool, Field(description="although it was refused or withdrawn")] = False


class Rollback(Message):
    """Why the current version is taken back."""

    reason: Annotated[str, Field(max_length=500)] = ""


class Status(Message):
    """How the application is, replica by replica."""

    ready: bool
    degraded: Annotated[list[str], Field(description="what is wrong, one sentence each; empty when all is well")]
    model_version: str | None
    users: int | None
    gateways: Annotated[list[dict[str, Any]], Field(description="they answer queries")]
    recommenders: Annotated[list[dict[str, Any]], Field(description="they make the lists for new events")]
    ingestors: list[dict[str, Any]]
    trainer: dict[str, Any] | None
