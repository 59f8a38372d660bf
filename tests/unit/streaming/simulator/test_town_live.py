"""The town in real time, on a clock the test owns."""

from collections import defaultdict

import pytest

from pinrec.config import Vocabulary
from streaming.schema import EventCodec, ItemUpdate, Recommendation, RecommendedItem, SequenceInfo, UserEvent
from streaming.simulator import LiveTown, Town, TownConfig, Withdrawal

OPENS_AT = 1_770_000_000.0


def run(live: LiveTown, seconds: float, step: float = 0.1) -> list[UserEvent | ItemUpdate | Withdrawal]:
    return [message for i in range(1, round(seconds / step) + 1) for message in live.tick(OPENS_AT + i * step)]


def users_events(messages: list[UserEvent | ItemUpdate | Withdrawal]) -> list[UserEvent]:
    return [message for message in messages if isinstance(message, UserEvent)]


def recommendation(user: str, item_ids: list[str], at: float) -> Recommendation:
    return Recommendation(
        request_id=f"r-{user}-{at}",
        user_id=user,
        model_version="v1",
        created_at=at,
        trigger="event",
        degraded=False,
        sequence=SequenceInfo(length=1),
        items=[RecommendedItem(item_id=item, score=0.0) for item in item_ids],
    )


@pytest.mark.parametrize("rate", [5.0, 100.0])
def test_the_rate_is_held(town: Town, rate: float) -> None:
    events = users_events(run(town.live(rate), 60))
    assert len(events) == pytest.approx(60 * rate, rel=0.1)


def test_no_event_lies_after_now_and_each_inhabitants_events_are_in_order(town: Town) -> None:
    live = town.live(200)
    codec = EventCodec(Vocabulary(), clock=lambda: OPENS_AT, max_future_s=60)
    last: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    ids: set[str] = set()
    for i in range(1, 300):
        now = OPENS_AT + i * 0.1
        for event in users_events(live.tick(now)):
            codec.check(event)
            assert now - 2 < event.timestamp <= now
            assert event.timestamp >= last[event.user_id][0]
            last[event.user_id] = (event.timestamp, str(event.event_id))
            ids.add(str(event.event_id))
    assert len(ids) > 5_000


def test_the_same_ticks_give_the_same_life(town_config: TownConfig) -> None:
    one, other = (run(Town(town_config, OPENS_AT).live(50), 20) for _ in range(2))
    assert one == other


def test_a_long_gap_is_not_made_up_for_and_a_clock_that_steps_back_does_nothing(town: Town) -> None:
    live = town.live(100)
    assert len(users_events(live.tick(OPENS_AT + 3_600))) < 400
    assert live.tick(OPENS_AT + 3_000) == []


def test_an_offered_list_is_answered_in_the_next_step_and_only_once(town: Town) -> None:
    live = town.live(50)
    watched = town.user_ids[5]
    live.follow(watched)
    run(live, 5)
    given = recommendation(watched, town.best(watched, 10, OPENS_AT), OPENS_AT + 5)
    assert live.offer(recommendation(watched, [], OPENS_AT + 4)), "replaced by the newer one"
    assert live.offer(given)
    steps: dict[str, list[UserEvent]] = defaultdict(list)
    for i in range(51, 600):
        for event in users_events(live.tick(OPENS_AT + i * 0.1)):
            if event.user_id == watched:
                steps[event.feed_id or "query"].append(event)
    answered = [feed for feed, events in steps.items() if events[0].request_id]
    assert len(answered) == 1
    assert next(iter(steps)) == answered[0]
    assert {event.request_id for event in steps[answered[0]]} == {given.request_id}
    assert len(steps) > 2, "a followed inhabitant stays in session"


def test_the_loop_raises_engagement(town_config: TownConfig) -> None:
    """Inhabitants who are offered what they truly like engage more than those left to the town's own lists."""
    engaged = {}
    for offered in (False, True):
        town = Town(town_config, OPENS_AT)
        live = town.live(100)
        events: list[UserEvent] = []
        for i in range(1, 600):
            now = OPENS_AT + i * 0.1
            events += (made := users_events(live.tick(now)))
            for user in {event.user_id for event in made} if offered else ():
                live.offer(recommendation(user, town.best(user, 10, now), now))
        looked = sum(event.action == "impression" for event in events)
        engaged[offered] = sum(event.action in ("click", "save", "share") for event in events) / looked
        assert any(event.request_id for event in events) is offered
    assert engaged[True] > 2 * engaged[False]


def test_new_items_come_every_minute_and_as_many_old_ones_go(town: Town, town_config: TownConfig) -> None:
    before = {item.item_id: item for item in town.items()}
    messages = run(town.live(50), 300)
    new = [m for m in messages if isinstance(m, ItemUpdate)]
    gone = [m.item_id for m in messages if isinstance(m, Withdrawal)]
    assert len(new) == len(gone) == pytest.approx(5 * town_config.new_items_per_minute, abs=1)
    assert gone == list(before)[: len(gone)], "the oldest go first"
    assert all(OPENS_AT < item.created_at <= OPENS_AT + 300 for item in new)
    now = {item.item_id for item in town.items()}
    assert now == set(before) - set(gone) | {item.item_id for item in new}
    user = town.user_ids[0]
    assert not town.true_reward(user, gone, "click", OPENS_AT + 300).any()
    assert not set(town.best(user, 600, OPENS_AT + 300)[:500]) & set(gone)
    shown = {event.item_id for event in users_events(messages)[-2_000:]}
    assert not shown & set(gone[:-2])
    assert shown & {item.item_id for item in new}, "the town's own lists show new items"


def test_a_town_without_new_items_keeps_its_catalogue(town_config: TownConfig) -> None:
    town = Town(town_config.model_copy(update={"new_items_per_minute": 0.0}), OPENS_AT)
    assert len(users_events(run(town.live(20), 120, step=1.0))) > 1_000
    assert len(town.items()) == town_config.items
    assert not any(isinstance(m, ItemUpdate) for m in town.live(20).tick(OPENS_AT + 600))


def test_strangers_cannot_be_followed_or_offered_lists(town: Town) -> None:
    live = town.live(10)
    assert not live.offer(recommendation("a-stranger", [], OPENS_AT))
    with pytest.raises(ValueError, match="user_id"):
        live.follow("a-stranger")
    with pytest.raises(ValueError, match="events_per_s"):
        town.live(0)
