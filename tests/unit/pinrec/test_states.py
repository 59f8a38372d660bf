import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.arena import POSITIONS, Arena
from pinrec.config import GenerationConfig
from pinrec.encoding import encode, from_scratch
from pinrec.generation import generate
from pinrec.hashing import hash_id
from pinrec.history import ROW, History, HistoryEvent, merge
from pinrec.requests import GenerationRequest
from pinrec.states import UserStates
from tests.small_bundle import CONFIG, NOW, small_bundle

PLENTY = 8 << 20
ONE_BLOCK = Arena(CONFIG, 1 << 20, torch.int8).block_bytes
USERS = ("ada", "ben", "cyd", "dov")


@pytest.fixture(scope="module")
def bundles():
    return small_bundle(), small_bundle(seed=1)


def event(number: int, timestamp: float) -> HistoryEvent:
    is_query = number % 7 == 3
    item_id = f"query about {number % 5}" if is_query else f"item-{number * 37 % 130}"
    return HistoryEvent(timestamp, f"e{number:05d}", item_id, hash_id(item_id), 2 if is_query else 3, 0, is_query)


def history(*numbers: int) -> History:
    packed, _ = merge(None, [event(n, NOW - 10_000 + n) for n in numbers], CONFIG.history, CONFIG.stride)
    return History(packed)


def asked(user_id, past, **fields):
    return GenerationRequest(**({"history": past, "k": 8, "now": NOW, "user_id": user_id} | fields))


@torch.inference_mode()
def encoded(encoder, bundle, requests):
    """States at the last events and after two more tokens, by request."""
    h_BD = torch.zeros(len(requests), 2, CONFIG.width)
    token_BD = torch.full((1, CONFIG.width), 0.1)
    for index, part in encoder(bundle, requests):
        h_BD[index, 0] = part.h_BD
        bundle.model.decode(token_BD.expand(len(index), -1), part.cache)
        h_BD[index, 1] = bundle.model.decode(token_BD.expand(len(index), -1), part.cache)
    return h_BD


def plain(bundle, requests, kept):
    return encoded(lambda b, r: [([i], encode(b, [one], kept)) for i, one in enumerate(r)], bundle, requests)


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.int8])
def test_a_history_that_grew_gives_the_states_of_encoding_it_anew(bundles, kept):
    states = UserStates(PLENTY, kept)
    for end in (1, 2, 5, 5, 20, 31, 32):
        requests = [asked("ada", history(*range(end))), asked("ben", history(*range(100, 100 + end // 2 + 1)))]
        torch.testing.assert_close(
            encoded(states, bundles[0], requests), plain(bundles[0], requests, kept), atol=2e-5, rtol=2e-4
        )
    assert states.report.hits == 12
    assert states.report.misses == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_comes_in_between_states_equal_encoding_from_scratch(bundles, data):
    """Random events, late ones too, deletions, window moves, evictions and swaps, contexts and repeated users."""
    kept = data.draw(st.sampled_from([torch.int8, torch.bfloat16]))
    one_block = Arena(CONFIG, 1 << 20, kept).block_bytes
    states = UserStates(data.draw(st.sampled_from([0, one_block, 3 * one_block, PLENTY])), kept)
    packed: dict[str, bytes] = {}
    number = 0
    for _ in range(data.draw(st.integers(3, 12))):
        bundle = data.draw(st.sampled_from(bundles))
        for user_id in data.draw(st.lists(st.sampled_from(USERS), max_size=3)):
            what = data.draw(st.sampled_from(["one", "one", "some", "many", "late", "delete"]))
            if what == "delete":
                packed.pop(user_id, None)
                states.forget([user_id])
                continue
            new = {"one": 1, "some": 3, "many": 40, "late": 1}[what]
            events = [event(number + i, NOW - 50_000 + number + i) for i in range(new)]
            if what == "late":
                events = [events[0]._replace(timestamp=NOW - 50_000 + data.draw(st.integers(0, number + 1)) - 0.5)]
            number += new
            packed[user_id], _ = merge(packed.get(user_id), events, CONFIG.history, CONFIG.stride)
        if not packed:
            continue
        requests = [
            asked(user_id, History(packed[user_id]), context_item=context)
            for user_id in data.draw(st.lists(st.sampled_from(sorted(packed)), min_size=1, max_size=6))
            for context in [data.draw(st.sampled_from([None, None, "item-5"]))]
        ]
        torch.testing.assert_close(
            encoded(states, bundle, requests), plain(bundle, requests, kept), atol=2e-5, rtol=2e-4
        )


def test_answers_are_those_of_encoding_from_scratch(bundles):
    config = GenerationConfig(steps=3)
    states = UserStates(PLENTY, torch.float32)
    for end in (3, 4, 9):
        requests = [
            asked(None, history(*range(2))),
            asked("ada", history(*range(end)), outcomes={"click": 1.0}),
            asked("ben", history(*range(50, 50 + 3 * end)), context_query="about maps"),
            asked("cyd", None, context_item="item-3"),
        ]
        kept, anew = (generate(bundles[0], requests, config, encoder) for encoder in (states, from_scratch))
        assert [[c.item_id for c in found] for found in kept] == [[c.item_id for c in found] for found in anew]
        assert np.concatenate([[c.score for c in found] for found in kept]) == pytest.approx(
            np.concatenate([[c.score for c in found] for found in anew]), abs=1e-5
        )
    assert states.report.hits == 4
    assert states.report.users == 2


def test_who_only_asks_again_is_told_where_and_when_the_history_ends(bundles):
    states = UserStates(PLENTY, torch.float32)
    row = np.zeros(1, ROW)
    row["timestamp"], row["item_hash"], row["action"], row["surface"] = NOW - 5, hash_id("item-1"), 3, 1
    on_search = History.of_rows(row)
    requests = [asked("ada", on_search), asked("ben", history(*range(4)))]
    states(bundles[0], requests)
    ((index, again),) = states(bundles[0], requests)
    first = encode(bundles[0], [requests[b] for b in index])
    assert states.report.hits == 2
    assert again.last_B.tolist() == first.last_B.tolist()
    assert again.surface_B.tolist() == first.surface_B.tolist()
    assert {0, 1} == set(again.surface_B.tolist())
    assert again.cache.length_B.tolist() == first.cache.length_B.tolist()


def test_a_state_is_used_only_under_the_bundle_that_made_it(bundles):
    states, requests = UserStates(PLENTY), [asked("ada", history(*range(6)))]
    for bundle, hits in ((bundles[0], 0), (bundles[1], 0), (bundles[1], 1), (bundles[0], 1), (bundles[0], 2)):
        states(bundle, requests)
        assert states.report.hits == hits


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(lambda: history(0, 1, 2, 4, 5), id="an event is gone"),
        pytest.param(lambda: history(*range(33)), id="the window has moved on"),
        pytest.param(lambda: history(6, 7, 8, 9), id="another history"),
    ],
)
def test_a_history_that_did_not_grow_at_its_end_is_encoded_anew(bundles, later):
    states = UserStates(PLENTY)
    states(bundles[0], [asked("ada", history(0, 1, 2, 3, 4))])
    states(bundles[0], [asked("ada", later())])
    assert (states.report.hits, states.report.misses) == (0, 2)


def test_the_least_recently_used_state_makes_room(bundles):
    states = UserStates(3 * ONE_BLOCK)

    def ask(user_id):
        before = states.report.hits
        states(bundles[0], [asked(user_id, history(1, 2, 3))])
        return states.report.hits > before

    assert [ask(user_id) for user_id in ("ada", "ben", "cyd", "ada", "dov")] == [False, False, False, True, False]
    assert states.report.evictions == 1
    assert [ask(user_id) for user_id in ("ada", "cyd", "dov", "ben")] == [True, True, True, False]
    assert states.report.bytes == 3 * ONE_BLOCK == states.report.budget_bytes


def test_a_batch_of_more_users_than_fit_is_answered_all_the_same(bundles):
    states = UserStates(2 * ONE_BLOCK)
    requests = [asked(f"user-{i}", history(*range(i + 1))) for i in range(12)]
    for _ in range(2):
        torch.testing.assert_close(
            encoded(states, bundles[0], requests), plain(bundles[0], requests, torch.int8), atol=2e-5, rtol=2e-4
        )
    assert states.report.users == 2
    assert states.report.hits == 2


def test_a_forgotten_user_leaves_nothing(bundles):
    states = UserStates(PLENTY)
    states(bundles[0], [asked("ada", history(1, 2)), asked("ben", history(3))])
    states.forget(["ada", "nobody"])
    assert states.report.users == 1
    assert states.report.bytes == ONE_BLOCK
    states.clear()
    assert (states.report.users, states.report.bytes) == (0, 0)


def test_blocks_are_counted_by_history_not_by_the_longest(bundles):
    states = UserStates(PLENTY)
    states(bundles[0], [asked("ada", history(1)), asked("ben", history(*range(POSITIONS)))])
    assert states.report.bytes == 2 * ONE_BLOCK
