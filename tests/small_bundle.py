"""A bundle small enough for every test: a random model with a fixed seed over a made-up catalogue."""

import numpy as np
import torch

from pinrec.bundle import Bundle
from pinrec.config import ModelConfig, Vocabulary
from pinrec.hashing import hash_id
from pinrec.history import History, HistoryEvent
from pinrec.items import Catalogue, Item
from pinrec.model import PinRecModel
from pinrec.popularity import Popularity
from pinrec.requests import GenerationRequest

VOCABULARY = Vocabulary()
# With an MLP tower every part of a random model matters; a residual one begins with most of them at zero.
CONFIG = ModelConfig(
    width=16, layers=2, heads=2, history=32, stride=8, local_window=12, hash_buckets=256, id_width=8, bag_buckets=64,
    bag_width=32, tower="mlp", bag_gain=0,
)  # fmt: skip
NOW = 1_760_000_000.0
TOPICS = ("rivers", "bread", "maps", "wool", "rare")


def small_items(count: int = 120) -> list[Item]:
    """Every 30th item is of the category "rare", the others of four broad ones; the last ones are the newest."""
    return [
        Item(
            item_id=f"item-{i}",
            title=f"about {TOPICS[i % 4]} {i}",
            categories=("rare",) if i % 30 == 7 else (TOPICS[i % 4],),
            created_at=NOW - 1000.0 * (count - i),
        )
        for i in range(count)
    ]


def small_bundle(items: list[Item] | None = None, seed: int = 0, config: ModelConfig = CONFIG) -> Bundle:
    """A bundle that was not written yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PinRecModel(config, VOCABULARY)
    catalogue = Catalogue.of(small_items() if items is None else items, config)
    n = len(catalogue)
    ranked = np.full((len(VOCABULARY.surfaces) + 1, n), -1, np.int64)
    ranked[:, : n // 2] = np.arange(n // 2)[::-1]
    popularity = Popularity(ranked, np.argsort(-catalogue.created_at)[:20])
    return Bundle.of(model, catalogue, popularity, metrics={"recall@10": 0.5}, trained_until=NOW)


def small_history(length: int, seed: int = 0, items: int = 130) -> History:
    """Events on items of the catalogue and on unknown ones, and some queries."""
    rng = np.random.default_rng(seed)
    events, timestamp = [], NOW - 90_000.0
    for i in range(length):
        timestamp += float(rng.exponential(400))
        is_query = bool(rng.random() < 0.15)
        item_id = f"query about {TOPICS[i % 5]}" if is_query else f"item-{rng.integers(items)}"
        action = VOCABULARY.action_index["search"] if is_query else int(rng.choice([0, 3, 4, 5]))
        events.append(
            HistoryEvent(timestamp, f"e{i:05d}", item_id, hash_id(item_id), action, int(rng.integers(3)), is_query)
        )
    return History.of(events)


def request(length: int = 10, seed: int = 0, **fields) -> GenerationRequest:
    """A request for 10 items by someone with a history."""
    return GenerationRequest(**({"history": small_history(length, seed), "k": 10, "now": NOW} | fields))
