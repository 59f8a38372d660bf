"""What the page says of a measure beside its JSON: how it is to be read, and what was found out about a miss."""

from collections.abc import Mapping
from typing import Final

from benchmarks.result import Result
from benchmarks.scale import growth

_NOTES: Final[Mapping[str, str]] = {
    "P3": (
        "Met judges the time alone. Recall is that of a real log ([KuaiRand-Pure]"
        "(quality.md#ablations-on-kuairand-pure-2-folds); sixteen embeddings in one step against sixteen steps of one, "
        "there of four outcomes and four offsets). By the paper's measure, unordered@10, it is not lower but higher "
        "(+27.1 %); in lists of an equal number of distinct items, equal@160, it is slightly lower (-1.6 %)."
    ),
    "P4": (
        "Where the time goes, by a sampling profiler on the Gateway at 16 connections: of the time its interpreter's "
        "lock is held, 59 % is the event loop (uvicorn, Serve's direct ingress, ASGI layers; ours about a tenth) and "
        "40 % the thread that makes lists (searching and filling lists 15 points, embeddings 11, writing answers as "
        "JSON 8, looking up what is kept 4). Batches held 7.8 queries then. Tried without gain, queries/s "
        "against those of the program as it is: at most half of those outstanding in a batch, two groups in turn "
        "(1,407 and 1,510 against 1,633 and 1,290); generating on the event loop itself instead of in a thread (1,384 "
        "and 1,286 against 1,491); and earlier, letting the loop turn before a batch, a shorter switch interval, "
        "prefetching pages."
    ),
    "P4b": "On what a Gateway spends its time, and what was tried against it, is told at [P4](#p4).",
    "P11": (
        "Value and baseline are where that straight line ends and begins, and no medians. The samples are looks of one "
        "run, so the spread tells how memory moved, not how well the figure repeats: those of the baseline are of the "
        "first half of the time, the warm-up among them, those of the value of the second."
    ),
}


def note_of(result: Result) -> str | None:
    """What is said of a measure beside its protocol; None where nothing is."""
    if result.id != "P13":
        return _NOTES.get(result.id)
    below, largest, exponents = growth(result.details)
    listed = ", ".join(f"{name.replace('_', ' ')} {exponent:.2f}" for name, exponent in exponents.items())
    return (
        f"Growth from {below:,} to {largest:,} alone, as an exponent (1 is in proportion, 0 is not at all): {listed}. "
        "Over more decades it would be hidden, as what does not grow at all is most of a small size's figures."
    )
