import pytest

from benchmarks.capacity import DOCUMENT, NEEDED, Costs, limits, render
from benchmarks.command import RESULTS
from benchmarks.report import read_results
from serving.config import AppSettings
from tests.unit.benchmarks.test_report import result

COSTS = Costs(
    event_ms={"broker": 0.2, "ingestor": 0.25, "recommender": 0.5},
    query_ms={"gateway": 2.0, "recommender": 2.0, "http_proxy": 0.2},
    anew_ms=1.0,
    superseded=0.5,
    store_us=2.0,
    stored_users=100,
    state_kib=128.0,
    held_users=1_200,
)


def measured():
    return [
        result(
            id="P1b",
            details={
                "superseded_share": 0.75,
                "cpu_ms_per_event_recommender": 0.5,
                "cpu_ms_per_event_ingestor": 0.25,
                "cpu_ms_per_event_gateway": 9.0,
            },
        ),
        result(
            id="P2",
            details={"encoding_anew_at_256_batch_16_ms": 33.0, "encoding_after_one_event_at_256_batch_16_ms": 1.0},
        ),
        result(id="P4", details={"cpu_ms_per_query_gateway": 2.0, "cpu_ms_per_query_broker": 9.0}),
        result(
            id="P10",
            details={
                "user_of_256_events_int8_kib": 128.0,
                "user_of_256_events_float32_kib": 256.0,
                "users_of_256_events_in_256_mib": 2_048.0,
            },
        ),
        result(id="P13", details={"store_apply_us_per_event_at_100": 1.0, "store_apply_us_per_event_at_20000": 20.0}),
    ]


def line(page, start):
    return next(text for text in page.splitlines() if text.startswith(start))


def test_page_is_what_the_results_give():
    assert DOCUMENT.read_text() == render(read_results(RESULTS)), "run `python -m benchmarks --report`"


def test_costs_are_those_of_the_results_and_idle_parts_are_no_ones_cost():
    costs = Costs.of({r.id: r for r in measured()})
    events = {"recommender": 2.0, "ingestor": 0.25}
    assert costs == Costs(events, {"gateway": 2.0}, 2.0, 0.75, 20.0, 20_000, 128.0, 2_048)


def test_a_list_costs_what_the_events_cost_that_had_one():
    """Of a Recommender's CPU time nothing goes to events that were superseded: fewer lists, each of them dearer."""
    cost = {}
    for share in (0.0, 0.75):
        (p1b, *others) = measured()
        p1b = p1b.model_copy(update={"details": {**p1b.details, "superseded_share": share}})
        cost[share] = Costs.of({r.id: r for r in (p1b, *others)}).event_ms
    assert cost[0.75]["recommender"] == pytest.approx(4 * cost[0.0]["recommender"])
    assert cost[0.75]["ingestor"] == cost[0.0]["ingestor"]


def test_cores_are_costs_times_rates():
    cores = COSTS.cores(1_000, kept=False)
    assert cores["recommender"] == pytest.approx(1_000 * 1.5e-3 + 250 * 2e-3)
    assert cores["gateway"] == pytest.approx(250 * 3e-3)
    assert cores["ingestor"] == pytest.approx(0.25)
    assert sum(cores.values()) == pytest.approx(3.25)


def test_what_is_kept_is_encoded_anew_once_a_version_by_who_acts_and_by_who_asks():
    """A version an hour, an event a minute, a query every four minutes: a sixtieth and a fifteenth of the lists."""
    anew, kept = (COSTS.cores(1_000, kept) for kept in (False, True))
    assert anew["recommender"] - kept["recommender"] == pytest.approx(1.0 * 59 / 60)
    assert anew["gateway"] - kept["gateway"] == pytest.approx(0.25 * 14 / 15)


def test_active_users_take_their_memory_twice():
    assert COSTS.memory_gib(1_000) == pytest.approx(2 * 60_000 * 128 / 2**20)


def test_what_breaks_stands_in_order_and_moves_with_its_setting():
    order = limits(COSTS)
    by_text = {limit.what: limit for limit in order}
    at = [limit.anew for limit in order if "memory" not in limit.what]
    assert at == sorted(at)
    assert by_text["the processors of one machine (16 cores)"].anew == pytest.approx(9.6 / 3.25e-3)
    memory = next(limit for what, limit in by_text.items() if "memory of one machine" in what)
    assert memory.kept == pytest.approx(38.4 / COSTS.memory_gib(1))
    assert memory.anew == float("inf"), "who is encoded anew is not kept"
    writer = next(limit for what, limit in by_text.items() if "one writer" in what)
    assert "with 100 users in it" in writer.what
    assert writer.anew == writer.kept == pytest.approx(500_000)
    more = AppSettings.model_validate({"kafka": {"partitions": 64}})
    (before,), (after,) = ([x for x in limits(COSTS, s) if "partitions (" in x.what] for s in (None, more))
    assert after.anew == pytest.approx(8 * before.anew) == 64 / 0.25e-3


def test_versions_that_are_rarer_bring_more_events_to_each():
    (trainer,) = (limit for limit in limits(COSTS) if "Trainer" in limit.what)
    assert (trainer.anew, trainer.kept) == (pytest.approx(2_000_000 / 60), pytest.approx(2_000_000 / 3_600))


def test_page_names_machines_and_what_breaks_first():
    page, costs = render(measured()), Costs.of({r.id: r for r in measured()})
    order = limits(costs)
    assert f"{order[0].what}; at" in line(page, "| 100,000 | anew |")
    assert line(page, "| 1,000 | anew |").endswith("| nothing |")
    assert "the Trainer" in line(page, "| 1,000 | kept |")
    assert "Not computed yet" not in page


def test_machines_are_as_many_as_cores_and_memory_ask_for():
    page, costs = render(measured()), Costs.of({r.id: r for r in measured()})
    for way, kept in (("anew", False), ("kept", True)):
        few, many = (
            max(
                -(-sum(costs.cores(rate, kept).values()) // 9.6),
                -(-costs.memory_gib(rate) // 38.4) if kept else 0,
            )
            for rate in (1_000, 10_000_000)
        )
        assert f"| {few:,.0f} |" in line(page, f"| 1,000 | {way} |")
        assert f"| none ({many:,.0f}) |" in line(page, f"| 10,000,000 | {way} |"), "the store is one machine's"


def test_page_says_what_the_default_budget_holds_and_where_each_premise_is_from():
    page = render(measured())
    assert "hold 2,048 users with full histories, those of 34 events/s" in page
    for premise in ("| 75% | [P1b]", "| 2 ms | [P2]", "| 20 us | [P13](performance.md#p13): 20,000 users"):
        assert premise in page


def test_a_missing_measure_is_named_with_the_command_that_takes_it():
    page = render([r for r in measured() if r.id != "P10"])
    assert "P10 are missing; `.venv/bin/python -m benchmarks --only P10`" in page
    assert set(NEEDED) == {r.id for r in measured()}
    assert "not to be quoted" in render([r.model_copy(update={"quick": True}) for r in measured()])
