"""The past: a log that a recommender can learn from, and that nothing true leaks into."""

from collections import Counter, defaultdict

import pytest

from pinrec.config import Vocabulary
from streaming.schema import EventCodec, UserEvent
from streaming.simulator import Town, TownConfig
from streaming.simulator.people import DAY_S

OPENS_AT = 1_770_000_000.0


def test_the_same_seed_gives_the_same_past_and_another_seed_another(
    town_config: TownConfig, past: list[UserEvent]
) -> None:
    town = Town(town_config, OPENS_AT)
    assert list(town.past()) == past
    assert list(town.past()) == past, "a second reading differs"
    other = town_config.model_copy(update={"seed": 8})
    assert list(Town(other, OPENS_AT).past()) != past


def test_events_come_in_time_order_end_at_the_opening_and_are_about_as_many_as_asked(
    town_config: TownConfig, past: list[UserEvent]
) -> None:
    times = [event.timestamp for event in past]
    assert times == sorted(times)
    assert OPENS_AT - town_config.past_days * DAY_S <= times[0]
    assert OPENS_AT - DAY_S / 2 < times[-1] <= OPENS_AT
    assert len(past) == pytest.approx(town_config.past_events, rel=0.1)


def test_a_past_that_ends_on_a_busy_evening_is_in_order_and_cut_there() -> None:
    """Days are counted from the opening, so here sessions run on across every day's end."""
    evening = OPENS_AT + 17 * 3_600  # with this seed a list is being read at that moment
    town = Town(TownConfig(seed=5, inhabitants=100, items=200, past_days=2, past_events=12_000), evening)
    times = [event.timestamp for event in town.past()]
    assert times == sorted(times)
    assert evening - 600 < times[-1] <= evening


def test_every_event_passes_the_wire_and_ids_are_unique(past: list[UserEvent]) -> None:
    codec = EventCodec(Vocabulary(), clock=lambda: OPENS_AT)
    for event in past:
        assert codec.decode(*codec.encode(event)) == event
    assert len({event.event_id for event in past}) == len(past)


def test_all_declared_actions_and_surfaces_occur(past: list[UserEvent]) -> None:
    vocabulary = Vocabulary()
    assert {event.action for event in past} == set(vocabulary.action_index)
    assert {event.surface for event in past} == set(vocabulary.surface_index)


def test_an_action_follows_the_impression_of_its_item_in_the_same_feed(past: list[UserEvent]) -> None:
    shown: set[tuple[str | None, str | None, int | None]] = set()
    for event in past:
        if event.action == "impression":
            shown.add((event.feed_id, event.item_id, event.position))
        elif event.action != "search":
            assert (event.feed_id, event.item_id, event.position) in shown


def test_items_are_never_shown_before_they_exist(town: Town, past: list[UserEvent]) -> None:
    created = {item.item_id: item.created_at for item in town.items()}
    assert all(event.timestamp >= created[event.item_id] for event in past if event.item_id)


def test_nights_are_quiet(past: list[UserEvent]) -> None:
    by_hour = Counter(int(event.timestamp // 3_600 % 24) for event in past)
    night = sum(by_hour[hour] for hour in (2, 3, 4))
    evening = sum(by_hour[hour] for hour in (18, 19, 20))
    assert night < 0.2 * evening


def test_events_hold_nothing_but_what_a_producer_could_see(past: list[UserEvent]) -> None:
    identity = {"event_id", "user_id", "feed_id", "position"}
    allowed = identity | {"item_id", "action", "surface", "timestamp", "item_type", "query"}
    for event in past:
        assert set(event.model_dump(exclude_none=True)) <= allowed
        assert str(event.event_id).startswith(f"{event.user_id}-")


def test_queries_name_items_that_the_results_hold(town: Town, past: list[UserEvent]) -> None:
    """A search leads to items whose titles share its words: what makes queries worth learning from."""
    by_user: dict[str, UserEvent] = {}
    met = searched = 0
    for event in past:
        if event.item_type == "query":
            by_user[event.user_id] = event
        elif event.surface == "search" and event.position == 0 and event.action == "impression":
            searched += 1
            words = set(by_user[event.user_id].subject.lower().split())
            met += bool(words & set(town.title(str(event.item_id)).lower().replace(",", "").replace(":", "").split()))
    assert searched > 100
    assert met / searched > 0.5, "by chance it would be one in ten"


def test_counting_a_persons_topics_beats_popularity(town: Town, past: list[UserEvent]) -> None:
    topic = {item.item_id: item.categories[0] for item in town.items()}
    popular: Counter[str] = Counter()
    in_topic: dict[str, Counter[str]] = defaultdict(Counter)
    taste: dict[str, Counter[str]] = defaultdict(Counter)
    clicked: dict[str, set[str]] = defaultdict(set)
    asked = personal = general = 0
    for event in past:
        if event.action != "click":
            continue
        item, user = str(event.item_id), event.user_id
        if event.timestamp > OPENS_AT - DAY_S and taste[user]:
            asked += 1
            general += item in [i for i, _ in popular.most_common(20)]
            score = {
                i: weight * count / in_topic[name].total()
                for name, weight in taste[user].items()
                for i, count in in_topic[name].items()
                if i not in clicked[user]
            }
            personal += item in sorted(score, key=lambda i: -score[i])[:20]
        popular[item] += 1
        in_topic[topic[item]][item] += 1
        taste[user][topic[item]] += 1
        clicked[user].add(item)
    assert asked > 100
    assert personal > 2 * max(general, 1), f"recall@20 {personal / asked:.3f} against {general / asked:.3f}"
