"""A delta over a bundle answers as a bundle would that was made anew of the same items."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pinrec.bundle import Bundle
from pinrec.config import GenerationConfig, ModelConfig
from pinrec.delta import Delta, View
from pinrec.generation import generate, popular, rank, similar
from pinrec.hashing import hash_id
from pinrec.history import History
from pinrec.items import Catalogue, Item
from pinrec.popularity import Popularity
from pinrec.states import UserStates
from streaming.schema import ItemUpdate
from tests.small_bundle import CONFIG, NOW, TOPICS, request, small_bundle, small_history, small_items

DEFAULT = GenerationConfig()
# Every search goes through the whole catalogue: what an index finds first is no matter of the delta.
WHOLE = {"max_k": 200, "overfetch": 10.0}
MOST = 100


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


def new_item(number, categories=("maps",), **fields):
    return Item(**({"item_id": f"new-{number}", "title": f"about maps {number}", "categories": categories} | fields))


CHANGES = {
    **{f"new-{i}": new_item(i, (TOPICS[i % 4],), created_at=NOW + i) for i in range(30)},
    **{f"item-{i}": replace(small_items()[i], title=f"renamed {i}", categories=("bread",)) for i in range(20, 40)},
    **{f"item-{i}": None for i in range(40, 70)},
    "item-700": None,
}


def anew(bundle, changes):
    """The bundle that a trainer would make now, without having trained."""
    items = {item.item_id: item for item in small_items()} | changes
    catalogue = Catalogue.of([item for item in items.values() if item is not None], bundle.config)
    ranked = np.full_like(bundle.popularity.ranked, -1)
    for mine, theirs in zip(ranked, bundle.popularity.ranked, strict=True):
        rows = [catalogue.row(bundle.catalogue.item_ids[row]) for row in theirs if row >= 0]
        rows = [row for row in rows if row >= 0]
        mine[: len(rows)] = rows
    newest = np.argsort(-catalogue.created_at, kind="stable")[:200]
    return Bundle.of(bundle.model, catalogue, Popularity(ranked, newest))


def ids(candidates):
    return [candidate.item_id for candidate in candidates]


def requests():
    everything = frozenset(f"item-{i}" for i in range(10)) | {"new-3", "item-21", "item-41"}
    return [
        request(length=12),
        request(length=3, seed=1, k=40),
        request(length=20, seed=2, exclude=everything),
        request(length=20, seed=2, exclude_seen=False),
        request(length=5, seed=3, categories=frozenset({"bread"}), k=30),
        request(length=5, seed=3, categories=frozenset({"rare", "maps"}), k=90),
        request(length=5, seed=4, context_item="new-4"),
        request(length=0, history=None, context_item="item-25"),
        request(length=0, history=None, context_query="about maps"),
        request(length=9, seed=5, k=120),
    ]


@pytest.mark.parametrize("mode", ["unconditioned", "multi_token"])
@pytest.mark.parametrize("width", ["float32", "int8"])
def test_answers_are_those_of_a_bundle_made_anew(mode, width):
    base = small_bundle(config=CONFIG.model_copy(update={"table_dtype": width, "width": 32}))
    delta, fresh = Delta.of(base, CHANGES, MOST), anew(base, CHANGES)
    config = GenerationConfig(mode=mode, **WHOLE)
    # Histories are encoded by the bundle alone, so only what the items of the histories are may differ.
    unchanged = {f"item-{i}" for i in range(20)} | {f"item-{i}" for i in range(70, 200)}
    for wanted in requests():
        events = wanted.history.events() if wanted.history else []
        kept = [event for event in events if event.item_id in unchanged or event.is_query]
        asked = replace(wanted, history=History.of(kept) if kept else None)
        (ours,), (theirs,) = (generate(b, [asked], config, delta=d) for b, d in ((base, delta), (fresh, None)))
        assert len(ours) == len(theirs)
        close = 1e-4 if width == "float32" else 2e-2
        assert sorted(c.score for c in ours) == pytest.approx(sorted(c.score for c in theirs), abs=close)
        if width == "float32":
            assert ids(ours) == ids(theirs)


def test_popular_items_are_those_of_a_bundle_made_anew(bundle):
    delta, fresh = Delta.of(bundle, CHANGES, MOST), anew(bundle, CHANGES)
    for asked in (request(history=None, k=60), request(history=None, k=20, categories=frozenset({"bread"}))):
        assert ids(popular(bundle, asked, delta=delta)) == ids(popular(fresh, asked))
    everything = popular(bundle, request(history=None, k=500), delta=delta)
    assert sorted(ids(everything)) == sorted(fresh.catalogue.item_ids)


def test_similar_items_are_those_of_a_bundle_made_anew(bundle):
    delta, fresh = Delta.of(bundle, CHANGES, MOST), anew(bundle, CHANGES)
    for item_id in ("item-3", "new-7", "item-30"):
        for k, categories in ((12, frozenset()), (40, frozenset({"maps"})), (500, frozenset())):
            ours, theirs = (
                similar(bundle, item_id, k, DEFAULT, categories, delta),
                similar(fresh, item_id, k, DEFAULT, categories),
            )
            assert ids(ours) == ids(theirs)
            assert item_id not in ids(ours)
            assert [c.score for c in ours] == pytest.approx([c.score for c in theirs], abs=1e-5)
            assert [c.score for c in ours] == sorted((c.score for c in ours), reverse=True)
    assert len(ours) == len(fresh.catalogue) - 1
    assert similar(bundle, "item-41", 5, DEFAULT, delta=delta) is None, "it was deleted"
    assert similar(bundle, "new-7", 5, DEFAULT) is None, "without the delta nobody knows it"


def test_step_by_step_is_the_same_as_all_at_once(bundle):
    delta = Delta.of(bundle, {}, MOST)
    for item_id, item in [*CHANGES.items(), ("new-5", None), ("item-21", None), ("item-50", small_items()[50])]:
        delta = delta.updated(bundle, {item_id: item}, MOST)
    at_once = Delta.of(bundle, CHANGES | {"new-5": None, "item-21": None, "item-50": small_items()[50]}, MOST)
    assert sorted(delta.catalogue.item_ids) == sorted(at_once.catalogue.item_ids)
    assert (delta.gone == at_once.gone).all()
    assert (len(delta), delta.deleted) == (29 + 19, 29 + 1)
    asked = request(length=12, k=50)
    assert ids(generate(bundle, [asked], DEFAULT, delta=delta)[0]) == ids(
        generate(bundle, [asked], DEFAULT, delta=at_once)[0]
    )


def test_deleted_items_come_back_from_nowhere(bundle):
    delta = Delta.of(bundle, {f"item-{i}": None for i in range(119)}, MOST)
    only = ["item-119"]
    for asked in (request(k=10), request(k=10, categories=frozenset({"wool"})), request(k=10, context_item="item-3")):
        assert set(ids(generate(bundle, [asked], DEFAULT, delta=delta)[0])) <= set(only)
    assert ids(popular(bundle, request(history=None), delta=delta)) == only
    assert ids(similar(bundle, "item-119", 9, DEFAULT, delta=delta)) == []


def test_a_changed_category_and_title_hold_at_once(bundle):
    moved = replace(small_items()[0], categories=("new topic", "rare"), title="Now otherwise")
    delta = Delta.of(bundle, {"item-0": moved}, MOST)
    there = request(k=3, exclude_seen=False, categories=frozenset({"new topic"}))
    (found,) = generate(bundle, [there], DEFAULT, delta=delta)
    assert ids(found) == ["item-0"]
    assert View(bundle, delta).titles([found[0].row]) == ["Now otherwise"]
    former = request(k=120, exclude_seen=False, categories=frozenset({"rivers"}))
    assert "item-0" in ids(generate(bundle, [former], DEFAULT)[0])
    assert "item-0" not in ids(generate(bundle, [former], DEFAULT, delta=delta)[0])


def test_who_has_seen_or_excludes_a_new_item_does_not_get_it(bundle):
    seen = request(length=40, k=122)
    late = next(item_id for item_id in seen.history.item_ids if bundle.catalogue.row(item_id) < 0)
    delta = Delta.of(bundle, {late: new_item(1, item_id=late), "new-1": new_item(1)}, MOST)
    (found,) = generate(bundle, [seen], GenerationConfig(max_k=200), delta=delta)
    assert "new-1" in ids(found)
    assert late not in ids(found)
    (found,) = generate(bundle, [replace(seen, exclude=frozenset({"new-1"}))], GenerationConfig(max_k=200), delta=delta)
    assert "new-1" not in ids(found)
    (found,) = generate(
        bundle, [request(history=None, context_item="new-1", k=122)], GenerationConfig(max_k=200), delta=delta
    )
    assert "new-1" not in ids(found)


def test_a_change_back_and_an_update_that_changes_nothing_take_no_room(bundle):
    delta = Delta.of(bundle, {item.item_id: item for item in small_items()}, 0)
    assert delta.empty
    assert delta.left_out == 0
    changed = delta.updated(bundle, {"item-3": replace(small_items()[3], title="other"), "item-4": None}, MOST)
    assert (len(changed), changed.deleted, changed.empty) == (1, 1, False)
    back = changed.updated(bundle, {"item-3": small_items()[3], "item-4": small_items()[4]}, MOST)
    assert back.empty


def test_above_its_bound_the_first_stay_and_deletions_hold(bundle):
    delta = Delta.of(bundle, {f"new-{i}": new_item(i) for i in range(4)}, 3)
    assert delta.catalogue.item_ids == ["new-0", "new-1", "new-2"]
    assert delta.left_out == 1
    renamed = {"item-1": replace(small_items()[1], title="other"), "new-1": new_item(1, title="newer"), "item-2": None}
    delta = delta.updated(bundle, renamed, 3)
    assert sorted(delta.catalogue.item_ids) == ["new-0", "new-1", "new-2"]
    assert (delta.left_out, delta.deleted) == (2, 1)
    view = View(bundle, delta)
    row = int(view.rows(np.array([hash_id("item-1")], np.uint64))[0])
    assert view.titles([row]) == ["about bread 1"], "as in the bundle"
    names = ["new-0", "item-1", "new-1"]
    rows = view.rows(np.array([hash_id(name) for name in names], np.uint64))
    assert view.item_ids(rows.tolist()) == names
    assert view.hashes(rows).tolist() == [hash_id(name) for name in names]
    assert view.rows(np.array([hash_id("item-2")], np.uint64))[0] == -1
    roomier = delta.updated(bundle, {"new-0": None, "new-9": new_item(9)}, 3)
    assert sorted(roomier.catalogue.item_ids) == ["new-1", "new-2", "new-9"]


def test_what_it_was_before_an_update_stays_as_it_was(bundle):
    before = Delta.of(bundle, {"new-1": new_item(1)}, MOST)
    before.updated(bundle, {"new-1": None, "item-5": None, "new-2": new_item(2)}, MOST)
    assert before.catalogue.item_ids == ["new-1"]
    assert not before.gone.any()


def test_an_embedding_of_another_width_is_not_used_and_none_of_a_size_that_may_be_sent_makes_nan():
    bundle = small_bundle(config=ModelConfig(**(CONFIG.model_dump() | {"content_width": 4})))
    embeddings = {"good": (1.0, 0.0, 2.0, 1.0), "vast": (1e9, -1e9, 1e9, 1e9), "other": (1.0, 2.0)}
    changes = {name: new_item(0, item_id=name, embedding=embedding) for name, embedding in embeddings.items()}
    delta = Delta.of(bundle, changes, MOST)
    assert np.linalg.norm(delta.table, axis=1) == pytest.approx(1, abs=1e-5)
    assert delta.catalogue.has_content.tolist() == [True, True, False]
    with pytest.raises(ValidationError, match="embedding"):
        ItemUpdate(item_id="beyond", embedding=(1e30,))


def test_the_ranking_head_scores_new_items_as_a_bundle_made_anew_would():
    base = small_bundle(config=ModelConfig(**(CONFIG.model_dump() | {"ranking": True})))
    delta, fresh = Delta.of(base, CHANGES, MOST), anew(base, CHANGES)
    asked = request(history=small_history(6, seed=8, items=19))
    names = ["new-4", "item-3", "item-25"]
    hashes = np.array([hash_id(name) for name in names], np.uint64)
    (ours,) = rank(base, [asked], [View(base, delta).rows(hashes)], DEFAULT, delta=delta)
    (theirs,) = rank(fresh, [asked], [fresh.catalogue.rows(hashes)], DEFAULT)
    assert ours == pytest.approx(theirs, abs=1e-5)
    reranked = GenerationConfig(rerank=4, **WHOLE)
    (ours,), (theirs,) = (generate(b, [asked], reranked, delta=d) for b, d in ((base, delta), (fresh, None)))
    assert ids(ours) == ids(theirs)


def test_what_is_kept_of_users_stays_valid_when_the_catalogue_changes(bundle):
    states = UserStates(1 << 20, torch.float32)
    asked = request(length=10, user_id="u1")
    generate(bundle, [asked], DEFAULT, states)
    delta = Delta.of(bundle, CHANGES, MOST)
    (kept,) = generate(bundle, [asked], DEFAULT, states, delta)
    (scratch,) = generate(bundle, [asked], DEFAULT, delta=delta)
    assert ids(kept) == ids(scratch)
    assert states.report.hits == 1
