"""The highest load that is borne."""

from collections.abc import Callable

from benchmarks.result import BenchmarkError


def search(attempt: Callable[[float], bool], close: float, first: float, most: float) -> float:
    """The highest rate that is good: doubled until one is bad, then halved on a scale of logarithms.

    Args:
        attempt: whether a rate is good.
        close: ratio of the lowest bad rate to the result.
        first, most: where to begin, and where to end at the latest.

    Raises:
        BenchmarkError: the first rate is bad, and so is a sixteenth of it.
    """
    good = first
    while not attempt(good):
        good /= 4
        if good < first / 16:
            raise BenchmarkError(f"at {good * 4:g} a second answers already come too late")
    bad = 2 * good
    while bad <= most and attempt(bad):
        good, bad = bad, 2 * bad
    if bad > most:
        return good
    while bad / good > close:
        middle = float(f"{(good * bad) ** 0.5:.2g}")
        if middle in (good, bad):
            break
        good, bad = (middle, bad) if attempt(middle) else (good, middle)
    return good
