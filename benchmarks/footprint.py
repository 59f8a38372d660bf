"""P10: from a replica's start to its first list with a million items, stage by stage, and what memory it takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch

import pinrec.bundle
from benchmarks.children import in_child
from benchmarks.generation import BusyUser, random_bundle
from benchmarks.publishing import bundle_of, made_up_item
from benchmarks.result import Result, Stage, commit, machine, rounded, summary
from benchmarks.untrained import untrained
from pinrec.bundle import INDEX, TABLE, Bundle
from pinrec.config import GenerationConfig, ModelConfig, Vocabulary
from pinrec.generation import generate
from pinrec.index import ItemIndex, use_threads
from pinrec.items import CATALOGUE_FILE, Catalogue
from pinrec.popularity import Popularity
from pinrec.quantised import quantise
from pinrec.registry import Registry
from pinrec.requests import GenerationRequest
from pinrec.states import UserStates
from serving.config import ServingSettings
from serving.stack import Progress

GOAL_S: Final = 20.0
_MILLION: Final = 1_000_000
_REPEATS: Final = 5
_HISTORIES: Final = (64, 256, 1_024)
_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
_USERS: Final = 32
_MIB: Final = 2**20


@dataclass
class Started:
    """One start: seconds of each stage, and memory that is this process's alone, in bytes."""

    stages: dict[str, float] = field(default_factory=dict)
    own_before: int = 0
    own_after: int = 0

    @property
    def seconds(self) -> float:
        """From start to ready."""
        return sum(self.stages.values())


PARTS: Final[tuple[tuple[Any, str, str], ...]] = (
    (pinrec.bundle, "_check_files", "files read and hashed"),
    (pinrec.bundle, "_load_model", "weights and ID embedding"),
    (ItemIndex, "load", "index"),
    (Catalogue, "load", "catalogue"),
    (Popularity, "load", "popular items"),
    (Bundle, "_check", "table, index and golden answers checked"),
)
"""(owner, function, stage) of `Bundle.load`."""


def measure(work: Path, quick: bool, progress: Progress) -> Result:
    """Start replicas' processes over one bundle, again and again, and count what they hold."""
    began, items = time.monotonic(), 20_000 if quick else _MILLION
    torch.set_num_threads(1)
    use_threads(1)
    progress("P10 a bundle", 0, 0)
    details = bundle_of_items(work / "models", items)
    progress("P10 a bundle", 1, 1)
    starts: list[Started] = []
    bare: list[float] = []
    for at in range(2 if quick else _REPEATS):
        progress("P10 starts", at, _REPEATS)
        bare.append(in_child(read_files, work / "models", time.time()))
        starts.append(in_child(start, work / "models", time.time()))
    progress("P10 starts", 1, 1)
    details |= in_child(memory_of_users, 4 if quick else _USERS)
    millions = items / _MILLION
    own = summary([(s.own_after - s.own_before) / _MIB / millions for s in starts])[0]
    value, spread = summary([s.seconds for s in starts])
    baseline, bare_spread = summary(bare)
    return Result(
        id="P10",
        name=f"replica start to ready with {items:,} items",
        value=value,
        unit="s",
        baseline_name="a process that imports the same and reads the bundle's files",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"<= {GOAL_S:g} s",
        met=value <= GOAL_S,
        spread={"value": spread, "baseline": bare_spread},
        samples={"value": [rounded(s.seconds) for s in starts], "baseline": [rounded(s) for s in bare]},
        details={"of_one_replica_mib_per_million_items": own, **details},
        stages=[
            Stage(name=name, value=summary([s.stages[name] for s in starts])[0], unit="s") for name in starts[0].stages
        ],
        protocol=(
            f"One thread, a new process for each start, the default model with random weights over {items:,} made-up "
            "items; the files were just written, so the kernel holds their pages. Ready: the bundle is loaded and "
            "checked as by a replica, and one list was made. Ray starts a replica's process before that. Memory per "
            "million items: the size of each file, which all replicas of a machine share as they map it (catalogue "
            "and codes of the index excepted), and what the process holds for itself alone after loading. Memory of a "
            "cached user: keys and "
            f"values that `pinrec.states` keeps, by length of the history and type. {ServingSettings().states_mib} MiB "
            "(serving.states_mib) hold so many users."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


def start(registry: Path, spawned: float) -> Started:
    """What a replica does until it is ready; in a process of its own that was asked for at `spawned` (epoch s)."""
    started = Started({"process and imports": time.time() - spawned})
    torch.set_num_threads(1)
    use_threads(1)
    started.own_before = _own_bytes()
    versions = Registry(registry)
    version = versions.current()
    assert version is not None
    since = time.perf_counter()
    with ExitStack() as stack:
        for owner, name, stage in PARTS:
            stack.enter_context(_timed(owner, name, stage, started.stages))
        bundle = versions.load(version)
    whole = time.perf_counter() - since
    started.stages["manifest, table and the rest"] = whole - sum(started.stages.get(stage, 0) for *_, stage in PARTS)
    since = time.perf_counter()
    asked = GenerationRequest(None, k=20, now=time.time(), context_item=bundle.catalogue.item_ids[0])
    generate(bundle, [asked], GenerationConfig())
    started.stages["first list"] = time.perf_counter() - since
    started.own_after = _own_bytes()
    return started


def _own_bytes() -> int:
    """Resident memory of this process that no file backs; pages of mapped files are shared."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def read_files(registry: Path, spawned: float) -> float:
    """The least a start can take: the same imports, and the files' bytes; s since `spawned`."""
    for path in registry.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(_MIB):
                    pass
    return time.time() - spawned


def memory_of_users(users: int) -> dict[str, float]:
    """KiB of a cached user, by length of the history and type, and how many the default budget holds."""
    details = {}
    for history in _HISTORIES:
        bundle = random_bundle(ModelConfig(history=max(history, 2), stride=1))
        requests = [BusyUser(number, history).request(0) for number in range(users)]
        for name, dtype in _DTYPES.items():
            states = UserStates(1 << 30, dtype)
            for request in requests:
                states(bundle, [request])
            report = states.report
            assert report.users == users
            details[f"user_of_{history}_events_{name}_kib"] = rounded(report.bytes / users / 1024)
            if name == ServingSettings().states_dtype:
                details[f"users_of_{history}_events_in_{ServingSettings().states_mib}_mib"] = (
                    ServingSettings().states_mib * _MIB // (report.bytes // users)
                )
    return details


def bundle_of_items(registry: Path, items: int) -> dict[str, float]:
    """Publish a bundle; MiB per million items of its parts."""
    config = ModelConfig()
    catalogue = Catalogue.of(list(map(made_up_item, range(items))), config)
    torch.manual_seed(0)
    versions = Registry(registry)
    version = versions.publish(bundle_of(untrained(config, Vocabulary()), catalogue, None))
    sizes = {path.name: path.stat().st_size for path in registry.rglob("*") if path.is_file()}
    int8 = quantise(np.asarray(versions.load(version).table)).stored.nbytes
    parts = {
        "table_float32": sizes[TABLE],
        "table_int8": int8,
        "index": sizes[INDEX],
        "catalogue": sizes[CATALOGUE_FILE],
    }
    return {f"{name}_mib_per_million_items": rounded(size / _MIB * _MILLION / items) for name, size in parts.items()}


@contextmanager
def _timed(owner: Any, name: str, stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """While it lasts, the time that a function takes is added up."""
    inner: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        since = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - since

    with patch.object(owner, name, timed):
        yield
