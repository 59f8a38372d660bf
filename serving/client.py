"""A typed client for the HTTP API.

from serving.client import PinRecClient

with PinRecClient("http://127.0.0.1:8000") as pinrec:
    answer = pinrec.recommend("u1", k=10, outcomes={"save": 0.7, "click": 0.3})
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx
from pydantic import BaseModel

from serving.api import (
    Accepted,
    Activation,
    Context,
    Models,
    RecommendationRequest,
    Rollback,
    SimilarItems,
    Status,
    UserHistory,
)
from streaming.schema import Recommendation, UserEvent

Body = TypeVar("Body", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"


class ClientError(RuntimeError):
    """The service refused or could not answer.

    Attributes:
        status: the HTTP status; 0 where the service was not reached.
        field: the field at fault, if one is.
        retry_after_s: when trying again makes sense, if it said so.
    """

    def __init__(self, status: int, detail: str, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(f"{field}: {detail}" if field else detail)
        self.status, self.detail, self.field, self.retry_after_s = status, detail, field, retry_after_s


class PinRecClient:
    """Talks to the Gateways. Thread-safe; connections are kept and reused.

    Args:
        url: where the HTTP API is.
        token: the admin token, for deletions and model changes.
        timeout_s: of one call.
    """

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, timeout_s: float = 10.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def recommend(self, user_id: str, k: int = 20, **options: Any) -> Recommendation:
        """A list for a user; `options` are the further fields of `RecommendationRequest`.

        Raises:
            ClientError: the request was refused, or there is no answer now.
            pydantic.ValidationError: an option is unknown or not valid.
        """
        if isinstance(options.get("context"), dict):
            options["context"] = Context(**options["context"])
        request = RecommendationRequest(user_id=user_id, k=k, **options)
        return self._call(Recommendation, "POST", "/v1/recommendations", request.model_dump_json(exclude_none=True))

    def similar(self, item_id: str, k: int = 20, categories: Sequence[str] = ()) -> SimilarItems:
        """The items most like an item.

        Raises:
            ClientError: 404 where there is no such item.
        """
        query = urlencode({"k": k, "categories": list(categories)}, doseq=True)
        return self._call(SimilarItems, "GET", f"/v1/items/{_quoted(item_id)}/similar?{query}")

    def publish(self, events: Sequence[UserEvent]) -> list[str]:
        """Publish events; their event ids. Kafka has acknowledged all of them when it returns.

        Raises:
            ClientError: an event was refused (none is published), or Kafka does not answer.
        """
        body = f"[{','.join(event.model_dump_json(exclude_none=True) for event in events)}]"
        return self._call(Accepted, "POST", "/v1/events", body).event_ids

    def user(self, user_id: str) -> UserHistory:
        """What is known of a user.

        Raises:
            ClientError: 404 when nothing is.
        """
        return self._call(UserHistory, "GET", f"/v1/users/{_quoted(user_id)}")

    def delete_user(self, user_id: str) -> None:
        """Forget a user (admin).

        Raises:
            ClientError: 401 without the admin token.
        """
        self._send("DELETE", f"/v1/users/{_quoted(user_id)}")

    def models(self) -> Models:
        """The versions in the registry."""
        return self._call(Models, "GET", "/v1/models")

    def activate(self, version: str, force: bool = False) -> Models:
        """Serve another version (admin).

        Args:
            force: although it was refused or withdrawn.

        Raises:
            ClientError: 404 for an unknown version, 409 for a refused or withdrawn one, 401 without the admin token.
        """
        body = Activation(force=force).model_dump_json()
        return self._call(Models, "POST", f"/v1/models/{_quoted(version)}/activate", body)

    def rollback(self, reason: str = "") -> Models:
        """Go back to the newest older version that passed the gate (admin).

        Raises:
            ClientError: 409 where there is none, 401 without the admin token.
        """
        return self._call(Models, "POST", "/v1/models/rollback", Rollback(reason=reason).model_dump_json())

    def status(self) -> Status:
        """How every replica is."""
        return self._call(Status, "GET", "/v1/status")

    def _call(self, kind: type[Body], method: str, path: str, body: str | None = None) -> Body:
        return kind.model_validate_json(self._send(method, path, body).content)

    def _send(self, method: str, path: str, body: str | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            response = self._http.request(method, path, content=body, headers=headers)
        except httpx.TransportError as error:
            raise ClientError(0, f"no answer from {self._http.base_url}: {error}; is `pinrec up` running?") from None
        if response.is_success:
            return response
        try:
            problem = response.json()
            detail, field = problem["detail"], problem.get("field")
        except (ValueError, KeyError, TypeError):
            detail, field = response.text[:500], None
        after = response.headers.get("Retry-After", "")  # a proxy's may be a date
        raise ClientError(response.status_code, detail, field, float(after) if after.isdecimal() else None)


def _quoted(text: str) -> str:
    return quote(text, safe="")
