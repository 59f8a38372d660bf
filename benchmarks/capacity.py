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
NEEDED: Final = ("P1b", "P2", "P4", "P10", "P13")
_QUERIES_PER_EVENT: Final = 0.25
_S_BETWEEN_EVENTS: Final = 60.0
_S_BETWEEN_VERSIONS: Final = 3_600.0
"""Where histories are kept encoded: a version makes what is kept void."""
_CORES: Final = 16
_MEMORY_GIB: Final = 64.0
_USED: Final = 0.6
_EVENT: Final = "cpu_ms_per_event_"
_QUERY: Final = "cpu_ms_per_query_"
_APPLY: Final = "store_apply_us_per_event_at_"
_BATCH: Final = 16
"""Users in the batch of P2 whose cost is taken."""
_HOLDERS: Final = 2
"""Who acts and asks has keys and values in a Recommender and in a Gateway."""
_GIB: Final = 2**30
_PARTS: Final = ("broker", "ingestor", "recommender", "gateway", "http_proxy", "rest_of_ray")
_IDLE_ON_EVENTS: Final = ("gateway", "http_proxy")
_IDLE_ON_QUERIES: Final = ("broker", "ingestor", "recommender")
_NEVER: Final = math.inf


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        event_ms, query_ms: CPU ms of an event that has a list of its own, and of a query, by part.
        anew_ms: CPU ms that a list costs more where its user's full history is encoded anew.
        superseded: share of the measured events that had no list of their own.
        store_us: of an event, in the store's one transaction, with `stored_users` in the store.
        state_kib: keys and values of a user with a full history, in one replica.
        held_users: of these, how many the default `serving.states_mib` of a replica hold.
    """

    event_ms: Mapping[str, float]
    query_ms: Mapping[str, float]
    anew_ms: float
    superseded: float
    store_us: float
    stored_users: int
    state_kib: float
    held_users: int

    @classmethod
    def of(cls, results: Mapping[str, Result]) -> "Costs":
        """From the results of `NEEDED`."""
        history, serving = ModelConfig().history, ServingSettings()
        # An idle process costs something too; what has no part in an event or a query is left out of its price.
        event = _by_part(results["P1b"], _EVENT, _IDLE_ON_EVENTS)
        superseded = results["P1b"].details["superseded_share"]
        event["recommender"] /= 1 - superseded  # a Recommender works for lists, and only so many events had one
        encoding = results["P2"].details
        anew, one = (encoding[f"encoding_{how}_at_{history}_batch_{_BATCH}_ms"] for how in ("anew", "after_one_event"))
        applied = results["P13"].details
        users = max(int(name.removeprefix(_APPLY)) for name in applied if name.startswith(_APPLY))
        kept = results["P10"].details
        return cls(
            event_ms=event,
            query_ms=_by_part(results["P4"], _QUERY, _IDLE_ON_QUERIES),
            anew_ms=(anew - one) / _BATCH,
            superseded=superseded,
            store_us=applied[f"{_APPLY}{users}"],
            stored_users=users,
            state_kib=kept[f"user_of_{history}_events_{serving.states_dtype}_kib"],
            held_users=int(kept[f"users_of_{history}_events_in_{serving.states_mib}_mib"]),
        )

    def cores(self, events_per_s: float, kept: bool) -> dict[str, float]:
        """Cores that each part keeps busy; `kept`: a history is encoded anew with each version, not for each list."""
        queries_per_s = _QUERIES_PER_EVENT * events_per_s
        busy = {
            part: (events_per_s * self.event_ms.get(part, 0) + queries_per_s * self.query_ms.get(part, 0)) / 1e3
            for part in _PARTS
        }
        for part, per_s in (("recommender", events_per_s), ("gateway", queries_per_s)):
            between_s = _S_BETWEEN_EVENTS * events_per_s / per_s
            share = min(1.0, between_s / _S_BETWEEN_VERSIONS) if kept else 1.0
            busy[part] += share * per_s * self.anew_ms / 1e3
        return busy

    def memory_gib(self, events_per_s: float) -> float:
        """What keys and values of all active users take."""
        return _HOLDERS * events_per_s * _S_BETWEEN_EVENTS * self.state_kib * 1024 / _GIB

    def store_breaks_at(self, kept: bool) -> float:
        """Events a second for which the store's one machine has no core left."""
        busy = self.cores(1.0, kept)
        return _USED * _CORES / (busy["ingestor"] + busy["recommender"] + busy["gateway"])


@dataclass(frozen=True)
class Limit:
    """What breaks, and what to do before.

    Attributes:
        anew, kept: events a second at which it does, where each list encodes its user's history anew, and where all
            are kept encoded between versions; infinite where it does not.
    """

    anew: float
    kept: float
    what: str
    remedy: str

    def at(self, kept: bool) -> float:
        """Events a second, one way or the other."""
        return self.kept if kept else self.anew


def limits(costs: Costs, settings: AppSettings | None = None) -> list[Limit]:
    """What breaks, the first one first, as the program is."""
    settings = settings or AppSettings()
    partitions = settings.kafka.partitions

    def both(rate: float) -> tuple[float, float]:
        return rate, rate

    found = [
        Limit(
            *(_USED * _CORES / sum(costs.cores(1.0, kept).values()) for kept in (False, True)),
            f"the processors of one machine ({_CORES} cores)",
            "Kafka on machines of its own (`kafka.bootstrap`)",
        ),
        Limit(
            *(costs.store_breaks_at(kept) for kept in (False, True)),
            "the sequence store: LMDB is one machine's, and Ingestors, Recommenders and Gateways must be where it is",
            "a sequence store on the network (`streaming/stores/base.py` says what it must promise), and Recommenders "
            "and Gateways on many machines",
        ),
        Limit(
            *both(1e6 / costs.store_us),
            f"the store's one writer: LMDB's transactions come one after another (with {costs.stored_users:,} users in "
            "it; more make it slower)",
            "a store that is divided by partition",
        ),
        Limit(
            *both(partitions / costs.cores(1.0, kept=True)["ingestor"]),
            f"{partitions} partitions (`kafka.partitions`): no more Ingestors than that have work",
            "more partitions when the topic is created",
        ),
        Limit(
            *(settings.trainer.max_events / every_s for every_s in (settings.trainer.interval_s, _S_BETWEEN_VERSIONS)),
            "the Trainer: between two versions (`trainer.interval_s`) come more events than it looks at "
            f"(`trainer.max_events`, {settings.trainer.max_events:,})",
            "a larger `trainer.max_events`, and several processes that fit together; above that, training on a sample",
        ),
        Limit(
            _NEVER,
            _USED * _MEMORY_GIB / costs.memory_gib(1.0),
            f"the memory of one machine ({_MEMORY_GIB:g} GiB) for keys and values of all active users",
            "Recommenders and Gateways on many machines, each with the users of its partitions; or who is not held is "
            "encoded anew",
        ),
    ]
    return sorted(found, key=lambda limit: limit.kept if limit.anew == _NEVER else limit.anew)


_HEAD: Final = f"""\
# Capacity

What so many events a second take, computed from measured costs: `.venv/bin/python -m benchmarks --report` makes this
page from `benchmarks/results/performance`. It is arithmetic, not a trial: costs of one machine are taken as they are,
and what a network or a store on it adds is not in them.

Assumed: every event engages, so a list is made for each (`ingest.generate`); {_QUERIES_PER_EVENT:g} queries come with
each event; an active user has a full history and an event every {_S_BETWEEN_EVENTS:g} s; machines have {_CORES} cores
like those of [docs/performance.md](performance.md) and {_MEMORY_GIB:g} GiB, of which {_USED:.0%} are used. What is one
process, one transaction or a setting breaks when all of it is used.
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
    return "\n".join([_HEAD, *note, *_measured(costs, found), *_steps(costs), *_order(costs)])


def _measured(costs: Costs, results: Mapping[str, Result]) -> list[str]:
    history, serving, interval_s = ModelConfig().history, ServingSettings(), AppSettings().trainer.interval_s
    parts = [
        f"| {part.replace('_', ' ')} | {costs.event_ms.get(part, 0):.3g} | {costs.query_ms.get(part, 0):.3g} |"
        for part in _PARTS
    ]
    premises = [
        ("CPU time of an event, by part", "above", "P1b", f"at {results['P1b'].value:,.0f} events/s"),
        ("of these, events without a list of their own", f"{costs.superseded:.0%}", "P1b", "superseded share"),
        ("CPU time of a query, by part", "above", "P4", f"at {results['P4'].value:,.0f} queries/s"),
        (f"encoding {history} events anew, over encoding the new one", f"{costs.anew_ms:.3g} ms", "P2",
         f"{_BATCH} users in a batch"),
        ("the store's transaction, of an event", f"{costs.store_us:.3g} us", "P13", f"{costs.stored_users:,} users"),
        (f"keys and values of a user with {history} events", f"{costs.state_kib:.4g} KiB", "P10",
         f"{serving.states_dtype}, in one replica"),
    ]  # fmt: skip
    return [
        "## What was measured\n",
        "CPU time. The Recommender's is that of a list: its time for an event, over the share of the events that had a "
        "list of their own.\n",
        "| Part | Event with a list, ms | Query, ms |",
        "|---|---|---|",
        *parts,
        "",
        "| Premise | Figure | From |",
        "|---|---|---|",
        *(
            f"| {what} | {figure} | [{row}](performance.md#{row.lower()}): {how} |"
            for what, figure, row, how in premises
        ),
        "",
        "What these do not say:\n",
        "- The Ingestor's and the broker's time is that of an event, as what a list takes of it (handing the user "
        "over, writing the list) is not told apart: with a list for each event both cost more, at most "
        f"{1 / (1 - costs.superseded):.2g} times as much.",
        "- The lists of P1b and P4 are of 2,000 items, scanned whole: what more items cost is in "
        "[P8](performance.md#p8) and [P13](performance.md#p13).",
        "- Nothing was trained meanwhile: what the Trainer takes comes on top.\n",
        "## Encoded anew, or kept\n",
        "The measured lists were made with keys and values that are kept of each user from list to list. By default "
        f"most are not: a new version makes what is kept void, and one comes every `trainer.interval_s` "
        f"({interval_s:g} s), so who acts no more often is encoded anew for each list, whatever the memory; and the "
        f"{serving.states_mib} MiB of a replica (`serving.states_mib`) hold {costs.held_users:,} users with full "
        f"histories, those of {_rounded(costs.held_users / _S_BETWEEN_EVENTS)} events/s. Hence two ways:\n",
        f"- *anew*, the default: each list takes {costs.anew_ms:.2g} ms more.",
        f"- *kept*: `trainer.interval_s` is {_S_BETWEEN_VERSIONS:g}, and `serving.states_mib` has room for all "
        "active users, in Recommenders and, as those who act also ask, again in Gateways: "
        f"{_HOLDERS * costs.state_kib:.4g} KiB a user. With each version each of them is encoded anew once by both.\n",
    ]


def _steps(costs: Costs) -> list[str]:
    rows = []
    for below, rate in zip((0, *RATES), RATES, strict=False):
        for kept in (False, True):
            cores = costs.cores(rate, kept)
            memory_gib = costs.memory_gib(rate) if kept else 0.0
            machines = max(
                math.ceil(sum(cores.values()) / (_USED * _CORES)), math.ceil(memory_gib / (_USED * _MEMORY_GIB))
            )
            order = sorted(limits(costs), key=lambda limit, kept=kept: limit.at(kept))  # type: ignore[misc]
            new = [limit for limit in order if below <= limit.at(kept) < rate]
            nothing = "nothing else" if rate > order[0].at(kept) else "nothing"
            cells = [
                f"{rate:,}",
                "kept" if kept else "anew",
                *(_rounded(cores[part]) for part in _PARTS),
                _rounded(sum(cores.values())),
                f"{_rounded(memory_gib)} GiB for {_rounded(rate * _S_BETWEEN_EVENTS)} users" if kept else "as set",
                f"{machines:,}" if rate <= costs.store_breaks_at(kept) else f"none ({machines:,})",
                f"{new[0].what}; at {_rounded(new[0].at(kept))} events/s" if new else nothing,
            ]
            rows.append(f"| {' | '.join(cells)} |")
    parts = " | ".join(part.replace("_", " ") for part in _PARTS)
    return [
        "## Machines\n",
        "Cores that each part keeps busy, all of them together, the keys and values of active users, the machines that "
        "hold both, and what breaks first on the way from the rate before. *None*: as the program is, the store is one "
        "machine's, and no number of machines does it; in brackets, how many the costs come to once that is no more "
        "so.\n",
        f"| Events/s | Histories | {parts} | All cores | Keys and values | Machines | Breaks first |",
        "|---" * (len(_PARTS) + 6) + "|",
        *rows,
        "",
    ]


def _order(costs: Costs) -> list[str]:
    rows = [
        f"| {' | '.join('-' if at == _NEVER else _rounded(at) for at in (limit.anew, limit.kept))} "
        f"| {limit.what} | {limit.remedy} |"
        for limit in limits(costs)
    ]
    return [
        "## What breaks, in order\n",
        "As the program is, with the default settings but for those two of *kept*.\n",
        "| At events/s, anew | kept | What | What to do |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _by_part(result: Result, prefix: str, idle: Sequence[str]) -> dict[str, float]:
    named = {name[len(prefix) :]: ms for name, ms in result.details.items() if name.startswith(prefix)}
    return {part: ms for part, ms in named.items() if part in _PARTS and part not in idle}


def _rounded(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"
