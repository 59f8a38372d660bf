import pytest

from benchmarks.capacity import DOCUMENT, NEEDED, Costs, limits, render
from benchmarks.command import RESULTS
from benchmarks.report import read_results
from benchmarks.result import Stage
from serving.config import AppSettings
from tests.unit.benchmarks.test_report import result

COSTS = Costs(
    event_ms={"broker": 0.2, "ingestor": 0.25, "recommender": 0.5},
    query_ms={"gateway": 2.0, "recommender": 2.0, "http_proxy": 0.2},
    store_us=2.0,
    state_kib=128.0,
    user_bytes=500.0,
)


def measured():
    return [
        result(
            id="P1b",
            details={
                "cpu_ms_per_event_recommender": 0.5,
                "cpu_ms_per_event_ingestor": 0.25,
                "cpu_ms_per_event_gateway": 9.0,
            },
        ),
        result(id="P4", details={"cpu_ms_per_query_gateway": 2.0, "cpu_ms_per_query_broker": 9.0}),
        result(
            id="P5", stages=[Stage(name="poll", value=9.0, unit="us"), Stage(name="store: x", value=2.0, unit="us")]
        ),
        result(id="P10", details={"user_of_256_events_int8_kib": 128.0, "user_of_256_events_float32_kib": 256.0}),
        result(id="P13", details={"store_mib_at_100": 1.0, "store_mib_at_1048576": 500.0}),
    ]


def test_page_is_what_the_results_give():
    assert DOCUMENT.read_text() == render(read_results(RESULTS)), "run `python -m benchmarks --report`"


def test_costs_are_those_of_the_results_and_idle_parts_are_no_ones_cost():
    costs = Costs.of({r.id: r for r in measured()})
    assert costs == Costs({"recommender": 0.5, "ingestor": 0.25}, {"gateway": 2.0}, 2.0, 128.0, 500.0)


def test_cores_are_costs_times_rates():
    cores = COSTS.cores(1_000)
    assert cores["recommender"] == pytest.approx(1_000 * 0.5e-3 + 250 * 2e-3)
    assert cores["ingestor"] == pytest.approx(0.25)
    assert sum(cores.values()) == pytest.approx(2.0)


def test_what_breaks_stands_in_order_and_moves_with_its_setting():
    order = limits(COSTS)
    assert [limit.events_per_s for limit in order] == sorted(limit.events_per_s for limit in order)
    by_text = {limit.what: limit.events_per_s for limit in order}
    assert by_text["the processors of one machine (16 cores)"] == pytest.approx(9.6 / 2e-3)
    assert next(at for what, at in by_text.items() if "one writer" in what) == pytest.approx(500_000)
    more = AppSettings.model_validate({"kafka": {"partitions": 64}})
    (before,), (after,) = ([x for x in limits(COSTS, s) if "partitions (" in x.what] for s in (None, more))
    assert after.events_per_s == pytest.approx(8 * before.events_per_s) == 64 / 0.25e-3


def test_page_names_machines_and_what_breaks_first():
    page = render(measured())
    row = next(line for line in page.splitlines() if line.startswith("| 10,000,000 |"))
    cores = 10e6 * 0.75e-3 + 2.5e6 * 2e-3
    memory_gib = 600e6 * 128 / 2**20
    assert f"| {max(-(-cores // 9.6), -(-memory_gib // 38.4)):,.0f} |" in row
    order = limits(Costs.of({r.id: r for r in measured()}))
    assert next(limit.what for limit in order if limit.events_per_s >= 100_000) in row
    assert order[0].what in next(line for line in page.splitlines() if line.startswith("| 100,000 |"))
    assert "| nothing |" in next(line for line in page.splitlines() if line.startswith("| 1,000 |"))
    assert "Not computed yet" not in page


def test_a_missing_measure_is_named_with_the_command_that_takes_it():
    page = render([r for r in measured() if r.id != "P10"])
    assert "P10 are missing; `.venv/bin/python -m benchmarks --only P10`" in page
    assert set(NEEDED) == {r.id for r in measured()}
    assert "not to be quoted" in render([r.model_copy(update={"quick": True}) for r in measured()])
