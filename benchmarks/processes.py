"""CPU time of the processes that were started, by the part they play."""

import contextlib
import re
from collections import defaultdict
from typing import Final

import psutil

_REPLICA: Final = re.compile(r"ServeReplica:[^:]+:(\w+)")


class CpuByPart:
    """Adds up CPU seconds of the broker, of each deployment and of the rest of Ray, while it is entered."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> None:
        self._before = _snapshot()

    def __exit__(self, *_: object) -> None:
        for (pid, part), seconds in _snapshot().items():
            self.seconds[part] += seconds - self._before.get((pid, part), 0.0)

    def details(self, unit: str, count: int) -> dict[str, float]:
        """CPU milliseconds of each part for one of `count` units, the costliest part first."""
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {f"cpu_ms_per_{unit}_{part}": float(f"{seconds / count * 1e3:.3g}") for part, seconds in parts}


def part_of(title: str) -> str:
    """The part a process plays, by its command line.

    >>> part_of("ray::ServeReplica:pinrec:Recommender.handle_request")
    'recommender'
    """
    if replica := _REPLICA.search(title):
        return replica[1].lower()
    if "ray::ProxyActor" in title or "haproxy" in title.lower():
        return "http_proxy"
    return "broker" if "kafka.Kafka" in title else "rest_of_ray"


def _snapshot() -> dict[tuple[int, str], float]:
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid, part_of(" ".join(process.cmdline()))] = times.user + times.system
    return found
