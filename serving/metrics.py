"""The status as Prometheus metrics: few labels, one list of names.

python -m serving.metrics    # docs/metrics.md again
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, Metric, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from pinrec.versions import version_number
from serving.api import Status
from serving.timings import BATCH_BOUNDS, STAGE_BOUNDS_MS, STAGES, together

METRICS: Final[dict[str, str]] = {
    "pinrec_ready": "1 when a model is live",
    "pinrec_troubles": "number of things that are wrong (see /v1/status)",
    "pinrec_users": "users with a history",
    "pinrec_staleness_ms": "age of the newest moment that every history includes, worst replica, ms; NaN if not known",
    "pinrec_events_applied": "events applied since start, all ingestors",
    "pinrec_events_duplicate": "duplicates dropped since start, all ingestors",
    "pinrec_dead_letters": "events refused since start, all ingestors",
    "pinrec_lag_events": "events in Kafka that are not applied yet, all partitions",
    "pinrec_lists_owed": "lists for new events that are not published yet, all ingestors",
    "pinrec_queries_answered": "queries answered since start, all replicas",
    "pinrec_lists_generated": "lists made for new events since start, all replicas",
    "pinrec_queries_refused": "queries answered with 503, as too many waited or they had waited too long, all replicas",
    "pinrec_lists_superseded": "events that waited when the next one of their user came: one list is made for both",
    "pinrec_lists_given_up": "lists for new events that could not be made since start, all replicas; the log says why",
    "pinrec_waiting_queries": "queries that wait, all replicas",
    "pinrec_waiting_users": "users with new events that wait, all replicas",
    "pinrec_states_users": "users whose keys and values are kept, all replicas",
    "pinrec_states_bytes": "memory that they take, all replicas",
    "pinrec_states_hits": "histories encoded from what was kept since start, all replicas",
    "pinrec_states_misses": "histories encoded anew since start, all replicas",
    "pinrec_states_evictions": "users dropped to make room since start, all replicas",
    "pinrec_items_changed": "new and changed items that the model version does not have, most of any replica",
    "pinrec_items_deleted": "items of the model version that are there no more, most of any replica",
    "pinrec_items_left_out": "item updates that found no room and wait for the next model version, most of any replica",
    "pinrec_items_updates": "item updates taken since start, all replicas",
    "pinrec_items_bad": "item updates since start that hold no item, most of any replica",
    "pinrec_items_read_age_s": "time since all item updates were known to be read, worst replica, s; NaN if not known",
    "pinrec_model_swaps": "models gone live since start, all replicas",
    "pinrec_replicas_behind": "replicas that cannot load the model they should serve and go on with an older one",
    "pinrec_models_refused": "models refused since start, all replicas",
    "pinrec_trainer_rounds": "versions published since start",
    "pinrec_trainer_recall": "recall@10 of the version that served on what it was not trained on; NaN if not known",
    "pinrec_trainer_candidate_recall": "the same of the version that was to follow it, on the same events",
    "pinrec_trainer_gap": "1 when the archive lacks records",
    "pinrec_candidates_refused": "candidates that the gate refused since the trainer started",
    "pinrec_rollbacks": "versions taken back because users engaged with them less, since the trainer started",
}
VERSION_METRICS: Final[dict[str, str]] = {
    "pinrec_version_impressions": "items of a version's lists that users were shown",
    "pinrec_version_engaged": "of these, how many they engaged with",
    "pinrec_gate_figure": "what the newest refused candidate reached in a check that it failed",
    "pinrec_gate_bound": "what it had to reach",
}
"""With the label `version`, and those of the gate with `check` too."""
HISTOGRAMS: Final[dict[str, str]] = {
    "pinrec_stage_ms": "how long a stage took since start, all replicas, ms",
    "pinrec_batch_size": "queries and users with new events that were worked on together since start, all replicas",
}
"""The first with the label `stage`, one of `serving.timings.STAGES`."""
_VERSIONS: Final = 5
_PAGE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"


def render(status: Status) -> str:
    """All metrics in Prometheus's text format."""
    trainer = status.trainer or {}
    measured = trainer.get("metrics") or {}
    replicas = [*status.gateways, *status.recommenders]
    values = {
        "pinrec_ready": float(status.ready),
        "pinrec_troubles": len(status.degraded),
        "pinrec_users": status.users or 0,
        "pinrec_staleness_ms": _worst([r["staleness_ms"] for r in replicas]),
        "pinrec_events_applied": _sum(status.ingestors, "applied"),
        "pinrec_events_duplicate": _sum(status.ingestors, "duplicates"),
        "pinrec_dead_letters": _sum(status.ingestors, "dead_letters"),
        "pinrec_lag_events": _sum(status.ingestors, "lag"),
        "pinrec_lists_owed": _sum(status.ingestors, "owed"),
        "pinrec_queries_answered": _sum(replicas, "queries_answered"),
        "pinrec_lists_generated": _sum(replicas, "lists_generated"),
        "pinrec_queries_refused": _sum(replicas, "queries_refused"),
        "pinrec_lists_superseded": _sum(replicas, "lists_superseded"),
        "pinrec_lists_given_up": _sum(replicas, "lists_given_up"),
        "pinrec_waiting_queries": _sum(replicas, "waiting_queries"),
        "pinrec_waiting_users": _sum(replicas, "waiting_users"),
        **{
            f"pinrec_states_{name}": sum(r["states"][name] for r in replicas)
            for name in ("users", "bytes", "hits", "misses", "evictions")
        },
        **{
            f"pinrec_items_{name}": max((r["items"][name] for r in replicas), default=0)
            for name in ("changed", "deleted", "left_out", "bad")
        },
        "pinrec_items_updates": sum(r["items"]["updates"] for r in replicas),
        "pinrec_items_read_age_s": _worst([r["items"]["read_age_s"] for r in replicas]),
        "pinrec_model_swaps": _sum(replicas, "swaps"),
        "pinrec_replicas_behind": sum(r["behind"] is not None for r in replicas),
        "pinrec_models_refused": sum(len(r["refused"]) for r in replicas),
        "pinrec_trainer_rounds": trainer.get("rounds", 0),
        "pinrec_trainer_recall": measured.get("recall@10", math.nan),
        "pinrec_trainer_candidate_recall": measured.get("candidate_recall@10", math.nan),
        "pinrec_trainer_gap": float(trainer.get("gap") is not None),
        "pinrec_candidates_refused": trainer.get("refused", 0),
        "pinrec_rollbacks": trainer.get("rollbacks", 0),
    }
    registry = CollectorRegistry()
    for name, meaning in METRICS.items():
        Gauge(name, meaning, registry=registry).set(values[name])
    _by_version(registry, trainer)
    registry.register(_Histograms(replicas))
    return generate_latest(registry).decode()


class _Histograms(Collector):
    """Histograms that were counted elsewhere."""

    def __init__(self, replicas: Sequence[dict[str, Any]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        stages, batches = (
            HistogramMetricFamily(name, meaning, labels=["stage"] if "stage" in name else [])
            for name, meaning in HISTOGRAMS.items()
        )
        for stage in STAGES:
            stages.add_metric([stage], *together([r["stages_ms"][stage] for r in self._replicas], STAGE_BOUNDS_MS))
        batches.add_metric([], *together([r["batch_size"] for r in self._replicas], BATCH_BOUNDS))
        yield from (stages, batches)


def _worst(known: list[float | None]) -> float:
    figures = [figure for figure in known if figure is not None]
    return max(figures) if figures and len(figures) == len(known) else math.nan


def _by_version(registry: CollectorRegistry, trainer: dict[str, Any]) -> None:
    gauges = {
        name: Gauge(name, meaning, ["version", "check"] if "gate" in name else ["version"], registry=registry)
        for name, meaning in VERSION_METRICS.items()
    }
    outcomes = trainer.get("outcomes", {})
    for version in sorted(outcomes, key=version_number)[-_VERSIONS:]:
        for name in ("impressions", "engaged"):
            gauges[f"pinrec_version_{name}"].labels(version).set(outcomes[version][name])
    last = trainer.get("last_refused") or {"refusals": ()}
    for refusal in last["refusals"]:
        for name in ("figure", "bound"):
            value = math.nan if refusal[name] is None else refusal[name]
            gauges[f"pinrec_gate_{name}"].labels(last["version"], refusal["check"]).set(value)


def _sum(replicas: Iterable[dict[str, float]], name: str) -> float:
    return sum(replica[name] for replica in replicas)


def page() -> str:
    """docs/metrics.md."""
    labelled = {name: "`version`, `check`" if "gate" in name else "`version`" for name in VERSION_METRICS}
    labelled |= {name: "`stage`" if "stage" in name else "" for name in HISTOGRAMS}
    lines = [
        "# Metrics",
        "",
        "What `GET /metrics` gives to Prometheus, from `serving/metrics.py`; this page is made by "
        "`python -m serving.metrics`. A unit is the end of a name (`_ms`, `_s`, `_bytes`); what has none is a count, a "
        "share or 0 and 1. `/v1/status` has the same figures for each replica.",
        "",
        "| Name | Labels | Meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {labelled.get(name, '')} | {meaning} |" for name, meaning in _all().items()),
        "",
        "Stages of `pinrec_stage_ms`, a histogram as `pinrec_batch_size` is one:",
        "",
        "| Stage | How long |",
        "|---|---|",
        *(f"| {stage} | {meaning} |" for stage, meaning in STAGES.items()),
    ]
    return "\n".join(lines) + "\n"


def _all() -> dict[str, str]:
    return METRICS | VERSION_METRICS | HISTOGRAMS


if __name__ == "__main__":
    _PAGE.write_text(page())
