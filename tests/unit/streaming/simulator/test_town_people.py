"""The oracle: what is true of inhabitants and items."""

from itertools import pairwise

import numpy as np
import pytest

from streaming.simulator import Town, TownConfig
from streaming.simulator.people import DAY_S, People

OPENS_AT = 1_770_000_000.0


def test_taste_drifts_slowly_and_now_and_then_jumps(town_config: TownConfig) -> None:
    people = People(town_config)
    days = 40
    moves = np.array(
        [
            [
                np.abs(people.taste(who, OPENS_AT + (d + 1) * DAY_S) - people.taste(who, OPENS_AT + d * DAY_S)).sum()
                / 2
                for d in range(days)
            ]
            for who in range(50)
        ]
    )
    assert np.all(moves > 0), "drift never stands still"
    assert np.median(moves) < 0.06, "on most days taste is nearly what it was"
    assert moves.max() > 0.3, "and on a few it is another"


def test_a_jump_replaces_a_favourite_by_another_topic(town_config: TownConfig) -> None:
    people = People(town_config)
    quarter, steps = DAY_S / 4, 160
    changes = 0
    for who in range(100):
        top = [frozenset(np.argsort(-people.taste(who, OPENS_AT + i * quarter))[:3].tolist()) for i in range(steps)]
        changes += sum(before != after for before, after in pairwise(top))
    # A stay is uniform in 0.5 to 1.5 of jump_days, so the mean of its inverse is ln 3 / jump_days.
    expected = 100 * (steps - 1) * 3 * np.log(3) / (4 * town_config.jump_days)
    assert changes == pytest.approx(expected, rel=0.1)


def test_taste_is_a_share_and_does_not_depend_on_the_order_of_questions(town_config: TownConfig) -> None:
    forward, backward = People(town_config), People(town_config)
    moments = [OPENS_AT + day * DAY_S for day in range(30)]
    first = [forward.taste(3, at) for at in moments]
    second = [backward.taste(3, at) for at in reversed(moments)][::-1]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.sum(first, axis=1), 1.0)


def test_describe_names_the_strongest_topics_and_best_picks_from_them(town: Town) -> None:
    user = town.user_ids[0]
    described = town.describe(user, OPENS_AT)
    assert [share for _, share in described] == sorted((share for _, share in described), reverse=True)
    best = town.best(user, 10, OPENS_AT)
    assert {town.categories(item)[0] for item in best} <= {name for name, _ in described}
    rewards = town.true_reward(user, best, "click", OPENS_AT)
    assert list(rewards) == sorted(rewards, reverse=True)
    everything = town.true_reward(user, [item.item_id for item in town.items()], "click", OPENS_AT)
    assert rewards[0] == everything.max()


def test_an_item_earns_nothing_before_it_exists(town: Town) -> None:
    newest = town.items()[-1]
    user = next(u for u in town.user_ids if town.true_reward(u, [newest.item_id], "click", OPENS_AT)[0] > 0)
    assert town.true_reward(user, [newest.item_id], "click", newest.created_at - 1)[0] == 0


def test_kinds_differ_in_the_outcome_they_earn(town: Town) -> None:
    """Saves and clicks lie on different items, so a budget between them can show."""
    users = town.user_ids[:50]
    gain = {
        aim: np.mean([town.true_reward(u, town.best(u, 10, OPENS_AT, aim), got, OPENS_AT).mean() for u in users])
        for aim, got in (("save", "save"), ("click", "click"))
    }
    cross = {
        aim: np.mean([town.true_reward(u, town.best(u, 10, OPENS_AT, aim), got, OPENS_AT).mean() for u in users])
        for aim, got in (("save", "click"), ("click", "save"))
    }
    assert gain["save"] > 3 * cross["click"]
    assert gain["click"] > 1.5 * cross["save"]


def test_questions_about_strangers_and_unknown_outcomes_say_so(town: Town) -> None:
    with pytest.raises(ValueError, match="user_id"):
        town.describe("nobody", OPENS_AT)
    with pytest.raises(ValueError, match="outcome: 'like'"):
        town.true_reward(town.user_ids[0], [], "like", OPENS_AT)
