"""docs/capacity.md: machines for so many events a second, from what an event and a query were measured to cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.result import ROOT, Result
from pinrec.config import ModelConfig
from serving.config import AppSettings, ServingSettings

DOCUMENT: Final = ROOT / "docs" / "capacity.md"
RATES: Final = (1_000, 100_000, 10_000_000)
"""Events a second."""
NEEDED: Final = ("P1b", "P4", "P5", "P10", "P13")
_QUERIES_PER_EVENT: Final = 0.25
_S_BETWEEN_EVENTS: Final = 60.0
_CORES: Final = 16
_MEMORY_GIB: Final = 64.0
_USED: Final = 0.6
_EVENT: Final = "cpu_ms_per_event_"
_QUERY: Final = "cpu_ms_per_query_"
_GIB: Final = 2**30
_PARTS: Final = ("broker", "ingestor", "recommender", "gateway", "http_proxy", "rest_of_ray")
_IDLE_ON_EVENTS: Final = ("gateway", "http_proxy")
_IDLE_ON_QUERIES: Final = ("broker", "ingestor", "recommender")


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        event_ms, query_ms: CPU ms of an event and of a query, by part.
        store_us: of an event, in the store's one transaction.
        state_kib: keys and values of a user.
        user_bytes: of a user in the store.
    """

    event_ms: Mapping[str, float]
    query_ms: Mapping[str, float]
    store_us: float
    state_kib: float
    user_bytes: float

    @classmethod
    def of(cls, results: Mapping[str, Result]) -> "Costs":
        """From the results of `NEEDED`."""
        states = ServingSettings().states_dtype
        # An idle process costs something too; what has no part in an event or a query is left out of its price.
        event = _by_part(results["P1b"], _EVENT, _IDLE_ON_EVENTS)
        query = _by_part(results["P4"], _QUERY, _IDLE_ON_QUERIES)
        stored = {name: mib for name, mib in results["P13"].details.items() if name.startswith("store_mib_at_")}
        users, mib = max((int(name.rpartition("_")[2]), mib) for name, mib in stored.items())
        return cls(
            event_ms=event,
            query_ms=query,
            store_us=next(s.value for s in results["P5"].stages if s.name.startswith("store")),
            state_kib=results["P10"].details[f"user_of_{ModelConfig().history}_events_{states}_kib"],
            user_bytes=mib * 2**20 / users,
        )

    def cores(self, events_per_s: float) -> dict[str, float]:
        """Cores that each part keeps busy."""
        queries_per_s = _QUERIES_PER_EVENT * events_per_s
        return {
            part: (events_per_s * self.event_ms.get(part, 0) + queries_per_s * self.query_ms.get(part, 0)) / 1e3
            for part in _PARTS
        }


@dataclass(frozen=True)
class Limit:
    """What breaks at so many events a second, and what to do before."""

    events_per_s: float
    what: str
    remedy: str


def limits(costs: Costs, settings: AppSettings | None = None) -> list[Limit]:
    """What breaks, the first one first, as the program is."""
    settings = settings or AppSettings()
    per_event = costs.cores(1.0)
    machine = _USED * _CORES
    beside_the_store = per_event["ingestor"] + per_event["recommender"] + per_event["gateway"]
    state_gib = _S_BETWEEN_EVENTS * costs.state_kib * 1024 / _GIB
    partitions = settings.kafka.partitions
    found = [
        Limit(
            machine / sum(per_event.values()),
            f"the processors of one machine ({_CORES} cores)",
            "Kafka on machines of its own (`kafka.bootstrap`)",
        ),
        Limit(
            machine / beside_the_store,
            "the sequence store: LMDB is one machine's, and Ingestors, Recommenders and Gateways must be where it is",
            "a sequence store on the network (`streaming/stores/base.py` says what it must promise), and Recommenders "
            "and Gateways on many machines",
        ),
        Limit(
            1e6 / costs.store_us,
            "the store's one writer: LMDB's transactions come one after another",
            "a store that is divided by partition",
        ),
        Limit(
            partitions / per_event["ingestor"],
            f"{partitions} partitions (`kafka.partitions`): no more Ingestors than that have work",
            "more partitions when the topic is created",
        ),
        Limit(
            settings.trainer.max_events / settings.trainer.interval_s,
            f"the Trainer: in `trainer.interval_s` ({settings.trainer.interval_s:g} s) come more events than it looks "
            f"at (`trainer.max_events`, {settings.trainer.max_events:,})",
            "a larger `trainer.max_events`, and several processes that fit together; above that, training on a sample",
        ),
        Limit(
            _USED * _MEMORY_GIB / state_gib,
            f"the memory of one machine ({_MEMORY_GIB:g} GiB) for keys and values of active users",
            "Recommenders on many machines, each with the users of its partitions; or `serving.states_mib` as it is, "
            "and who is not held is encoded anew",
        ),
    ]
    return sorted(found, key=lambda limit: limit.events_per_s)


_HEAD: Final = f"""\
# Capacity

What so many events a second take, computed from measured costs: `.venv/bin/python -m benchmarks --report` makes this
page from `benchmarks/results/performance`. It is arithmetic, not a trial: costs of one machine are taken as they are,
and what a network or a store on it adds is not in them.

Assumed: a list is made for every event, as `ingest.generate` says; {_QUERIES_PER_EVENT:g} queries come with each event;
an active user has an event every {_S_BETWEEN_EVENTS:g} s, and each one's keys and values are held; machines have
{_CORES} cores like those of [docs/performance.md](performance.md) and {_MEMORY_GIB:g} GiB, of which {_USED:.0%} are
used.
"""


def write_capacity(results: Sequence[Result]) -> Path:
    """Write the page; where it lies."""
    DOCUMENT.write_text(render(results))
    return DOCUMENT


def render(results: Sequence[Result]) -> str:
    """The page; where a measure is missing, which one."""
    found = {result.id: result for result in results}
    if missing := [name for name in NEEDED if name not in found]:
        only = " ".join(f"--only {name}" for name in missing)
        command = f"`.venv/bin/python -m benchmarks {only}` takes them."
        return f"{_HEAD}\nNot computed yet: {', '.join(missing)} are missing; {command}\n"
    costs = Costs.of(found)
    quick = [name for name in NEEDED if found[name].quick]
    note = [f"{', '.join(quick)} are quick trials: these figures are not to be quoted.\n"] if quick else []
    return "\n".join([_HEAD, *note, *_measured(costs), *_steps(costs), *_order(costs)])


def _measured(costs: Costs) -> list[str]:
    rows = [
        f"| {part.replace('_', ' ')} | {costs.event_ms.get(part, 0):.3g} | {costs.query_ms.get(part, 0):.3g} |"
        for part in _PARTS
    ]
    return [
        "## What was measured\n",
        "CPU time of an event at the highest rate that is answered within a second ([P1b](performance.md#p1b)), and "
        "of a query at 16 connections ([P4](performance.md#p4)).\n",
        "| Part | Event, ms | Query, ms |",
        "|---|---|---|",
        *rows,
        "",
        f"Further: {costs.store_us:.3g} us of the store for an event ([P5](performance.md#p5)), "
        f"{costs.state_kib:.4g} KiB of keys and values for a user with a full history ([P10](performance.md#p10)), "
        f"{costs.user_bytes:,.0f} bytes on the disk for a user with a few events ([P13](performance.md#p13)).\n",
    ]


def _steps(costs: Costs) -> list[str]:
    order, rows = limits(costs), []
    for below, rate in zip((0, *RATES), RATES, strict=False):
        cores = costs.cores(rate)
        users = rate * _S_BETWEEN_EVENTS
        memory_gib = users * costs.state_kib * 1024 / _GIB
        by_cores, by_memory = sum(cores.values()) / (_USED * _CORES), memory_gib / (_USED * _MEMORY_GIB)
        new = [limit for limit in order if below <= limit.events_per_s < rate]
        breaks = f"{new[0].what}; at {_rounded(new[0].events_per_s)} events/s" if new else "nothing"
        each = " | ".join(_rounded(cores[part]) for part in _PARTS)
        rows.append(
            f"| {rate:,} | {each} | {_rounded(sum(cores.values()))} | {_rounded(memory_gib)} GiB for {_rounded(users)} "
            f"users | {max(math.ceil(by_cores), math.ceil(by_memory), 1):,} | {breaks} |"
        )
    parts = " | ".join(part.replace("_", " ") for part in _PARTS)
    return [
        "## Machines\n",
        "Cores that each part keeps busy, all of them together, the keys and values of active users, the machines that "
        "hold both, and what breaks first on the way from the rate before.\n",
        f"| Events/s | {parts} | All cores | Keys and values | Machines | Breaks first |",
        "|---" * (len(_PARTS) + 5) + "|",
        *rows,
        "",
    ]


def _order(costs: Costs) -> list[str]:
    rows = [f"| {_rounded(limit.events_per_s)} | {limit.what} | {limit.remedy} |" for limit in limits(costs)]
    return [
        "## What breaks, in order\n",
        "With the default settings and the program as it is.\n",
        "| At events/s | What | What to do |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _by_part(result: Result, prefix: str, idle: Sequence[str]) -> dict[str, float]:
    named = {name[len(prefix) :]: ms for name, ms in result.details.items() if name.startswith(prefix)}
    return {part: ms for part, ms in named.items() if part in _PARTS and part not in idle}


def _rounded(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"
