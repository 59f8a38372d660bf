"""A replica's items while Kafka is away: an older version that comes back does not bring back what was deleted."""

import gc
import threading
from dataclasses import replace

import pytest

import serving.live_items
from pinrec.delta import Delta
from pinrec.items import Item
from serving.live_items import LiveItems
from streaming.config import KafkaSettings
from streaming.items_topic import ItemRecord
from tests.eventually import eventually
from tests.small_bundle import small_bundle


class Topic:
    """One partition that holds a new item and a deletion; it may be away."""

    records = (ItemRecord("new", Item("new", title="about maps"), 0, 0), ItemRecord("item-7", None, 0, 1))
    away = False
    bad = 0

    def __init__(self, *_):
        self._at = 0
        self._nothing = threading.Event()

    def seek(self, positions):
        self._asked()
        self._at = positions.get(0, 0)
        return True

    def poll(self, _):
        self._asked()
        found, self._at = self.records[self._at :], len(self.records)
        if not found:
            self._nothing.wait(0.01)
        return list(found)

    def ends(self):
        self._asked()
        return {0: len(self.records)}

    def positions(self):
        return {0: self._at}

    def close(self):
        pass

    def _asked(self):
        if Topic.away:
            raise OSError("Kafka does not answer")


@pytest.fixture
def items(monkeypatch):
    monkeypatch.setattr(serving.live_items, "ItemsTopic", Topic)
    monkeypatch.setattr(Topic, "away", False)
    following = LiveItems(KafkaSettings(), 100)
    following.start()
    yield following
    following.stop()


def test_a_rollback_while_kafka_is_away_brings_back_no_deleted_item(items):
    whole = small_bundle()

    def as_of(position):
        return replace(whole, manifest=whole.manifest.model_copy(update={"items_positions": {0: position}}))

    delta = items.prepare(old := as_of(0))
    assert (delta.catalogue.item_ids, delta.deleted) == (["new"], 1)
    del old, delta
    gc.collect()
    newest = as_of(2)
    assert items.prepare(newest) is None, "it has both"
    Topic.away = True
    eventually(lambda: items.troubles(newest))
    back = as_of(0)
    delta = items.prepare(back)
    assert delta.deleted == 1
    assert delta.gone[back.catalogue.row("item-7")]


def test_a_deletion_holds_for_all_versions_at_once(monkeypatch):
    """One may go live while their deltas are made: who has met the deletion must not meet the item again."""
    bundles = [small_bundle(seed=seed) for seed in (1, 2, 3)]
    items = LiveItems(KafkaSettings(bootstrap="127.0.0.1:1"), 10)
    for bundle in bundles:
        assert items.delta(bundle) is None
    made, seen = Delta.updated, []

    def updated(delta, bundle, changes, most):
        seen.append([items.delta(each) is not None for each in bundles])
        return made(delta, bundle, changes, most)

    monkeypatch.setattr(Delta, "updated", updated)
    items._take([ItemRecord("item-3", None, 0, 7)])
    assert seen == [[False] * 3] * 3
    assert [items.report(bundle).deleted for bundle in bundles] == [1, 1, 1]
