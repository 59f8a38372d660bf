"""Traffic split by version: users stay with theirs, and each answer is one bundle's."""

import time
from collections import Counter

import pytest
from pydantic import ValidationError

from pinrec.bundle import MODEL
from pinrec.config import GenerationConfig
from pinrec.registry import Registry
from pinrec.split import version_for
from serving.api import RecommendationRequest
from serving.config import AppSettings, ServingSettings
from serving.live import LiveBundle
from serving.problems import Problem
from serving.split import Split
from streaming.stores.lmdb import LmdbSequenceStore
from streaming.version_outcomes import version_of
from tests.reading import ReadingAnswerer
from tests.small_bundle import CONFIG, VOCABULARY, small_bundle, small_history

USERS = [f"user-{i}" for i in range(60)]
SHARES = {"v000001": 0.3}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    registry = Registry(tmp_path_factory.mktemp("models"))
    for seed in (1, 2, 3):
        registry.publish(small_bundle(seed=seed))
    return registry


@pytest.fixture
def store(tmp_path):
    store = LmdbSequenceStore(tmp_path / "sequences", CONFIG.history, CONFIG.stride, map_gib=0.1)
    changes = [(user, event) for i, user in enumerate(USERS) for event in small_history(5, seed=i).events()]
    store.apply(0, 0, len(changes), changes, as_of=time.time())
    yield store
    store.close()


@pytest.fixture
def answerer(store):
    return ReadingAnswerer(store, GenerationConfig(), ServingSettings())


def split_of(registry, store, shares):
    made = Split(
        shares,
        lambda version: LiveBundle(registry, VOCABULARY, version, lambda bundle: None),
        lambda share: ReadingAnswerer(store, GenerationConfig(), ServingSettings()),
    )
    for other in made._others.values():
        other.live.refresh()
    return made


def ask(user):
    return RecommendationRequest(user_id=user, k=5)


def test_a_user_stays_with_a_version_and_the_share_holds():
    users = [f"user-{i}" for i in range(20_000)]
    of = {user: version_for(user, {"v000001": 0.1, "v000002": 0.3}) for user in users}
    counts = Counter(of.values())
    assert counts["v000001"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["v000002"] / 20_000 == pytest.approx(0.3, abs=0.015)
    assert {user for user in users if version_for(user, {"v000001": 0.05})} < {
        user for user in users if version_for(user, {"v000001": 0.1})
    }, "a share that grows keeps its users"


def test_each_answer_of_a_divided_batch_is_that_of_its_users_version(registry, store, answerer):
    split, current = split_of(registry, store, SHARES), registry.load("v000003")
    queries, users = [ask(user) for user in USERS[:40]], USERS[20:]
    answers, lists = split.answer(answerer, current, queries, users)
    assert [answer.user_id for answer in answers] == USERS[:40]
    assert [answer.user_id for answer in lists] == users
    alone = {
        version: ReadingAnswerer(store, GenerationConfig(), ServingSettings()) for version in ("v000001", "v000003")
    }
    for answer in answers + lists:
        version = version_for(answer.user_id, SHARES) or "v000003"
        assert (answer.model_version, version_of(answer.request_id)) == (version, version)
    for answer in answers[:6]:
        ((same,), _) = alone[answer.model_version].answer(
            registry.load(answer.model_version), [ask(answer.user_id)], []
        )
        assert [item.item_id for item in same.items] == [item.item_id for item in answer.items]
    assert {answer.model_version for answer in answers} == {"v000001", "v000003"}


def test_a_bad_query_of_another_versions_user_is_answered_by_its_problem(registry, store, answerer):
    split, current = split_of(registry, store, SHARES), registry.load("v000003")
    theirs = next(user for user in USERS if version_for(user, SHARES))
    bad = RecommendationRequest(user_id=theirs, k=5, surface="moon")
    answers, _ = split.answer(answerer, current, [ask(USERS[0]), bad, ask(USERS[1])], [])
    assert isinstance(answers[1], Problem)
    assert [answers[0].user_id, answers[2].user_id] == USERS[:2]


def test_users_of_a_version_that_cannot_serve_get_the_current_one_and_it_is_said(tmp_path, store, answerer):
    registry = Registry(tmp_path / "models")
    for seed in (1, 2):
        registry.publish(small_bundle(seed=seed))
    weights = registry.folder("v000001") / MODEL
    weights.write_bytes(weights.read_bytes()[:-1])
    split = split_of(registry, store, SHARES | {"v000009": 0.2})
    answers, _ = split.answer(answerer, registry.load("v000002"), [ask(user) for user in USERS], [])
    assert {answer.model_version for answer in answers} == {"v000002"}
    broken, missing = split.troubles
    assert broken.startswith("serving.split: v000001 does not serve: v000001 refused: hash")
    assert "'v000009' is not in" in missing


def test_nothing_is_kept_of_a_deleted_user_in_any_version(registry, store, answerer):
    split, current = split_of(registry, store, SHARES), registry.load("v000003")
    split.answer(answerer, current, [ask(user) for user in USERS], [])
    theirs = next(user for user in USERS if version_for(user, SHARES))
    kept = split._others["v000001"].answerer.states
    before = kept.report.users
    store.apply(0, store.offset(0), store.offset(0) + 1, [(theirs, None)], as_of=time.time())
    split.forget_deleted()
    assert kept.report.users == before - 1


@pytest.mark.parametrize(
    ("split", "said"),
    [({"latest": 0.1}, "pattern"), ({"v000001": 1.0}, "less than 1"), ({"v000001": 0.6, "v000002": 0.4}, "sum to 1")],
)
def test_a_split_that_cannot_be_is_refused_where_it_is_read(split, said):
    with pytest.raises(ValidationError, match=said):
        AppSettings(serving={"split": split})
