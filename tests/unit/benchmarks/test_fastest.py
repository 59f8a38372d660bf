import pytest

from benchmarks.event_load import Taken
from benchmarks.fastest import Tried
from benchmarks.result import BenchmarkError
from benchmarks.search import search


def limited_to(limit, asked):
    def attempt(rate):
        asked.append(rate)
        return rate <= limit

    return attempt


@pytest.mark.parametrize("limit", [30, 100, 130, 777, 6_000])
def test_the_highest_good_rate_is_found_closely_and_each_rate_is_tried_once(limit):
    asked = []
    found = search(limited_to(limit, asked), close=1.1, first=100, most=10_000)
    assert limit / 1.15 <= found <= limit
    assert len(asked) == len(set(asked)) < 14


def test_no_rate_beyond_what_the_load_can_give_is_tried():
    asked = []
    assert search(limited_to(1e9, asked), close=1.1, first=100, most=1_000) == 800
    assert max(asked) == 800


def test_where_not_even_the_least_rate_is_good_it_is_told():
    with pytest.raises(BenchmarkError, match=r"at \d+(\.\d+)? a second answers already come too late"):
        search(limited_to(1, []), close=1.1, first=100, most=1_000)


def test_a_rate_is_good_where_every_event_was_answered_in_time():
    in_time, late = Taken([10.0] * 100, 0, 0.1), Taken([10.0] * 95 + [2_000.0] * 5, 0, 0.1)
    tried = Tried({1.0: in_time, 2.0: late, 3.0: None})
    assert [tried.good(rate) for rate in (1.0, 2.0, 3.0)] == [True, False, False]
