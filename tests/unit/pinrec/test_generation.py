from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.budget import BudgetError, normalised, slots
from pinrec.config import GenerationConfig
from pinrec.generation import embed, generate, popular
from pinrec.hashing import hash_id
from pinrec.history import History, HistoryEvent
from pinrec.index import ItemIndex
from pinrec.items import feature_bag, query_bag
from pinrec.model import previous_timestamps
from pinrec.requests import RequestError
from tests.small_bundle import CONFIG, NOW, VOCABULARY, request, small_bundle, small_history

DEFAULT = GenerationConfig()
MODES = ("unconditioned", "outcome", "multi_token")


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


def one(bundle, asked, config=DEFAULT):
    return generate(bundle, [asked], config)[0]


@pytest.mark.parametrize("outcome", VOCABULARY.outcomes)
@pytest.mark.parametrize("mode", ["outcome", "multi_token"])
def test_all_on_one_outcome_gives_that_outcomes_embeddings_only(bundle, outcome, mode):
    config = GenerationConfig(mode=mode)
    asked = request(outcomes={outcome: 1.0})
    embeddings = embed(bundle, [asked], config)
    assert set(embeddings.outcome_BE[0].tolist()) == {VOCABULARY.action_index[outcome]}
    found = one(bundle, asked, config)
    assert {candidate.outcome for candidate in found} == {outcome}
    assert len(found) == 10


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(VOCABULARY.outcomes), st.floats(0.01, 1), min_size=1), st.integers(1, 40))
def test_a_split_budget_is_kept_in_the_list_and_in_its_head(bundle, outcomes, k):
    found = one(bundle, request(outcomes=outcomes, k=k))
    shares = normalised(outcomes, VOCABULARY)
    expected = dict(zip(shares, slots(list(shares.values()), k), strict=True))
    assert Counter(c.outcome for c in found) == Counter({name: n for name, n in expected.items() if n})
    for head in range(1, k + 1):
        counted = Counter(c.outcome for c in found[:head])
        assert all(abs(counted[name] - n * head / k) <= 1 + 1e-9 for name, n in expected.items())
    for name in shares:
        scores = [c.score for c in found if c.outcome == name]
        assert scores == sorted(scores, reverse=True)


def test_candidates_say_what_was_aimed_at(bundle):
    found = one(bundle, request(k=40), GenerationConfig(compression=1.0))
    assert {c.step for c in found} <= {0, 1}
    assert {c.offset_s for c in found} <= set(CONFIG.offsets_s)
    unconditioned = one(bundle, request(), GenerationConfig(mode="unconditioned", steps=3))
    assert {(c.outcome, c.offset_s) for c in unconditioned} == {(None, None)}
    assert {(c.outcome is None, c.offset_s) for c in one(bundle, request(), GenerationConfig(mode="outcome"))} == {
        (False, None)
    }


def test_an_outcomes_places_go_to_the_items_its_embeddings_find_most_likely_together(bundle):
    asked, config = request(k=12, outcomes={"click": 1.0}), GenerationConfig(compression=1.0)
    embeddings = embed(bundle, [asked], config)
    weight_E = embeddings.slots_BE[0] / 12
    temperature = float(bundle.model.temperature)
    fit_N = temperature * np.log(
        (weight_E[:, None] * np.exp(embeddings.e_BED[0] @ bundle.table.T / temperature)).sum(0)
    )
    found = one(bundle, asked, config)
    unseen = [row for row in np.argsort(-fit_N) if row not in seen_rows(bundle, asked)][:12]
    assert [c.row for c in found] == unseen
    assert [c.score for c in found] == pytest.approx(fit_N[unseen].tolist(), abs=1e-5)
    for candidate in found:
        best = int((embeddings.e_BED[0] @ bundle.table[candidate.row]).argmax())
        assert candidate.step == embeddings.step_E[best]
        assert candidate.offset_s == embeddings.offset_E[best]


def seen_rows(bundle, asked):
    return set(bundle.catalogue.rows(asked.history.rows["item_hash"]).tolist())


@pytest.mark.parametrize(
    ("mode", "per_step"), [("unconditioned", 1), ("outcome", 3), ("multi_token", 3 * len(CONFIG.offsets_s))]
)
def test_a_step_emits_outcomes_times_offsets_embeddings(bundle, mode, per_step):
    embeddings = embed(bundle, [request(), request(k=7, seed=1)], GenerationConfig(mode=mode, steps=3))
    assert embeddings.e_BED.shape == (2, 3 * per_step, CONFIG.width)
    assert embeddings.slots_BE.sum(1).tolist() == [10, 7]
    assert np.linalg.norm(embeddings.e_BED, axis=2) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("steps", "wanted"), [(4, [[0], [1], [2], [0]]), (2, [[0, 2], [1, -1]])])
def test_outcomes_in_turn_are_one_a_step_or_as_few_as_leave_none_out(bundle, steps, wanted):
    outcomes = {"save": 0.2, "click": 0.5, "share": 0.3}
    aims = [VOCABULARY.action_index[name] for name in ("click", "share", "save")] + [-1]
    config = GenerationConfig(mode="multi_token", steps=steps, in_turn=True)
    embeddings = embed(bundle, [request(k=9, outcomes=outcomes)], config)
    expected = [aims[number] for step in wanted for number in step for _ in CONFIG.offsets_s]
    assert embeddings.outcome_BE[0].tolist() == expected
    places = {aim: int(embeddings.slots_BE[0][embeddings.outcome_BE[0] == aim].sum()) for aim in aims}
    assert list(places.values()) == [4, 3, 2, 0], "the budget is the same, however the embeddings are made"


def from_scratch(bundle, asked, mode, steps, in_turn=False):
    """The same embeddings with the whole sequence encoded anew for every step."""
    model, rows = bundle.model, asked.history.rows[-CONFIG.history :]
    item = []
    for row, item_id in zip(rows, asked.history.item_ids[-CONFIG.history :], strict=True):
        one_row = bundle.catalogue.row(item_id)
        if row["is_query"]:
            item.append(model.query_vectors(torch.from_numpy(query_bag(item_id, CONFIG))[None])[0])
        elif one_row >= 0:
            item.append(torch.from_numpy(bundle.table[one_row].copy()))
        else:
            bits = torch.from_numpy(np.array([row["item_hash"]]).view(np.int64))
            none = torch.zeros(1, CONFIG.content_width), torch.zeros(1, dtype=torch.bool)
            item.append(model.item_vectors(bits, torch.from_numpy(feature_bag((), CONFIG))[None], *none)[0])
    action, surface = rows["action"].tolist(), rows["surface"].tolist()
    timestamp = rows["timestamp"].tolist()
    names = list(normalised(asked.outcomes or bundle.outcomes, VOCABULARY))
    aims = [VOCABULARY.action_index[name] for name in names]
    to = -1 if mode == "unconditioned" or asked.surface is None else asked.surface
    generated = []
    for step in range(steps):
        now_aimed_at = [aims[step % len(aims)]] if in_turn and mode != "unconditioned" else aims
        outcome = {"unconditioned": [-1], "outcome": now_aimed_at}.get(mode)
        outcome = outcome or [a for a in now_aimed_at for _ in CONFIG.offsets_s]
        times = torch.tensor([timestamp], dtype=torch.float64)
        x = model.tokens(
            torch.stack(item)[None],
            torch.tensor([action]),
            torch.tensor([surface]),
            times,
            previous_timestamps(times),
        )
        h, _ = model.prefill(x, torch.tensor([len(item)]))
        pause = max(0.0, asked.now - timestamp[-1])
        offset = [pause + o for _ in now_aimed_at for o in CONFIG.offsets_s]
        offset = offset if mode == "multi_token" else [-1.0] * len(outcome)
        e = model.head(h[:, -1], torch.tensor([outcome]), torch.full((1, len(outcome)), to), torch.tensor([offset]))[0]
        generated.append(e)
        item.append(e[0])
        action.append(now_aimed_at[0])
        surface.append(surface[-1] if asked.surface is None else asked.surface)
        timestamp.append(max(asked.now, timestamp[-1]))
    return torch.cat(generated).numpy()


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_cached_generation_equals_generation_from_scratch(bundle, mode, in_turn):
    asked = [
        request(length, seed, surface=surface, outcomes=outcomes)
        for seed, (length, surface, outcomes) in enumerate(
            [(1, None, None), (5, 0, {"save": 0.2, "click": 0.5, "share": 0.3}), (32, 2, None), (17, 0, {"click": 1.0})]
        )
    ]
    elsewhere = {int(each.history.rows["surface"][-1]) != each.surface for each in asked if each.surface is not None}
    assert True in elsewhere, "a list must be asked for on another surface than the last event's"
    together = embed(bundle, asked, GenerationConfig(mode=mode, steps=4, in_turn=in_turn))
    for b, each in enumerate(asked):
        expected = from_scratch(bundle, each, mode, 4, in_turn)
        real = np.ones(len(together.outcome_BE[b]), bool) if mode == "unconditioned" else together.outcome_BE[b] >= 0
        assert np.abs(together.e_BED[b][real] - expected).max() < 1e-5


def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(bundle):
    asked = [request(n, seed=n, k=k) for n, k in ((1, 3), (9, 10), (32, 25))]
    together = generate(bundle, asked, DEFAULT)
    for each, found in zip(asked, together, strict=True):
        alone = one(bundle, each)
        assert [c.item_id for c in alone] == [c.item_id for c in found]
        assert [c.score for c in alone] == pytest.approx([c.score for c in found], abs=1e-5)


def test_a_whole_batch_is_searched_for_at_once_whatever_its_filters(bundle, monkeypatch):
    searches, search = [], ItemIndex.search

    def counted(index, q_QD, k):
        searches.append(len(q_QD))
        return search(index, q_QD, k)

    monkeypatch.setattr(ItemIndex, "search", counted)
    asked = [request(n, seed=n, k=5, exclude=frozenset(f"item-{i}" for i in range(n))) for n in (1, 9, 20)]
    assert [len(found) for found in generate(bundle, asked, GenerationConfig(compression=1.0))] == [5, 5, 5]
    of_each = [int((row > 0).sum()) for row in embed(bundle, asked, GenerationConfig(compression=1.0)).slots_BE]
    assert searches == [sum(of_each)]


def allowed_rows(bundle, asked):
    seen = set(asked.history.item_ids) if asked.exclude_seen else set()
    return {
        row
        for row, (item_id, categories) in enumerate(
            zip(bundle.catalogue.item_ids, bundle.catalogue.categories, strict=True)
        )
        if item_id not in seen
        and item_id not in asked.exclude
        and item_id != asked.context_item
        and (not asked.categories or asked.categories & set(categories))
    }


some_requests = st.builds(
    lambda length, seed, k, seen, exclude, categories, outcomes, item: request(
        length,
        seed,
        k=k,
        exclude_seen=seen,
        exclude=frozenset(f"item-{i}" for i in exclude),
        categories=frozenset(categories),
        outcomes=outcomes,
        context_item=item,
    ),
    length=st.integers(1, 32),
    seed=st.integers(0, 5),
    k=st.integers(1, 200),
    seen=st.booleans(),
    exclude=st.one_of(st.just(set()), st.sets(st.integers(0, 125)), st.just(set(range(1, 120)))),
    categories=st.sets(st.sampled_from(["rivers", "bread", "rare", "nothing of it"])),
    outcomes=st.sampled_from([None, {"save": 1.0}, {"click": 0.9, "share": 0.1}]),
    item=st.sampled_from([None, "item-3", "nowhere"]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(some_requests, min_size=1, max_size=3),
    st.sampled_from(MODES),
    st.sampled_from([1.0, 3.0]),
    st.sampled_from([0, 5_000]),
)
def test_k_distinct_items_wherever_k_exist_and_nothing_filtered(bundle, asked, mode, overfetch, scanned_rows):
    config = GenerationConfig(mode=mode, overfetch=overfetch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinrec.retrieval._SCANNED_ROWS", scanned_rows)
        lists = generate(bundle, asked, config)
    for each, found in zip(asked, lists, strict=True):
        allowed = allowed_rows(bundle, each)
        rows = [c.row for c in found]
        assert len(set(rows)) == len(rows) == min(each.k, len(allowed))
        assert set(rows) <= allowed
        assert [bundle.catalogue.item_ids[row] for row in rows] == [c.item_id for c in found]


@settings(max_examples=30, deadline=None)
@given(some_requests)
def test_popular_items_pass_the_same_filters(bundle, asked):
    found = popular(bundle, asked)
    allowed = allowed_rows(bundle, asked)
    rows = [c.row for c in found]
    assert len(set(rows)) == len(rows) == min(asked.k, len(allowed))
    assert set(rows) <= allowed


def test_an_unknown_user_gets_popular_items_with_fresh_ones_between(bundle):
    asked = request(history=None, k=10)
    rows = [c.row for c in popular(bundle, asked)]
    newest = set(bundle.popularity.newest[:5].tolist())
    assert sum(row in newest for row in rows) == 2
    assert rows[0] == bundle.popularity.top(None, 1)[0]


def test_an_index_that_gives_up_early_is_made_up_for_by_the_table(bundle):
    class Shallow(ItemIndex):
        """Finds only three items, as an approximate index may."""

        def search(self, q_ED, k):
            scores, rows = super().search(q_ED, k)
            rows[:, 3:] = -1
            return scores, rows

    shallow = replace(bundle, index=Shallow(ItemIndex.build(bundle.table)._index))
    asked = request(k=60)
    found = generate(shallow, [asked], DEFAULT)[0]
    assert len({c.row for c in found}) == 60


def test_each_embeddings_places_hold_its_best_items(bundle):
    asked = request(outcomes={"save": 1.0}, exclude_seen=False, k=12)
    config = GenerationConfig(mode="outcome", steps=1)
    e_D = embed(bundle, [asked], config).e_BED[0, 0]
    expected = np.argsort(-(bundle.table @ e_D))[:12]
    assert [c.row for c in one(bundle, asked, config)] == expected.tolist()


def test_alike_embeddings_share_one_search_and_the_list_stays_full(bundle):
    merged = one(bundle, request(k=20), GenerationConfig(compression=-0.99))
    assert len({c.row for c in merged}) == 20
    assert {(c.offset_s, c.step) for c in merged} == {(0.0, 0)}
    assert Counter(c.outcome for c in merged) == Counter(c.outcome for c in one(bundle, request(k=20)))


def test_context_changes_the_answer_and_makes_one_without_a_history(bundle):
    plain = one(bundle, request())
    for context in ({"context_item": "item-5"}, {"context_query": "bread"}):
        assert [c.score for c in one(bundle, request(**context))] != [c.score for c in plain]
        alone = one(bundle, request(history=None, **context))
        assert len({c.row for c in alone}) == 10
    both = one(bundle, request(history=None, context_item="item-5", context_query="bread"))
    assert "item-5" not in {c.item_id for c in both}


def test_a_context_is_one_more_event_now(bundle):
    """A query as context gives what the same query as the newest event gives."""
    before = small_history(6)
    search = VOCABULARY.action_index["search"]
    event = HistoryEvent(NOW, "z", "bread", hash_id("bread"), search, 1, True)
    after = History.of([*before.events(), event])
    asked = [request(history=before, context_query="bread", surface=1), request(history=after, surface=1)]
    embeddings = embed(bundle, asked, DEFAULT)
    assert np.abs(embeddings.e_BED[0] - embeddings.e_BED[1]).max() < 1e-5


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"k": 0}, "k"), ({"k": 10**6}, "k"), ({"k": -1}, "k"), ({"history": None}, "history")],
)
def test_a_request_that_cannot_be_answered_names_its_field(bundle, fields, field):
    with pytest.raises(RequestError) as refused:
        one(bundle, request(**fields))
    assert refused.value.field == field


@pytest.mark.parametrize("outcomes", [{"buy": 1.0}, {"save": -1.0}, {"save": 0.0}, {}, {"save": float("nan")}])
def test_a_bad_budget_is_refused(bundle, outcomes):
    with pytest.raises(BudgetError):
        one(bundle, request(outcomes=outcomes))


def test_a_history_from_the_future_is_answered(bundle):
    found = one(bundle, request(now=NOW - 1e6))
    assert len({c.row for c in found}) == 10


def test_no_requests_no_lists(bundle):
    assert generate(bundle, [], DEFAULT) == []


def test_outcomes_that_want_the_same_items_share_the_best_of_them(bundle):
    both = one(bundle, request(k=20, outcomes={"click": 0.5, "save": 0.5}), GenerationConfig(compression=1.0))
    alone = {
        name: [c.row for c in one(bundle, request(k=20, outcomes={name: 1.0}), GenerationConfig(compression=1.0))]
        for name in ("click", "save")
    }
    best = {name: next(c.row for c in both if c.outcome == name) for name in alone}
    first, second = both[0].outcome, both[1].outcome
    assert best[first] == alone[first][0]
    # The other gets its own best too, unless the first has just taken it: then its second best.
    assert best[second] == next(row for row in alone[second] if row != best[first])
