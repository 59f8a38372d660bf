"""The closed loop: what inhabitants do with the lists they are given."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pinrec.config import Vocabulary
from streaming.schema import EventCodec, Recommendation, RecommendedItem, SequenceInfo, UserEvent
from streaming.simulator import Town, TownConfig

OPENS_AT = 1_770_000_000.0


def recommendation(user: str, item_ids: Sequence[str], request_id: str = "r1") -> Recommendation:
    return Recommendation(
        request_id=request_id,
        user_id=user,
        model_version="v1",
        created_at=OPENS_AT,
        trigger="query",
        degraded=False,
        sequence=SequenceInfo(length=0),
        items=[RecommendedItem(item_id=item, score=0.0) for item in item_ids],
    )


def rates(config: TownConfig, choose: Callable[[Town, str], list[str]]) -> dict[str, float]:
    """Actions per impression when every inhabitant gets three lists."""
    town = Town(config, OPENS_AT)
    counts: Counter[str] = Counter()
    for turn in range(3):
        for user in town.user_ids:
            counts.update(e.action for e in town.answer(recommendation(user, choose(town, user)), OPENS_AT + turn))
    return {action: counts[action] / counts["impression"] for action in ("click", "save", "share", "hide")}


def test_an_answer_carries_the_request_and_the_positions_of_the_list(town: Town) -> None:
    user = town.user_ids[4]
    given = recommendation(user, town.best(user, 10, OPENS_AT))
    codec = EventCodec(Vocabulary(), clock=lambda: OPENS_AT)
    answers = [town.answer(given, OPENS_AT + i) for i in range(20)]
    for events in answers:
        assert events[0].action == "impression"
        assert [e.position for e in events if e.action == "impression"] == list(
            range(1 + max(e.position or 0 for e in events))
        )
        for event in events:
            assert codec.check(event).request_id == "r1"
            assert event.user_id == user
            assert event.item_id == given.items[event.position or 0].item_id
            assert event.surface == "home"
    assert len({events[0].feed_id for events in answers}) == len(answers)


def test_reactions_do_not_depend_on_the_order_in_which_inhabitants_answer(town_config: TownConfig) -> None:
    one, other = Town(town_config, OPENS_AT), Town(town_config, OPENS_AT)
    lists = {user: one.best(user, 10, OPENS_AT) for user in one.user_ids[:40]}
    first = {u: one.answer(recommendation(u, ids), OPENS_AT) for u, ids in lists.items()}
    second = {u: other.answer(recommendation(u, ids), OPENS_AT) for u, ids in reversed(lists.items())}
    assert first == second


def test_lists_by_true_taste_earn_more_than_random_ones(town_config: TownConfig) -> None:
    rng = np.random.default_rng(0)
    catalogue = [item.item_id for item in Town(town_config, OPENS_AT).items()]
    chance = rates(town_config, lambda _, __: rng.choice(catalogue, 10, replace=False).tolist())
    taste = rates(town_config, lambda town, user: town.best(user, 10, OPENS_AT))
    assert taste["click"] > 4 * chance["click"]
    assert taste["hide"] < chance["hide"]


def test_a_budget_on_saves_earns_more_saves_and_fewer_clicks(town_config: TownConfig) -> None:
    clicks = rates(town_config, lambda town, user: town.best(user, 10, OPENS_AT, "click"))
    saves = rates(town_config, lambda town, user: town.best(user, 10, OPENS_AT, "save"))
    assert saves["save"] > 3 * clicks["save"]
    assert saves["click"] < 0.7 * clicks["click"]


def test_the_oracle_tells_the_rate_that_is_then_seen(town_config: TownConfig) -> None:
    town = Town(town_config, OPENS_AT)
    expected = clicks = looks = 0.0
    for user in town.user_ids:
        ids = town.best(user, 30, OPENS_AT)
        chance = dict(zip(ids, town.true_reward(user, ids, "click", OPENS_AT), strict=True))
        for event in town.answer(recommendation(user, ids), OPENS_AT):
            if event.action == "impression":
                looks += 1
                expected += chance[str(event.item_id)]
            clicks += event.action == "click"
    assert clicks == pytest.approx(expected, abs=4 * np.sqrt(looks) / 2)


def test_later_positions_are_looked_at_less(town: Town) -> None:
    seen: Counter[int] = Counter()
    for user in town.user_ids:
        events = town.answer(recommendation(user, town.best(user, 20, OPENS_AT)), OPENS_AT)
        seen.update(e.position or 0 for e in events if e.action == "impression")
    assert seen[0] == len(town.user_ids)
    assert seen[0] > seen[5] > seen[15] > 0


def test_an_item_engaged_with_draws_less_the_next_time(town: Town) -> None:
    user = town.user_ids[0]
    best = town.best(user, 5, OPENS_AT)
    engaged: set[str] = set()
    for turn in range(20):
        events = town.answer(recommendation(user, best), OPENS_AT + turn)
        engaged |= {str(e.item_id) for e in events if e.action == "click"}
    assert engaged
    assert not engaged & set(town.best(user, 5, OPENS_AT))


def test_strangers_and_unknown_items_are_no_error(town: Town) -> None:
    assert town.answer(recommendation("a-stranger", ["item-00001"]), OPENS_AT) == []
    assert town.answer(recommendation(town.user_ids[0], []), OPENS_AT) == []
    events = town.answer(recommendation(town.user_ids[0], ["never-made"] * 10), OPENS_AT)
    assert {event.action for event in events} == {"impression"}
    assert isinstance(events[0], UserEvent)
