import copy
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from pinrec.bundle import MODEL, Bundle, BundleError
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig
from pinrec.dataset import EventColumns
from pinrec.encoding import encode
from pinrec.generation import generate, rank
from pinrec.history import ROW, History
from pinrec.items import Catalogue, Item
from pinrec.model import UNKNOWN, PinRecModel, previous_timestamps
from pinrec.popularity import Popularity
from pinrec.ranking import EXPOSURE_S, Exposures, ranking_loss
from pinrec.requests import GenerationRequest
from pinrec.training import Learner
from pinrec.windows import Windows
from tests.small_bundle import CONFIG, NOW, VOCABULARY, request, small_bundle
from tests.unit.pinrec.events import log
from tests.unit.pinrec.test_bundle import sign_again
from tests.unit.pinrec.test_generation import allowed_rows, some_requests

RANKED = CONFIG.model_copy(update={"ranking": True})
DEFAULT = GenerationConfig()


@pytest.fixture(scope="module")
def bundle():
    """With weights so large that whatever a candidate attends to shows in its score."""
    small = small_bundle(config=RANKED)
    model = copy.deepcopy(small.model)
    for block in model.backbone.blocks:
        for weight, factor in ((block.qkv.weight, 6.0), (block.out.weight, 50.0), (block.open.weight, 4.0)):
            weight.mul_(factor)
    model.ranking.out.weight.mul_(4.0)
    return Bundle.of(model, small.catalogue, small.popularity)


def scores(bundle, asked, rows, encoded=None):
    return rank(bundle, [asked], [np.array(rows)], DEFAULT, encoded)[0]


def from_scratch(bundle, asked, row):
    """The same score with history and candidate encoded as one sequence; the history has no queries."""
    model, events = bundle.model, asked.history.rows
    rows = bundle.catalogue.rows(events["item_hash"])
    surface = int(events["surface"][-1]) if asked.surface is None else asked.surface
    timestamp = torch.tensor([[*events["timestamp"].tolist(), asked.now]], dtype=torch.float64)
    x = model.tokens(
        torch.from_numpy(bundle.table[[*rows, row]])[None],
        torch.tensor([[*events["action"].tolist(), UNKNOWN]]),
        torch.tensor([[*events["surface"].tolist(), surface]]),
        timestamp,
        previous_timestamps(timestamp),
    )
    chance = dict(zip(VOCABULARY.outcomes, model.ranking(model(x))[0, -1].sigmoid().tolist(), strict=True))
    total = sum(asked.outcomes.values())
    return sum(share / total * chance[name] for name, share in asked.outcomes.items())


def history_of(bundle, rows):
    events = np.zeros(len(rows), ROW)
    events["item_hash"] = bundle.catalogue.hashes[rows]
    events["timestamp"] = NOW - 5_000.0 + 300.0 * np.arange(len(rows)) ** 1.5
    events["action"], events["surface"] = np.arange(len(rows)) % 4 % 3 + 3, np.arange(len(rows)) % 3
    return History.of_rows(events)


def test_scores_on_the_cached_history_are_those_of_encoding_each_candidate_with_it(bundle):
    for surface in (None, 2):
        asked = request(history=history_of(bundle, [5, 9, 2, 77]), surface=surface, outcomes={"save": 3, "click": 1})
        with torch.no_grad():
            expected = [from_scratch(bundle, asked, row) for row in (0, 9, 50, 119)]
        assert scores(bundle, asked, [0, 9, 50, 119]) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 32))
def test_a_candidates_score_depends_on_no_other_candidate_and_no_other_request(bundle, order, kept, length):
    asked = request(length, context_item="item-3")
    rows = np.arange(12) * 9
    whole = scores(bundle, asked, rows)
    others = [request(31, seed=1), request(2, seed=2)]
    some = rank(bundle, [others[0], asked, others[1]], [rows[:1], rows[order][:kept], np.arange(90)], DEFAULT)
    assert some[1] == pytest.approx(whole[order][:kept], abs=1e-5)
    assert np.ptp(whole) > 1e-4, "all scores alike would prove nothing"


def test_more_candidates_than_are_ranked_at_once_get_the_same_scores(bundle, monkeypatch):
    expected = scores(bundle, request(), np.arange(100))
    monkeypatch.setattr("pinrec.generation._RANKED", 7)
    assert scores(bundle, request(), np.arange(100)) == pytest.approx(expected, abs=1e-6)


def test_ranking_leaves_the_cache_as_it_was(bundle):
    encoded = encode(bundle, [request(8)])
    cache = encoded.cache
    before = cache.key.clone(), cache.value.clone(), cache.length_B.clone()
    first = scores(bundle, request(8), [1, 2, 3], encoded)
    for kept, was in zip((cache.key, cache.value, cache.length_B), before, strict=True):
        assert torch.equal(kept, was)
    np.testing.assert_array_equal(scores(bundle, request(8), [1, 2, 3], encoded), first)


def test_a_budget_weighs_the_chances_of_its_outcomes(bundle):
    rows = np.arange(20)
    single = [scores(bundle, request(outcomes={name: 1.0}), rows) for name in ("click", "save")]
    both = scores(bundle, request(outcomes={"click": 1.0, "save": 3.0}), rows)
    assert both == pytest.approx(0.25 * single[0] + 0.75 * single[1], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(some_requests, min_size=1, max_size=3),
    st.sampled_from(["unconditioned", "outcome", "multi_token"]),
    st.sampled_from([1, 3]),
    st.sampled_from([0, 5_000]),
)
def test_a_reranked_list_keeps_budget_and_filters_and_is_ordered_by_the_head(bundle, asked, mode, rerank, scanned_rows):
    plain = GenerationConfig(mode=mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinrec.retrieval._SCANNED_ROWS", scanned_rows)
        before = generate(bundle, asked, plain)
        lists = generate(bundle, asked, plain.model_copy(update={"rerank": rerank}))
    for each, found, was in zip(asked, lists, before, strict=True):
        rows = [c.row for c in found]
        allowed = allowed_rows(bundle, each)
        assert len(set(rows)) == len(rows) == min(each.k, len(allowed))
        assert set(rows) <= allowed
        assert Counter(c.outcome for c in found) == Counter(c.outcome for c in was)
        if len(found) == each.k:  # a list that filters cut short has no whole places
            places = Counter(c.outcome for c in found)
            for head in range(1, each.k + 1):
                counted = Counter(c.outcome for c in found[:head])
                assert all(abs(counted[name] - n * head / each.k) <= 1 + 1e-9 for name, n in places.items())
        if rerank == 1:
            assert set(rows) == {c.row for c in was}
        assert [c.score for c in found] == pytest.approx(list(scores(bundle, each, rows)), abs=1e-5)
        for outcome in {c.outcome for c in found}:
            mine = [c.score for c in found if c.outcome == outcome]
            assert mine == sorted(mine, reverse=True)


@pytest.mark.parametrize("k", [2, 5, 10, 30])
def test_outcomes_whose_items_rank_low_keep_their_places(bundle, k):
    asked = request(k=k, outcomes={"click": 0.5, "save": 0.3, "share": 0.2})
    plain, ranked = (generate(bundle, [asked], GenerationConfig(rerank=depth))[0] for depth in (0, 3))
    assert Counter(c.outcome for c in ranked) == Counter(c.outcome for c in plain)
    assert {c.row for c in ranked} != {c.row for c in plain}


def test_deep_enough_the_list_is_the_heads_best_of_the_whole_catalogue(bundle):
    asked = request(outcomes={"save": 1.0}, exclude_seen=False)
    found = generate(bundle, [asked], GenerationConfig(mode="outcome", rerank=12))[0]
    best = np.argsort(-scores(bundle, asked, np.arange(120)))[:10]
    assert [c.row for c in found] == best.tolist()
    assert [c.row for c in found] != [c.row for c in generate(bundle, [asked], GenerationConfig(mode="outcome"))[0]]


def test_a_request_that_cannot_be_answered_is_refused_before_it_is_encoded(bundle):
    with pytest.raises(ValueError, match="history: is empty"):
        generate(bundle, [request(history=None)], GenerationConfig(rerank=2))


def test_without_a_head_the_order_is_that_of_retrieval_and_ranking_says_what_lacks():
    plain = small_bundle()
    lists = [generate(plain, [request()], GenerationConfig(rerank=depth))[0] for depth in (0, 4)]
    assert lists[0] == lists[1]
    with pytest.raises(ValueError, match=r"ranking: .*model\.ranking"):
        rank(plain, [request()], [np.arange(3)], DEFAULT)


def test_the_head_adds_its_own_parameters_and_changes_no_other():
    def weights(config):
        torch.manual_seed(0)
        return PinRecModel(config, VOCABULARY).state_dict()

    plain, ranked = weights(CONFIG), weights(RANKED)
    assert {name for name in ranked if name not in plain} == {
        "ranking.unknown", "ranking.hidden.weight", "ranking.hidden.bias", "ranking.out.weight", "ranking.out.bias"
    }  # fmt: skip
    for name, value in plain.items():
        assert torch.equal(value, ranked[name])


def test_a_loaded_bundle_ranks_as_the_one_that_was_written(bundle, tmp_path):
    loaded = bundle.write(tmp_path / "v1", "v1")
    np.testing.assert_array_equal(scores(loaded, request(), np.arange(120)), scores(bundle, request(), np.arange(120)))
    assert all(len(query.ranking) == len(query.items) for query in loaded.manifest.golden)


def test_another_ranking_head_than_the_bundle_was_made_with_is_refused(bundle, tmp_path):
    bundle.write(tmp_path / "v1", "v1")
    weights = load_file(tmp_path / "v1" / MODEL)
    weights["ranking.out.bias"] += 0.1
    save_file(weights, tmp_path / "v1" / MODEL)
    sign_again(tmp_path / "v1")
    with pytest.raises(BundleError, match=r"golden: .*ranks items otherwise"):
        Bundle.load(tmp_path / "v1")


def brute_exposures(events, vocabulary):
    """(user, time of the first event, item) -> (outcomes met, events of the user at an earlier time)."""
    rows = sorted(range(len(events)), key=lambda i: (events.user[i], events.timestamp[i], i))
    opened, found = {}, {}
    for i in rows:
        if events.is_query[i]:
            continue
        key, time = (int(events.user[i]), int(events.item_hash[i])), float(events.timestamp[i])
        first, last = opened.get(key, (time, -np.inf))
        if time - last > EXPOSURE_S:
            first = time
        opened[key] = (first, time)
        earlier = sum(events.user[j] == events.user[i] and events.timestamp[j] < first for j in rows)
        met, _ = found.setdefault((key[0], first, key[1]), (set(), earlier))
        action = vocabulary.actions[events.action[i]]
        if action.engaging:
            met.add(action.name)
    return found


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_exposures_are_those_of_a_plain_loop(seed, n):
    rng = np.random.default_rng(seed)
    action = rng.choice(["impression", "hide", "click", "save", "search"], n).tolist()
    columns = {
        "user_id": [f"u{i}" for i in rng.integers(0, 3, n)],
        "item_id": [f"i{i}" for i in rng.integers(0, 4, n)],
        "action": action,
        "surface": rng.choice(["home", "search"], n).tolist(),
        "timestamp": 400.0 * rng.integers(0, 20, n),
        "item_type": ["query" if name == "search" else "item" for name in action],
        "query": ["red cup" if name == "search" else None for name in action],
    }
    events = EventColumns.of_columns(columns, VOCABULARY)
    windows = Windows(events, VOCABULARY)
    found = Exposures(windows, events, VOCABULARY)
    assert (np.diff(found.start) > 0).all()
    assert {
        (int(windows.user[start]), float(time), int(events.item_hash[windows.order[start]])): (
            {VOCABULARY.outcomes[o] for o in np.flatnonzero(met)},
            int(seen - windows.start[windows.user[start]]),
        )
        for start, time, met, seen in zip(found.start, found.timestamp, found.met, found.seen, strict=True)
    } == brute_exposures(events, VOCABULARY)
    for seen, previous in zip(found.seen, found.previous, strict=True):
        assert not seen or previous == windows.timestamp[seen - 1]


def test_of_a_window_only_exposures_with_a_history_in_it_are_learned_from():
    events = log(*((user, f"i{n}", "click", 10.0 * (n // 2)) for user in "ab" for n in range(6)))
    found = Exposures(Windows(events, VOCABULARY), events, VOCABULARY)
    which, real = found.within(np.array([0, 7]), np.array([6, 12]), np.array([0, 9]))
    assert found.start[which[0][real[0]]].tolist() == [2, 3, 4, 5]
    assert found.start[which[1][real[1]]].tolist() == [9, 10, 11]
    which, real = found.within(np.array([1]), np.array([2]), np.array([1]))
    assert not real.any(), "what was shown at the same moment is no history"


def test_an_exposure_is_learned_from_what_stood_before_its_moment_and_from_its_item_alone():
    times = [0.0, 10.0, 20.0, 30.0, 40.0, 40.0, 50.0]
    events = log(*(("u", f"i{n}", "click", time) for n, time in enumerate(times)))
    exposures = Exposures(Windows(events, VOCABULARY), events, VOCABULARY)
    torch.manual_seed(0)
    model = PinRecModel(RANKED, VOCABULARY)
    x, item = (torch.randn(1, 7, RANKED.width, requires_grad=True) for _ in range(2))
    _, cache = model.prefill(x, torch.tensor([7]))
    lo, hi = np.array([0]), np.array([6])  # the last event is of another window

    ranking_loss(model, exposures, lo, hi, np.array([5]), item, cache, total=1).backward()
    assert (x.grad[0].abs().sum(1) > 0).tolist() == [True] * 4 + [False] * 3
    assert (item.grad[0].abs().sum(1) > 0).tolist() == [False] * 5 + [True, False]


TASTE = ModelConfig(
    width=32, layers=1, heads=2, hash_buckets=64, bag_buckets=64, id_width=4, bag_width=8, dropout=0.0, ranking=True
)
TRAINING = TrainingConfig(batch_users=16, window=24, uniform_negatives=32, learning_rate=1e-2)
ITEMS = 60


def taste_log(users, seed):
    """Every other user clicks on the odd items that are shown, the others on none; what is shown is drawn at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for n, item in enumerate(rng.permutation(ITEMS)[:20]):
            action = "click" if item % 2 and user % 2 else "impression"
            rows.append((f"u{seed}.{user}", f"i{item:02}", action, 1e9 + 60.0 * n))
    return log(*rows)


def taste_catalogue():
    return Catalogue.of([Item(f"i{n:02}", categories=("odd" if n % 2 else "even",)) for n in range(ITEMS)], TASTE)


def chances(learner, users=60):
    """What unknown users are shown behind the first half: scores on that half, and clicks, both [users, 10]."""
    ranked = np.arange(ITEMS)
    bundle = Bundle.of(learner.served(), taste_catalogue(), Popularity(np.tile(ranked, (4, 1)), ranked[:5]))
    events = taste_log(users, seed=9)
    rows = np.zeros(len(events), ROW)
    for name in ("timestamp", "item_hash", "action", "surface"):
        rows[name] = getattr(events, name)
    asked = [
        GenerationRequest(History.of_rows(rows[lo : lo + 10]), 10, events.timestamp[lo + 10], {"click": 1.0})
        for lo in range(0, len(events), 20)
    ]
    shown = bundle.catalogue.rows(events.item_hash).reshape(-1, 20)[:, 10:]
    return np.stack(rank(bundle, asked, list(shown), DEFAULT)), events.engaged(VOCABULARY).reshape(-1, 20)[:, 10:]


def ndcg(score, clicked):
    """Mean NDCG of the users who clicked on anything."""
    gain = 1 / np.log2(np.arange(score.shape[1]) + 2)
    hit = np.take_along_axis(clicked, np.argsort(-score, axis=1), 1)
    best = np.array([gain[:n].sum() for n in clicked.sum(1)])
    return float(((hit * gain).sum(1)[best > 0] / best[best > 0]).mean())


def test_the_head_learns_which_of_the_shown_items_are_engaged_with_and_by_whom():
    learner = Learner(TASTE, VOCABULARY, TRAINING, "multi_token")
    learner.fit(taste_log(300, seed=0), taste_catalogue(), 80)
    score, clicked = chances(learner)
    assert ndcg(np.random.default_rng(0).random(score.shape), clicked) < 0.85
    assert ndcg(score, clicked) > 0.97
    assert score[1::2][clicked[1::2]].mean() > 0.8
    # The items are the same ones; that these users never click is in their histories alone.
    assert score[::2].mean() < 0.1


def test_a_learner_with_a_ranking_head_goes_on_from_saved_state_as_if_it_had_not_stopped():
    events = taste_log(60, seed=0)
    training = TRAINING.model_copy(update={"averaging": 0.9})
    one = Learner(TASTE, VOCABULARY, training, "multi_token")
    one.fit(events, taste_catalogue(), 5)
    other = Learner(TASTE, VOCABULARY, training, "multi_token")
    other.load_state(load(save(one.state())))
    for learner in (one, other):
        learner.fit(events, taste_catalogue(), 4)
    states = one.state(), other.state()
    assert "optimizer.ranking.unknown.exp_avg" in states[0]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0, msg=name)


def test_state_without_a_ranking_head_is_refused_by_a_learner_with_one():
    plain = Learner(TASTE.model_copy(update={"ranking": False}), VOCABULARY, TRAINING, "outcome")
    with pytest.raises(ValueError, match="train a new one"):
        Learner(TASTE, VOCABULARY, TRAINING, "outcome").load_state(plain.state())


def test_a_log_without_anything_to_rank_is_trained_on_all_the_same():
    events = log(("u", "i01", "click", 1), ("v", "i01", "click", 1), ("v", "i02", "click", 2))
    assert np.isfinite(Learner(TASTE, VOCABULARY, TRAINING, "outcome").fit(events, taste_catalogue(), 3).loss)
