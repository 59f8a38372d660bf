import random
import time
from itertools import chain
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

import serving.answers
from pinrec.config import GenerationConfig
from pinrec.delta import Delta
from pinrec.items import Item
from serving.answers import Answerer
from serving.api import Context, RecommendationRequest
from serving.config import ServingSettings
from serving.problems import Problem
from streaming.schema import Recommendation, RecommendedItem, SequenceInfo
from streaming.stores.lmdb import LmdbSequenceStore
from tests.reading import ReadingAnswerer
from tests.small_bundle import CONFIG, NOW, VOCABULARY, small_bundle, small_history

USERS = [f"user-{i}" for i in range(12)]


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


@pytest.fixture
def store(tmp_path):
    """Histories of different lengths, applied up to now."""
    store = LmdbSequenceStore(tmp_path / "sequences", CONFIG.history, CONFIG.stride, map_gib=0.1)
    changes = [
        (user, event) for i, user in enumerate(USERS) for event in small_history(length=1 + 2 * i, seed=i).events()
    ]
    store.apply(0, 0, len(changes), changes, as_of=time.time())
    yield store
    store.close()


@pytest.fixture
def answerer(store):
    return ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings(event_k=7))


def ask(user_id, **fields):
    return RecommendationRequest(**({"user_id": user_id, "k": 5} | fields))


def items(answer):
    return [item.item_id for item in answer.items]


def test_each_user_of_a_batch_gets_the_list_they_get_alone(bundle, answerer):
    together, for_events = answerer.answer(bundle, [ask(user) for user in USERS], USERS[3:])
    for user, answer in zip(USERS, together, strict=True):
        assert answer.user_id == user
        assert answer.sequence.last_event_id == f"e{2 * USERS.index(user):05d}"
        ((alone,), _) = answerer.answer(bundle, [ask(user)], [])
        assert items(alone) == items(answer), user
    assert [answer.user_id for answer in for_events] == USERS[3:]
    assert len({tuple(items(answer)) for answer in together}) > len(USERS) // 2, "different histories, different lists"


def test_a_new_event_changes_the_list_and_nothing_is_encoded_twice(bundle, store, answerer):
    ((before,), _) = answerer.answer(bundle, [ask("user-2")], [])
    # So long ago that the moments between the answers are none to the model: offsets are clamped to a day.
    later = small_history(1, seed=77).events()[0]._replace(event_id="later", timestamp=time.time() - 2 * 86_400.0)
    store.apply(0, store.offset(0), store.offset(0) + 1, [("user-2", later)], as_of=time.time())
    ((query,), (for_event,)) = answerer.answer(bundle, [ask("user-2", k=7)], ["user-2"])
    assert items(query) == items(for_event) != items(before)
    assert query.sequence.last_event_id == "later"
    assert (answerer.states.report.hits, answerer.states.report.misses) == (2, 1)
    unkept = ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings(states_mib=0))
    ((alone,), _) = unkept.answer(bundle, [ask("user-2", k=7)], [])
    assert items(alone) == items(query)
    assert unkept.states.report.users == 0


def test_an_answer_is_the_same_whichever_replica_makes_it(bundle, store):
    """Two share a store and are asked at random: what each keeps lacks what the other was asked for, and deletions."""
    chance = random.Random(5)
    replicas = [ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings(event_k=7)) for _ in range(2)]
    unkept = ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings(event_k=7, states_mib=0))
    users = USERS[5:9]
    for turn in range(120):
        user, what = chance.choice(users), chance.choices(["new", "late", "delete"], [12, 2, 1])[0]
        # All more than a day ago, so that the moments between two answers are none to the model.
        at = NOW + turn - (50_000 if what == "late" else 0)
        event = small_history(1, seed=turn).events()[0]._replace(event_id=f"turn {turn}", timestamp=at)
        changes = [(user, None)] if what == "delete" else []
        store.apply(0, store.offset(0), store.offset(0) + 1, [*changes, (user, event)], as_of=time.time())
        asked = bundle, [ask(user) for user in chance.sample(users, 2)], [user]
        found_and_anew = (chain(*each.answer(*asked)) for each in (chance.choice(replicas), unkept))
        for found, anew in zip(*found_and_anew, strict=True):
            assert items(found) == items(anew), (turn, found.user_id)
            assert [item.score for item in found.items] == pytest.approx([item.score for item in anew.items], abs=1e-5)
    assert all(replica.states.report.hits > 50 for replica in replicas)


def test_a_rehearsal_leaves_no_trace(bundle, answerer):
    answerer.rehearse(bundle, [ask("user-2"), ask("nobody")])
    assert answerer.states.report.users == 0


def test_nothing_is_kept_of_a_deleted_user(bundle, store, answerer):
    answerer.answer(bundle, [ask("user-2"), ask("user-3")], [])
    store.apply(0, store.offset(0), store.offset(0) + 1, [("user-2", None)], as_of=time.time())
    answerer.forget_deleted()
    assert answerer.states.report.users == 1
    ((answer,), _) = answerer.answer(bundle, [ask("user-2")], [])
    assert answer.source == "popular"


def test_an_answer_says_what_it_was_made_of(bundle, answerer):
    (query,), (for_event,) = answerer.answer(bundle, [ask("user-3", surface="search")], ["user-3"])
    assert (query.trigger, for_event.trigger) == ("query", "event")
    assert (len(query.items), len(for_event.items)) == (5, 7)
    assert query.model_version == bundle.version
    assert query.source == for_event.source == "model"
    assert query.request_id != for_event.request_id
    assert query.sequence.length == 7
    assert query.items[0].title == f"about {query.items[0].title.split()[1]} {query.items[0].item_id[5:]}"
    assert query.items[0].outcome in VOCABULARY.outcomes


def test_what_is_sent_of_an_answer_is_the_json_of_a_checked_one(bundle, store):
    unread = Answerer(store, GenerationConfig(max_k=50), ServingSettings())
    (known, unknown), (for_event,) = unread.answer(bundle, [ask("user-3"), ask("nobody")], ["user-3"])
    for made in (known, unknown, for_event):
        checked = made.read()
        assert made.json == checked.model_dump_json().encode()
        assert checked.user_id == made.user_id
        assert all(item.model_fields_set == set(RecommendedItem.model_fields) for item in checked.items)
        assert checked.model_fields_set == set(Recommendation.model_fields)
        assert checked.sequence.model_fields_set == set(SequenceInfo.model_fields)


def test_an_unknown_user_gets_what_is_popular_and_is_told_so(bundle, answerer):
    (answer,), _ = answerer.answer(bundle, [ask("nobody", exclude=["item-59"])], [])
    assert answer.source == "popular"
    assert (answer.sequence.length, answer.sequence.last_event_at) == (0, None)
    assert items(answer)[:2] == ["item-58", "item-57"], "by popularity, the filters hold here as well"


def test_a_context_is_enough_for_the_model(bundle, answerer):
    by_item, by_query, known = answerer.answer(
        bundle,
        [
            ask("nobody", context=Context(item_id="item-3")),
            ask("nobody", context=Context(query="rivers and maps")),
            ask("user-5", context=Context(query="rivers and maps")),
        ],
        [],
    )[0]
    assert by_item.source == by_query.source == known.source == "model"
    assert len({tuple(items(answer)) for answer in (by_item, by_query, known)}) == 3


def test_every_bad_request_is_refused_by_field_while_its_neighbours_are_answered(bundle, answerer):
    bad = {
        "k": ask("user-1", k=51),
        "surface": ask("user-1", surface="moon"),
        "outcomes.fly": ask("user-1", outcomes={"fly": 1.0}),
        "outcomes.impression": ask("user-1", outcomes={"impression": 1.0}),
        "outcomes": ask("user-1", outcomes={"click": 0.0, "save": 0.0}),
    }
    requests = [request for field in bad for request in (bad[field], ask("user-2"))]
    answers, _ = answerer.answer(bundle, requests, ["user-3"])
    for field, problem in zip(bad, answers[::2], strict=True):
        assert isinstance(problem, Problem)
        assert (problem.status, problem.field) == (422, field)
    for neighbour in answers[1::2]:
        assert (neighbour.user_id, len(neighbour.items)) == ("user-2", 5)


@pytest.mark.parametrize("shares", [{"click": 1e308, "save": 1e308, "share": 1e308}, {"click": 5e-324}, {"save": 1}])
def test_shares_of_any_size_are_a_budget(bundle, answerer, shares):
    ((answer,), _) = answerer.answer(bundle, [ask("user-4", k=30, outcomes=shares)], [])
    assert {item.outcome for item in answer.items} == set(shares)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 2.5}, "k"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "x" * 10_000}, "user_id"),
        ({"outcomes": {"click": -1.0}}, "outcomes.click"),
        ({"outcomes": {"click": float("nan")}}, "outcomes.click"),
        ({"exclude": ["x"] * 10_001}, "exclude"),
        ({"context": {"item_id": "a", "query": "b"}}, "context"),
        ({"limit": 3}, "limit"),
    ],
)
def test_a_request_that_no_bundle_could_answer_is_refused_where_it_is_read(fields, field):
    with pytest.raises(ValidationError) as refused:
        ask(**({"user_id": "user-1"} | fields))
    assert ".".join(str(part) for part in refused.value.errors()[0]["loc"]).startswith(field)


def test_histories_that_are_behind_mark_the_answer_degraded(bundle, tmp_path):
    store = LmdbSequenceStore(tmp_path / "old", CONFIG.history, CONFIG.stride, map_gib=0.1)
    answerer = ReadingAnswerer(store, GenerationConfig(), ServingSettings(degraded_after_s=10))
    ((answer,), _) = answerer.answer(bundle, [ask("user-1")], [])
    assert (answer.degraded, answer.sequence.staleness_ms) == (True, None), "nothing was ever applied"
    store.apply(0, 0, 1, [("user-1", next(iter(small_history(1).events())))], as_of=time.time() - 60)
    ((answer,), _) = answerer.answer(bundle, [ask("user-1")], [])
    assert answer.degraded
    assert 60e3 <= answer.sequence.staleness_ms < 120e3
    store.touch({0: time.time()})
    ((answer,), _) = answerer.answer(bundle, [ask("user-1")], [])
    assert (answer.degraded, answer.source) == (False, "model")
    assert 0 <= answer.sequence.staleness_ms < 10e3
    store.close()


def test_a_store_that_fails_is_answered_with_what_is_popular_and_marked_degraded(bundle, store, answerer):
    store.close()
    ((answer,), _) = answerer.answer(bundle, [ask("user-5")], [])
    assert (answer.source, answer.degraded) == ("popular", True)
    assert len(answer.items) == 5
    assert answerer.store_error


def test_users_encoded_ahead_are_met_again_by_the_next_version(bundle, store, answerer):
    answerer.answer(bundle, [], USERS)
    following = small_bundle(seed=3)
    answerer.hand_over(answerer.encode_ahead(following, answerer.states.recent))
    before = answerer.states.report
    assert before.users == len(USERS), "the version that serves loses nothing"
    still, _ = answerer.answer(bundle, [ask(user) for user in USERS], [])
    met, _ = answerer.answer(following, [ask(user) for user in USERS], [])
    report = answerer.states.report
    assert (report.hits - before.hits, report.misses - before.misses) == (2 * len(USERS), 0)
    unkept = ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings(states_mib=0))
    anew, _ = unkept.answer(following, [ask(user) for user in USERS], [])
    assert [items(answer) for answer in met] == [items(answer) for answer in anew]
    assert [items(answer) for answer in met] != [items(answer) for answer in still]


def test_what_is_encoded_ahead_is_the_most_recent_and_ends_with_time_and_memory(bundle, store):
    one_block = ServingSettings(states_mib=0, handover_s=60, handover_share=1)
    answerer = ReadingAnswerer(store, GenerationConfig(max_k=50), one_block)
    assert answerer.encode_ahead(bundle, USERS).states.report.users == 0
    no_time = ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings(handover_s=0))
    assert no_time.encode_ahead(bundle, USERS).states.report.users == 0
    answerer = ReadingAnswerer(store, GenerationConfig(max_k=50), ServingSettings())
    for user in ("user-3", "user-1", "user-2"):
        answerer.answer(bundle, [ask(user)], [])
    assert answerer.states.recent == ["user-2", "user-1", "user-3"]
    following = small_bundle(seed=3)
    answerer.hand_over(answerer.encode_ahead(following, ["nobody", *answerer.states.recent]))
    answerer.answer(following, [ask("user-4")], [])
    assert answerer.states.recent == ["user-4", "user-2", "user-1", "user-3"], "who was active last stays longest"


def test_what_is_encoded_ahead_takes_its_share_of_a_core(bundle, store, monkeypatch):
    """By a clock of its own, which reading a history moves on by a second."""
    clock, pauses = [100.0], []

    def pause(seconds):
        pauses.append(seconds)
        clock[0] += seconds

    def read(users):
        clock[0] += 1.0
        return [None for _ in users]

    # In that module alone: other threads sleep too.
    own_time = SimpleNamespace(monotonic=lambda: clock[0], sleep=pause, time=time.time)
    monkeypatch.setattr(serving.answers, "time", own_time)
    monkeypatch.setattr(store, "read", read)
    settings = ServingSettings(handover_s=20, handover_share=0.25)
    ReadingAnswerer(store, GenerationConfig(max_k=50), settings).encode_ahead(
        bundle, [f"user {i}" for i in range(10_000)]
    )
    assert pauses == pytest.approx([3.0] * 5), "a second of work, three of rest, until the time is up"


def test_nothing_is_kept_of_a_user_deleted_while_others_are_encoded_ahead(bundle, store, answerer):
    answerer.answer(bundle, [], USERS)
    following = small_bundle(seed=3)

    def delete(user):
        store.apply(0, store.offset(0), store.offset(0) + 1, [(user, None)], as_of=time.time())

    ahead = answerer.encode_ahead(following, answerer.states.recent)
    delete("user-2")
    answerer.hand_over(ahead)
    delete("user-3")
    answerer.forget_deleted()
    answerer.answer(following, [], [])
    answerer.answer(following, [ask("user-5")], [])
    assert set(answerer.states.recent) == set(USERS) - {"user-2", "user-3"}


def test_a_version_that_another_overtakes_leaves_nothing_behind(bundle, answerer):
    answerer.answer(bundle, [], USERS)
    overtaken, following = small_bundle(seed=3), small_bundle(seed=4)
    answerer.hand_over(answerer.encode_ahead(overtaken, answerer.states.recent))
    answerer.answer(following, [ask("user-1")], [])
    assert answerer.states.recent == ["user-1"]
    answerer.answer(overtaken, [ask("user-2")], [])
    assert answerer.states.recent == ["user-2"], "what was encoded ahead is not kept for another day"


def test_new_items_come_with_their_titles_and_deleted_ones_not_to_known_and_unknown_users(bundle, answerer):
    new = Item("new", "Just in", ("maps",), created_at=2e9)
    delta = Delta.of(bundle, {"new": new, "item-59": None, "item-58": Item("item-58", "Renamed")}, 10)
    here = {"k": 50, "categories": ["maps"], "exclude_seen": False}
    asked = [ask("user-4", **here), ask("nobody", **here), ask("nobody", k=50)]
    for with_delta in (True, False):
        answers, (for_event,) = answerer.answer(bundle, asked, ["user-5"], delta if with_delta else None)
        for answer in answers:
            titles = {item.item_id: item.title for item in answer.items}
            assert titles.get("new") == ("Just in" if with_delta else None)
        assert titles["item-58"] == ("Renamed" if with_delta else "about maps 58")
        assert ("item-59" in titles) != with_delta
        assert len(for_event.items) == 7


def test_similar_items_are_told_with_titles_and_bad_questions_by_field(bundle, answerer):
    delta = Delta.of(bundle, {"a/new": Item("a/new", "Just in", ("maps",)), "item-2": None}, 10)
    found = answerer.similar(bundle, "a/new", 4, frozenset(), delta)
    assert (found.item_id, found.model_version, len(found.items)) == ("a/new", bundle.version, 4)
    assert all(item.title.startswith("about") for item in found.items)
    (back,) = answerer.similar(bundle, "item-6", 1, frozenset({"maps"}), delta).items
    assert back.item_id not in ("item-6", "item-2")
    for item_id, k, status, field in (
        ("item-2", 4, 404, "item_id"), ("unheard of", 4, 404, "item_id"), ("item-6", 51, 422, "k"),
    ):  # fmt: skip
        problem = answerer.similar(bundle, item_id, k, frozenset(), delta)
        assert (problem.status, problem.field) == (status, field)
