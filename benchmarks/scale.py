"""P13: a million users in the store and a million items in the index: what grows with them and what does not."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.generation import BusyUser
from benchmarks.publishing import bundle_of, made_up_item
from benchmarks.result import REPORTED, Curve, Result, commit, machine, percentile, rounded
from benchmarks.untrained import untrained
from pinrec.config import GenerationConfig, ModelConfig, Vocabulary
from pinrec.generation import generate
from pinrec.hashing import hash_id
from pinrec.history import HistoryEvent
from pinrec.index import use_threads
from pinrec.items import Catalogue
from pinrec.registry import Registry
from pinrec.states import UserStates
from serving.stack import Progress
from streaming.process import keep_freed_memory
from streaming.stores.lmdb import LmdbSequenceStore

_SIZES: Final = (10_000, 100_000, 1_000_000)
_QUICK_SIZES: Final = (500, 2_000, 8_000)
_EVENTS: Final = 4
"""Of each user in the store before anything is measured."""
_FILLED: Final = 50_000
_POLL: Final = 5_000
_READ: Final = 32
_BATCH: Final = 16
_HISTORY: Final = 64
_CALLS: Final = 20
_KEPT_BYTES: Final = 256 << 20
_MIB: Final = 2**20


def measure(work: Path, quick: bool, progress: Progress) -> Result:
    """Fill a store and an index of three sizes, and take the same measures of each."""
    began, sizes = time.monotonic(), _QUICK_SIZES if quick else _SIZES
    torch.set_num_threads(1)
    use_threads(1)
    keep_freed_memory(_KEPT_BYTES)
    found: list[dict[str, float]] = []
    lists: list[list[float]] = []
    for at, size in enumerate(sizes):
        progress(f"P13 {size:,} users and items", at, len(sizes))
        folder = work / str(size)
        folder.mkdir(parents=True)
        of_items, samples = _items(folder, size)
        found.append(_store(folder, size) | of_items)
        lists.append(samples)
    progress("P13", 1, 1)
    values = [of_size["list_for_16_users_ms"] for of_size in found]
    return Result(
        id="P13",
        name=f"a list for {_BATCH} users with {sizes[-1]:,} users and items",
        value=values[-1],
        unit="ms",
        baseline_name=f"with {sizes[0]:,} of each",
        baseline=values[0],
        ratio=rounded(values[-1] / values[0]),
        goal=f"it works; {REPORTED}",
        met=True,
        spread={"value": _range(lists[-1]), "baseline": _range(lists[0])},
        samples={"value": lists[-1], "baseline": lists[0]},
        details={f"{name}_at_{sizes[i]}": rounded(found[i][name]) for name in found[0] for i in range(len(sizes))},
        curve=Curve(
            x_name="users and items",
            y_name=f"times that of {sizes[0]:,}",
            x=list(sizes),
            y={
                name.replace("_", " "): [rounded(of[name] / found[0][name]) for of in found]
                for name in ("store_apply_us_per_event", "store_read_us_per_user", "search_ms", "list_for_16_users_ms")
            },
        ),
        protocol=(
            f"One thread. A store of so many users with {_EVENTS} events each; then {_CALLS} transactions of {_POLL:,} "
            f"events of random users, flushed as in service, and reads of {_READ} random users. A bundle of so many "
            f"made-up items and random weights: built, written and loaded; then {_BATCH} users with {_HISTORY} events, "
            f"whose keys and values are kept, are answered {_CALLS} times. Random vectors are the worst case of an "
            "index, as nothing lies close together; P8 has clusters. Medians."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


def growth(details: Mapping[str, float]) -> tuple[int, int, dict[str, float]]:
    """(last size but one, largest size, figure -> the exponent with which it grows between them).

    Args:
        details: of this measure's result, `<figure>_at_<size>` among them.
    """
    at: dict[str, dict[int, float]] = {}
    for name, value in details.items():
        figure, found, size = name.rpartition("_at_")
        if found:
            at.setdefault(figure, {})[int(size)] = value
    below, largest = sorted(next(iter(at.values())))[-2:]
    times = math.log(largest / below)
    return below, largest, {figure: math.log(of[largest] / of[below]) / times for figure, of in at.items()}


def _store(folder: Path, users: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    items = [f"item-{number}" for number in range(10_000)]
    hashes = [hash_id(item_id) for item_id in items]
    config, counter = ModelConfig(), iter(range(1 << 60))

    def changes(users_of: np.ndarray) -> list[tuple[str, HistoryEvent | None]]:
        made: list[tuple[str, HistoryEvent | None]] = []
        for user, item in zip(users_of.tolist(), rng.integers(len(items), size=len(users_of)).tolist(), strict=True):
            number = next(counter)
            event = HistoryEvent(1.7e9 + number, f"e{number:012d}", items[item], hashes[item], 3, 0, False)
            made.append((f"user-{user:09d}", event))
        return made

    store = LmdbSequenceStore(folder / "sequences", config.history, config.stride)
    offset = 0
    for _ in range(_EVENTS):
        order = rng.permutation(users)
        for at in range(0, users, _FILLED):
            some = changes(order[at : at + _FILLED])
            store.apply(0, offset, offset + len(some), some, time.time())
            offset += len(some)
    apply_s, read_s = [], []
    for _ in range(_CALLS):
        some = changes(rng.integers(users, size=_POLL))
        since = time.perf_counter()
        store.apply(0, offset, offset + len(some), some, time.time())
        apply_s.append(time.perf_counter() - since)
        offset += len(some)
        asked = [f"user-{user:09d}" for user in rng.integers(users, size=_READ)]
        since = time.perf_counter()
        found = store.read(asked)
        read_s.append(time.perf_counter() - since)
        assert all(history is not None and len(history) >= _EVENTS for history in found)
    assert store.count() == users
    store.close()
    # The file is as large as the map where the system cannot tell holes; what it takes on the disk counts.
    size = sum(path.stat().st_blocks * 512 for path in (folder / "sequences").iterdir())
    return {
        "store_apply_us_per_event": 1e6 * percentile(apply_s, 50) / _POLL,
        "store_read_us_per_user": 1e6 * percentile(read_s, 50) / _READ,
        "store_mib": size / _MIB,
    }


def _items(folder: Path, items: int) -> tuple[dict[str, float], list[float]]:
    """Figures, and the ms of each call for a list."""
    config = ModelConfig()
    since = time.perf_counter()
    catalogue = Catalogue.of(list(map(made_up_item, range(items))), config)
    torch.manual_seed(0)
    made = bundle_of(untrained(config, Vocabulary()), catalogue, None)
    built_s = time.perf_counter() - since
    registry = Registry(folder / "models")
    version = registry.publish(made)
    del made, catalogue
    since = time.perf_counter()
    bundle = registry.load(version)
    loaded_s = time.perf_counter() - since
    requests = [BusyUser(number, _HISTORY).request(0) for number in range(_BATCH)]
    states = UserStates(1 << 30)
    q_ED = np.array(bundle.table[np.random.default_rng(0).integers(items, size=_BATCH)])
    list_s = _times(lambda: generate(bundle, requests, GenerationConfig(), states))
    search_s = _times(lambda: bundle.index.search(q_ED, 100))
    figures = {
        "catalogue_and_index_built_s": built_s,
        "bundle_loaded_s": loaded_s,
        "bundle_mib": sum(path.stat().st_size for path in (folder / "models").rglob("*") if path.is_file()) / _MIB,
        "search_ms": 1e3 * percentile(search_s, 50),
        "list_for_16_users_ms": rounded(1e3 * percentile(list_s, 50)),
    }
    return figures, [rounded(1e3 * s) for s in list_s]


def _times(call: Callable[[], object]) -> list[float]:
    """Seconds of each call; the first one fills caches."""
    times = []
    for _ in range(_CALLS + 1):
        since = time.perf_counter()
        call()
        times.append(time.perf_counter() - since)
    return times[1:]


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)
