"""The wire: one definition of each message gives validation, JSON Schema and documentation.

Kafka and HTTP decode events through the same `EventCodec`, so what one refuses the other refuses.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from pinrec.config import Name, Vocabulary

MAX_MESSAGE_BYTES: Final = 64 * 1024
MAX_FUTURE_S: Final = 300.0
MAX_ID_BYTES: Final = 256
MAX_CATEGORIES: Final = 64
MAX_NUMBERS: Final = 16


_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f]*$"
_TOO_LONG: Final = f"must be at most {MAX_ID_BYTES} bytes of UTF-8; send a shorter id, such as a hash of it"
_WHEN: Final = "send epoch seconds as a number, or an RFC 3339 time such as 2026-01-31T12:00:00Z"


def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(_WHEN) from None
    if moment.tzinfo is None:
        raise ValueError("the time has no offset; end it with Z or +hh:mm")
    if moment.timestamp() < 0:
        raise ValueError("must be 1970 or later")
    return moment.timestamp()


# What each event goes through holds no Python function where it can: a call costs as much as the parsing of a field.
Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_BYTES, pattern=_NO_CONTROL)]
"""1 to 256 characters, none of them a control character."""

if TYPE_CHECKING:
    Timestamp = float
else:
    Timestamp = Annotated[
        Annotated[float, Field(allow_inf_nan=False), Field(ge=0)] | Annotated[str, AfterValidator(_seconds)],
        Field(union_mode="left_to_right"),
    ]
"""Epoch seconds; RFC 3339 text is accepted, and becomes that."""


class Message(BaseModel):
    """Messages refuse unknown fields: a misspelt one would be lost in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class UserEvent(Message):
    """Something a user did. Topic `pinrec.events`, key = user_id."""

    event_id: Annotated[Id | None, Field(description="dedupe key; topic, partition and offset where absent")] = None
    user_id: Id
    item_id: Annotated[Id | None, Field(description="may be left out for a query")] = None
    action: Annotated[str, Field(description="one of the declared actions")]
    surface: Annotated[str, Field(description="one of the declared surfaces")]
    timestamp: Timestamp
    item_type: Literal["item", "query"] = "item"
    query: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    feed_id: Annotated[Id | None, Field(description="one feed view; order inside it is arbitrary")] = None
    request_id: Annotated[Id | None, Field(description="the recommendation this event answers")] = None
    position: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _has_subject(self) -> "UserEvent":
        if self.item_type == "query":
            if self.query is None or not self.subject:
                raise ValueError("query: a query event must carry the text of the query")
        elif self.item_id is None:
            raise ValueError("item_id: an item event must name the item")
        user_id = self.user_id
        if len(user_id) > MAX_ID_BYTES // 4 and len(user_id.encode()) > MAX_ID_BYTES:
            raise ValueError(f"user_id: {_TOO_LONG}")  # it is a key of Kafka and of the store, which count bytes
        return self

    @property
    def subject(self) -> str:
        """What a history holds: the item id, or a query's text with single spaces."""
        return " ".join((self.query or "").split()) if self.item_type == "query" else self.item_id or ""


class ItemUpdate(Message):
    """An item as it is now. Topic `pinrec.items`, key = item_id, compacted; a null value deletes it."""

    item_id: Id
    title: Annotated[str, Field(max_length=512)] = ""
    categories: Annotated[
        tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=MAX_CATEGORIES, strict=False)
    ] = ()
    author: Annotated[Id | None, Field(description="who made it")] = None
    numeric: Annotated[
        dict[Name, Annotated[float, Field(allow_inf_nan=False)]],
        Field(max_length=MAX_NUMBERS, description="numbers by name, such as a year, a duration or a price"),
    ] = {}
    embedding: (
        Annotated[
            # Far beyond any embedding; without a bound one item's overflow would make its vector NaN.
            tuple[Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)], ...],
            Field(min_length=1, max_length=2048, strict=False, description="content embedding, if any"),
        ]
        | None
    ) = None
    created_at: Timestamp = 0.0


class SequenceInfo(Message):
    """What the answer knew of the user."""

    length: Annotated[int, Field(ge=0, description="events in the history")]
    last_event_at: Annotated[float | None, Field(description="timestamp of the newest event, epoch s")] = None
    last_event_id: str | None = None
    staleness_ms: Annotated[
        float | None,
        Field(ge=0, description="every event Kafka held this long before the answer is in it"),
    ] = None


class RecommendedItem(Message):
    """One item of a list, and the embedding that found it."""

    item_id: str
    score: float
    outcome: Annotated[str | None, Field(description="the outcome aimed at; null where none was")] = None
    offset_s: Annotated[float | None, Field(description="the time offset aimed at, in s")] = None
    step: Annotated[int | None, Field(ge=0, description="the decode step, from 0")] = None
    title: str | None = None
    explored: Annotated[bool, Field(description="here to be tried out, not because the model chose it")] = False


class Recommendation(Message):
    """A list for a user: the HTTP answer, and what `pinrec.recommendations` carries (key = user_id)."""

    request_id: Annotated[str, Field(description="<model_version>.<32 hex digits>; send it back with events")]
    user_id: str
    model_version: str
    created_at: Annotated[float, Field(description="epoch s")]
    trigger: Annotated[Literal["query", "event"], Field(description="asked for, or made for a new event")]
    source: Annotated[Literal["model", "popular"], Field(description="popular: nothing is known of this user yet")] = (
        "model"
    )
    degraded: Annotated[bool, Field(description="true while a part is down and the answer may lack events")]
    sequence: SequenceInfo
    items: list[RecommendedItem]


class ModelAnnouncement(Message):
    """A new version is in the registry. Topic `pinrec.models`."""

    version: str
    created_at: float
    trained_until: Annotated[float, Field(description="Kafka time of the newest event it was trained on, epoch s")]
    metrics: dict[str, float]


class DeadLetter(Message):
    """An event that was refused. Topic `pinrec.dead-letters`; the bytes come along, base64, cut at 64 KiB."""

    topic: str
    partition: int
    offset: int
    field: str
    reason: str
    key: str | None
    value: str | None
    refused_at: float


@dataclass(frozen=True, slots=True)
class Deletion:
    """A null value under a user's key: forget the user."""

    user_id: str


class BadEventError(ValueError):
    """An event that cannot be taken; `field` is at fault and `reason` says the remedy."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


_validate_event = UserEvent.__pydantic_validator__.validate_json


class EventCodec:
    """Bytes of the event topic <-> checked events.

    Args:
        vocabulary: the declared actions and surfaces.
        max_future_s: how far ahead of this machine's clock a timestamp may be.
        clock: epoch seconds; replaced in tests.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        max_future_s: float = MAX_FUTURE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.vocabulary = vocabulary
        self._actions, self._surfaces = vocabulary.action_index, vocabulary.surface_index
        self._max_future_s = max_future_s
        self._clock = clock

    def decode(self, key: bytes | None, value: bytes | None) -> UserEvent | Deletion:
        """One Kafka record.

        Raises:
            BadEventError: with the field at fault.
        """
        if value is None:
            return Deletion(self._user_of(key))
        if len(value) > MAX_MESSAGE_BYTES:
            raise BadEventError("value", f"{len(value)} bytes; at most {MAX_MESSAGE_BYTES} are taken")
        try:
            event = _validate_event(value)
        except ValidationError as error:
            raise first_problem(error) from None
        if key is not None and key != event.user_id.encode():
            raise BadEventError("key", "must be the event's user_id, so that a user's events stay in one partition")
        return self.check(event)

    def check(self, event: UserEvent) -> UserEvent:
        """The same event, if its action, surface and time can be taken.

        Raises:
            BadEventError: with the field at fault.
        """
        if event.action not in self._actions:
            known = ", ".join(self._actions)
            raise BadEventError("action", f"{event.action[:64]!r} is not declared; declared are {known}")
        if event.surface not in self._surfaces:
            known = ", ".join(self._surfaces)
            raise BadEventError("surface", f"{event.surface[:64]!r} is not declared; declared are {known}")
        if event.timestamp > self._clock() + self._max_future_s:
            hint = "; it looks like milliseconds, send seconds" if event.timestamp > 1e11 else ""
            raise BadEventError("timestamp", f"{event.timestamp:.0f} lies in the future{hint}")
        return event

    def _user_of(self, key: bytes | None) -> str:
        try:
            user_id = (key or b"").decode()
        except UnicodeDecodeError:
            raise BadEventError("key", "must be UTF-8") from None
        if not user_id or len(key or b"") > 256:
            raise BadEventError("key", "a deletion (null value) needs the user_id as its key")
        return user_id

    @staticmethod
    def encode(event: UserEvent) -> tuple[bytes, bytes]:
        """(key, value) of a record."""
        return event.user_id.encode(), event.model_dump_json(exclude_none=True).encode()


_TIMES: Final = frozenset({"timestamp", "created_at"})
_REMEDIES: Final = {
    "string_pattern_mismatch": "must not hold control characters such as newlines",
    "finite_number": "must be a finite number",
}


def first_problem(error: ValidationError) -> BadEventError:
    """The first fault pydantic found, as field and reason."""
    faults = error.errors(include_url=False, include_input=False)
    fault = faults[0]
    # Of a number or a text, the text's complaint is the one to tell, if a text was sent.
    if fault["type"] == "float_type" and len(faults) > 1 and faults[1]["type"] == "value_error":
        fault = faults[1]
    location = [str(part) for part in fault["loc"]]
    reason = _REMEDIES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    if len(location) > 1 and location[-2] in _TIMES:
        location.pop()  # which of the two it was taken for
        reason = _WHEN if fault["type"] == "float_type" else reason
    field = ".".join(location)
    if fault["type"] == "string_too_long" and field.endswith("_id"):
        reason = _TOO_LONG
    if not field and fault["type"] == "value_error" and ": " in reason:
        field, reason = reason.split(": ", 1)
    return BadEventError(field or "value", reason)
