"""The usual stack's application, as one is commonly written; one of these runs in each of uvicorn's workers.

For each request the user's history is read from Redis and encoded anew by a SASRec, and FAISS is searched with its
last state. The weights are random: how long it takes does not depend on what they are.
"""

import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from redis.asyncio import Redis

from benchmarks.usual.job import Job
from pinrec.baselines.sasrec import SASRecConfig, SASRecModel
from pinrec.index import ItemIndex, use_threads


class Asked(BaseModel):
    """Ask for a list."""

    user_id: str
    k: int = Field(20, ge=1, le=500)


class Scored(BaseModel):
    """One item of a list."""

    item_id: str
    score: float


class Answer(BaseModel):
    """A list for a user."""

    request_id: str
    user_id: str
    created_at: float
    items: list[Scored]


class Recommender:
    """Model, index and histories of one worker."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(1)  # as many workers as cores
        use_threads(1)
        config = SASRecConfig(width=job.width, blocks=job.layers, heads=job.heads, max_length=job.history)
        torch.manual_seed(0)
        self._model = SASRecModel(len(job.item_ids), config).eval().requires_grad_(False)
        self._index = ItemIndex.build(self._model.item.weight.numpy())
        self._redis = Redis(port=job.redis_port, decode_responses=True)
        self._item_ids, self._history = job.item_ids, job.history
        self._row_of = {item_id: row for row, item_id in enumerate(job.item_ids)}

    async def recommend(self, user_id: str, k: int) -> list[Scored]:
        """The best k that the user has not met.

        Raises:
            HTTPException: 404, nothing is known of the user.
        """
        met = await self._redis.lrange(user_id, -self._history, -1)
        rows = [self._row_of[item_id] for item_id in met if item_id in self._row_of]
        if not rows:
            raise HTTPException(404, "no event of this user is known")
        with torch.inference_mode():
            h_BTD = self._model(torch.tensor([rows]), torch.tensor([len(rows)]))
        seen = set(rows)
        scores, found = self._index.search(h_BTD[0, -1:].numpy(), k + len(seen))
        left = ((row, score) for row, score in zip(found[0].tolist(), scores[0].tolist(), strict=True))
        new = [Scored(item_id=self._item_ids[row], score=score) for row, score in left if row not in seen]
        return new[:k]


@asynccontextmanager
async def _lifespan(api: FastAPI) -> AsyncIterator[None]:
    job = Job.read()
    api.state.recommender = Recommender(job)
    (Path(job.ready) / str(os.getpid())).touch()
    yield


api = FastAPI(lifespan=_lifespan)


@api.post("/v1/recommendations")
async def recommend(asked: Asked) -> Answer:
    """A list for a user."""
    items = await api.state.recommender.recommend(asked.user_id, asked.k)
    return Answer(request_id=uuid.uuid4().hex, user_id=asked.user_id, created_at=time.time(), items=items)
