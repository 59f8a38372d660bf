from types import SimpleNamespace

import pytest

from benchmarks.result import BenchmarkError
from benchmarks.soak import Look, Watched, growth, result
from benchmarks.sustained import Asked, Sustained


def looks(grows=0.0, lag=3, count=40):
    """1,000 MiB once warm, a look every 10 s; the recommender grows by so many MiB a look."""
    warm = count // 8
    return [
        Look(10.0 * i, {"recommender": 400 + 40 * min(i, warm) + grows * i, "broker": 400.0}, lag if i > 30 else 3)
        for i in range(count)
    ]


def measured(tmp_path, watched, failures=()):
    application = SimpleNamespace(
        town=SimpleNamespace(inhabitants=10, items=10),
        settings=SimpleNamespace(trainer=SimpleNamespace(interval_s=60), state=SimpleNamespace(root=tmp_path)),
        start_seconds=1.0,
    )
    sustained = Sustained(100, [Asked(float(i), 10.0, "v1") for i in range(100)], list(failures))
    return result(application, sustained, Watched(watched), 20.0, False, 1.0)


def test_memory_that_grows_while_it_warms_up_is_flat(tmp_path):
    assert growth(looks()) == (pytest.approx(1_000), pytest.approx(0, abs=1e-6))
    taken = measured(tmp_path, looks())
    assert (taken.value, taken.ratio, taken.met) == (1_000, 1, True)


def test_growth_lag_and_failures_each_miss_the_goal(tmp_path):
    leaking = measured(tmp_path, looks(grows=2.0))
    assert not leaking.met
    assert leaking.details["grown_mib_recommender"] == pytest.approx(58, abs=3)
    assert leaking.details["grown_mib_broker"] == pytest.approx(0, abs=1e-6)
    assert not measured(tmp_path, looks(lag=1_000)).met
    assert not measured(tmp_path, looks(), failures=["503: busy"]).met


def test_without_looks_or_answers_there_is_no_measure(tmp_path):
    with pytest.raises(BenchmarkError, match="measure for longer"):
        measured(tmp_path, looks(count=3))
