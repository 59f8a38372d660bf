"""What a demo saw: counts and latencies, and whether the loop closed."""

import threading
from collections import deque
from typing import Any, Final

import numpy as np

_KEPT: Final = 200_000


class Latencies:
    """Milliseconds; the newest 200,000 are kept."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_KEPT)

    def add(self, milliseconds: float) -> None:
        """Note one."""
        self._values.append(milliseconds)

    def __len__(self) -> int:
        return len(self._values)

    def summary(self, newest: int = _KEPT) -> dict[str, float]:
        """p50, p95 and p99 of the newest ones, ms; empty if there are none."""
        values = np.array(list(self._values)[-newest:])
        if not len(values):
            return {}
        return {f"p{p}": round(float(np.percentile(values, p)), 2) for p in (50, 95, 99)}


class Report:
    """Counters of a running demo; several threads write, each its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.published = 0
        self.item_updates = 0
        self.received = 0
        self.received_degraded = 0
        self.freshness = Latencies()
        self.http_ok = 0
        self.http_failed = 0
        self.http_latency = Latencies()
        self.failures: deque[str] = deque(maxlen=20)
        self.versions: dict[str, int] = {}
        self.live_from = 0.0
        self.trained_live = False
        self.startup_s: dict[str, float] = {}
        self.peak_memory_gib = 0.0

    def answered_by(self, version: str) -> None:
        """Note which version an HTTP answer came from."""
        self.versions[version] = self.versions.get(version, 0) + 1

    def problems(self) -> list[str]:
        """Why the loop did not close; empty if it did."""
        found = []
        if not self.published:
            found.append("no event was published")
        if not self.received:
            found.append("no recommendation arrived on the topic")
        elif not len(self.freshness):
            found.append("no recommendation answered a live event")
        if not self.http_ok:
            found.append("no HTTP request was answered")
        if self.http_failed:
            found.append(f"{self.http_failed} HTTP requests failed, e.g. {self.failures[-1]}")
        if len(self.versions) < 2:
            found.append(f"no swap was seen: all answers came from {', '.join(self.versions) or 'nowhere'}")
        if not self.trained_live:
            found.append("no version was trained on the live events")
        return found

    def as_json(self, seconds: float, status: dict[str, Any]) -> dict[str, Any]:
        """The report; see `pinrec demo --help`."""
        problems = self.problems()
        return {
            "ok": not problems,
            "problems": problems,
            "seconds": round(seconds, 1),
            "startup_s": {name: round(value, 1) for name, value in self.startup_s.items()},
            "events": {"published": self.published, "per_s": round(self.published / max(seconds, 1e-9), 1)},
            "item_updates": self.item_updates,
            "recommendations": {
                "received": self.received,
                "degraded": self.received_degraded,
                "freshness_ms": self.freshness.summary(),
            },
            "http": {
                "answered": self.http_ok,
                "failed": self.http_failed,
                "failures": list(self.failures),
                "latency_ms": self.http_latency.summary(),
            },
            "models": {"answers_by_version": self.versions, "trained_on_live_events": self.trained_live},
            "peak_memory_gib": round(self.peak_memory_gib, 2),
            "status": status,
        }
