"""Answers of an engine or an answerer as objects, to be looked into."""

from typing import Any

from serving.answers import Answerer, Outcome
from serving.api import RecommendationRequest
from serving.engine import Engine
from serving.problems import Problem
from streaming.schema import Recommendation


def read(answers: list[Outcome]) -> list[Any]:
    """Lists as objects, problems as they are."""
    return [answer if isinstance(answer, Problem) else answer.read() for answer in answers]


async def recommended(engine: Engine, user_id: str, k: int = 5) -> Recommendation:
    """What an engine recommends."""
    (answer,) = read([await engine.recommend(RecommendationRequest(user_id=user_id, k=k))])
    assert isinstance(answer, Recommendation), answer
    return answer


class ReadingAnswerer(Answerer):
    """An answerer whose answers are objects."""

    def answer(self, *args: Any) -> Any:
        """See `Answerer.answer`."""
        return tuple(map(read, super().answer(*args)))
