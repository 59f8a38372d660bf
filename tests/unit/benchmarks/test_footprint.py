import time

import pytest

from benchmarks import footprint, scale
from pinrec.bundle import Bundle


def test_the_stages_of_a_start_are_all_of_it(tmp_path):
    sizes = footprint.bundle_of_items(tmp_path / "models", 50)
    load, began = Bundle.load, time.time()
    started = footprint.start(tmp_path / "models", began)
    assert started.seconds == pytest.approx(time.time() - began, abs=0.2 * started.seconds + 0.05)
    assert set(started.stages) == {
        "process and imports",
        *(stage for *_, stage in footprint.PARTS),
        "manifest, table and the rest",
        "first list",
    }
    assert all(seconds >= 0 for seconds in started.stages.values())
    assert Bundle.load == load, "the functions that were timed are themselves again"
    assert sizes["table_float32_mib_per_million_items"] > 3 * sizes["table_int8_mib_per_million_items"] > 0


def test_memory_of_a_user_is_in_proportion_to_history_and_type(monkeypatch):
    monkeypatch.setattr(footprint, "_HISTORIES", (32, 128))
    kib = footprint.memory_of_users(2)
    # 2 layers, keys and values 64 wide, 2 bytes each
    assert kib["user_of_32_events_bfloat16_kib"] == 32 * 2 * 2 * 64 * 2 / 1024
    assert kib["user_of_128_events_bfloat16_kib"] == 4 * kib["user_of_32_events_bfloat16_kib"]
    assert kib["user_of_128_events_float32_kib"] == 2 * kib["user_of_128_events_bfloat16_kib"]
    assert kib["user_of_128_events_int8_kib"] == (32 + 2) / 64 * kib["user_of_128_events_bfloat16_kib"]
    assert kib["users_of_128_events_in_256_mib"] == int(256 * 1024 / kib["user_of_128_events_int8_kib"])


def test_growth_is_one_for_what_grows_in_proportion(tmp_path, monkeypatch):
    for name, value in (("_QUICK_SIZES", (20, 80)), ("_CALLS", 2), ("_POLL", 40), ("_HISTORY", 4), ("_READ", 5)):
        monkeypatch.setattr(scale, name, value)
    parts = iter(
        [
            ({"search_ms": 1.0, "list_for_16_users_ms": 3.0}, [3.0]),
            ({"search_ms": 4.0, "list_for_16_users_ms": 3.0}, [3.0]),
        ]
    )
    monkeypatch.setattr(scale, "_items", lambda *_: next(parts))
    result = scale.measure(tmp_path, True, lambda *_: None)
    below, largest, exponents = scale.growth(result.details)
    assert (below, largest) == (20, 80)
    assert exponents["search_ms"] == 1
    assert exponents["list_for_16_users_ms"] == 0
    assert result.details["store_read_us_per_user_at_20"] > 0
    assert (result.ratio, result.curve.x) == (1.0, [20.0, 80.0])


def test_items_of_a_scale_are_built_loaded_and_searched(tmp_path, monkeypatch):
    for name, value in (("_CALLS", 2), ("_HISTORY", 4), ("_BATCH", 2)):
        monkeypatch.setattr(scale, name, value)
    figures, samples = scale._items(tmp_path, 60)
    assert all(value > 0 for value in figures.values())
    assert len(samples) == 2
