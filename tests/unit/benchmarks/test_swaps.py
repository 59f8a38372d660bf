from types import SimpleNamespace

import pytest

from benchmarks.result import BenchmarkError
from benchmarks.sustained import Asked, Sustained
from benchmarks.swaps import Watched, flips, results, swap_windows


def asked(due, version, ms=10.0):
    return Asked(due, ms, version)


def test_a_flip_is_the_first_answer_of_a_version_whoever_asked_first():
    queries = [asked(0, "v1"), asked(1, "v1"), asked(2, "v2", ms=5_000), asked(3, "v2"), asked(4, "v2")]
    assert flips(queries) == {"v2": pytest.approx(3.01)}, "the one before it was due earlier and answered later"


def test_a_swap_begins_with_the_publishing_that_made_the_version():
    phases = [(float(t), "publishing" if t in (10, 11, 12, 30, 31) else "idle") for t in range(60)]
    assert swap_windows({"v2": 14.0, "v3": 33.0}, phases) == [(10.0, 19.0), (30.0, 38.0)]
    assert swap_windows({"v2": 5.0}, phases) == [(0.0, 10.0)], "nobody saw it publish"


def application(tmp_path, interval_s=60.0, items=100_000):
    return SimpleNamespace(
        town=SimpleNamespace(inhabitants=10, items=items),
        topics=[["item-1"], ["item-2"]],
        settings=SimpleNamespace(trainer=SimpleNamespace(interval_s=interval_s), state=SimpleNamespace(root=tmp_path)),
        start_seconds=1.0,
    )


def a_run(during_ms=12.0, swaps=4, failures=(), older=0, steady_ms=10.0):
    """A query every tenth of a second; each minute a new version, published for 4 s and live at the end of them."""
    queries, phases = [], []
    for tenth in range(swaps * 600 + 300):
        t = tenth / 10
        swapping = 40 <= t % 60 < 49
        queries.append(asked(t, f"v{int((t + 16) // 60)}", during_ms if swapping else steady_ms))
        phases.append((t, "publishing" if 40 <= t % 60 < 44 else "idle"))
    until = {f"v{n}": 60 * n - 16 - 50.0 for n in range(1, swaps + 1)}
    return Sustained(100, queries, list(failures), older), Watched(phases, until)


def test_swaps_are_compared_with_the_time_between_them(tmp_path):
    p6, p6b = results(application(tmp_path), *a_run(), 5.0, False, 1.0)
    assert (p6.value, p6.baseline, p6.ratio, p6.met) == (12.0, 10.0, 1.2, True)
    assert (p6.details["swaps"], p6.details["failed"]) == (4, 0)
    assert p6b.value == pytest.approx(50.0, abs=0.1)
    assert p6b.met
    slow, _ = results(application(tmp_path), *a_run(during_ms=13.0), 5.0, False, 1.0)
    assert not slow.met


def test_what_the_gate_refused_is_told_by_check(tmp_path):
    sustained, seen = a_run()
    for version, checks in (("v1", ["recall"]), ("v1", ["recall"]), ("v2", ["recall", "diversity"])):
        refused = {"version": version, "refusals": [{"check": check} for check in checks]}
        seen.look(SimpleNamespace(trainer={"phase": "idle", "last_refused": refused}))
    p6, _ = results(application(tmp_path), sustained, seen, 5.0, False, 1.0)
    found = {name: value for name, value in p6.details.items() if name.startswith("refused")}
    assert found == {"refused": 2, "refused_by_recall": 2, "refused_by_diversity": 1}


def test_where_queries_wait_for_each_other_the_ratio_says_nothing(tmp_path):
    p6, _ = results(application(tmp_path), *a_run(during_ms=1_500.0, steady_ms=1_500.0), 5.0, False, 1.0)
    assert (p6.ratio, p6.met) == (1.0, False)


@pytest.mark.parametrize("wrong", [{"failures": ["503: busy"]}, {"older": 1}])
def test_one_failed_or_older_answer_misses_the_goal(tmp_path, wrong):
    p6, _ = results(application(tmp_path), *a_run(**wrong), 5.0, False, 1.0)
    assert not p6.met


def test_the_age_counts_only_at_the_size_and_interval_of_the_goal(tmp_path):
    assert not results(application(tmp_path, items=2_000), *a_run(), 5.0, False, 1.0)[1].met
    assert not results(application(tmp_path, interval_s=10), *a_run(), 5.0, False, 1.0)[1].met


def test_too_few_swaps_and_no_answers_are_no_measure(tmp_path):
    with pytest.raises(BenchmarkError, match="2 versions went live"):
        results(application(tmp_path), *a_run(swaps=2), 5.0, False, 1.0)
    with pytest.raises(BenchmarkError, match="503: busy"):
        results(application(tmp_path), Sustained(0, [], ["503: busy"]), Watched(), 5.0, False, 1.0)
