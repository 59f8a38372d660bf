import math

import numpy as np
import pytest
import torch

from pinrec.config import ModelConfig, Vocabulary
from pinrec.hashing import hash_id
from pinrec.items import Catalogue, Item, query_bag
from pinrec.model import PinRecModel, as_int64, previous_timestamps
from pinrec.tower import mix

# An MLP tower: all parts of an untrained model matter, where a residual one begins with most of them at zero.
CONFIG = ModelConfig(
    width=16, layers=1, heads=2, hash_buckets=512, bag_buckets=512, id_width=8, content_width=3, tower="mlp", bag_gain=0
)
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PinRecModel(CONFIG, Vocabulary()).eval()


def test_mix_is_splitmix64():
    """Against plain integers: the hash must be the same on every machine, or a bundle's table is not its model's."""

    def reference(x, seed):
        full = (1 << 64) - 1
        x = (x + 0x9E3779B97F4A7C15 * (seed + 1)) & full
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & full
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & full
        return x ^ (x >> 31)

    hashes = np.array([hash_id(str(i)) for i in range(50)] + [0, 2**64 - 1], np.uint64)
    for seed in (0, 1, 7):
        mixed = mix(as_int64(hashes), seed).numpy().view(np.uint64)
        assert mixed.tolist() == [reference(int(h), seed) for h in hashes]


@torch.no_grad()
def test_every_item_has_a_unit_vector_of_its_own_seen_or_not(model):
    table = model.item_table(Catalogue.of([Item(f"item {i}") for i in range(200)], CONFIG))
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1.0, rtol=1e-5)
    assert len(np.unique(table.round(5), axis=0)) == 200


@torch.no_grad()
def test_content_and_features_reach_the_vector_only_where_an_item_has_them(model):
    plain, titled, embedded = (
        model.item_table(Catalogue.of([item], CONFIG))[0]
        for item in (Item("a"), Item("a", "red cup"), Item("a", embedding=(1.0, 0.0, 0.0)))
    )
    assert not np.allclose(plain, titled, atol=1e-3)
    assert not np.allclose(plain, embedded, atol=1e-3)
    catalogue = Catalogue.of([Item("a")], CONFIG)
    noise = torch.randn(1, 3)
    soiled = model.item_vectors(
        as_int64(catalogue.hashes), torch.from_numpy(catalogue.bags), noise, torch.tensor([False])
    )
    np.testing.assert_allclose(soiled.numpy()[0], plain, atol=1e-6)


@torch.no_grad()
def test_queries_with_the_same_words_have_the_same_vector(model):
    bags = torch.from_numpy(np.stack([query_bag(text, CONFIG) for text in ("Red  CUP", "red cup", "blue cup")]))
    vectors = model.query_vectors(bags)
    torch.testing.assert_close(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2], atol=1e-3)


@torch.no_grad()
def test_tokens_of_a_history_stay_as_they_are_when_it_grows(model):
    item, index = torch.randn(1, 5, 16), torch.zeros(1, 5, dtype=torch.int64)
    timestamp = 1.7e9 + torch.tensor([[0.0, 5.0, 5.0, 900.0, 3e6]], dtype=torch.float64)
    whole = model.tokens(item, index, index, timestamp, previous_timestamps(timestamp))
    part = [t[:, :3] for t in (item, index, index, timestamp)]
    torch.testing.assert_close(whole[:, :3], model.tokens(*part, previous_timestamps(timestamp[:, :3])))
    assert whole.isfinite().all()


@torch.no_grad()
def test_a_second_more_of_pause_is_seen_at_todays_timestamps(model):
    """float32 cannot tell today's seconds apart; the pause must be taken before the cast."""
    item, index = torch.zeros(1, 2, 16), torch.zeros(1, 2, dtype=torch.int64)
    tokens = [
        model.tokens(item, index, index, now, previous_timestamps(now))[0, 1]
        for now in (1.7e9 + torch.tensor([[0.0, pause]], dtype=torch.float64) for pause in (1.0, 2.0))
    ]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2


@torch.no_grad()
def test_each_condition_moves_the_embedding_and_unconditioned_ones_agree(model):
    h = torch.randn(2, 16)

    def ask(outcome, surface, offset):
        columns = ([[outcome]] * 2, [[surface]] * 2, [[offset]] * 2)
        return model.head(h, torch.tensor(columns[0]), torch.tensor(columns[1]), torch.tensor(columns[2]))[:, 0]

    free = ask(-1, -1, -1.0)
    torch.testing.assert_close(free.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(free, ask(-1, -1, -77.0))
    for other in (ask(3, -1, -1.0), ask(-1, 0, -1.0), ask(-1, -1, 0.0), ask(-1, -1, 45.5)):
        assert not torch.allclose(free, other, atol=1e-4)
    torch.testing.assert_close(ask(-1, -1, CONFIG.max_offset_s), ask(-1, -1, 9 * CONFIG.max_offset_s))


@torch.no_grad()
def test_many_conditions_at_once_are_those_asked_one_by_one(model):
    h = torch.randn(3, 16)
    outcome, surface = torch.tensor([[-1, 3, 4]] * 3), torch.tensor([[0, -1, 2]] * 3)
    offset = torch.tensor([[0.0, 30.0, -1.0]] * 3)
    together = model.head(h, outcome, surface, offset)
    for e in range(3):
        alone = model.head(h, outcome[:, e : e + 1], surface[:, e : e + 1], offset[:, e : e + 1])
        torch.testing.assert_close(together[:, e], alone[:, 0])


def test_calendar_features_repeat_after_a_week_but_not_after_an_hour(model):
    now = torch.tensor([1.7e9, 1.7e9 + 7 * DAY_S, 1.7e9 + 3600], dtype=torch.float64)
    week, hour = ((model.calendar(now)[0] - model.calendar(now)[i])[[0, 1, 3, 4]].abs().max().item() for i in (1, 2))
    assert week < 1e-4
    assert hour > 0.1
    assert math.isclose(model.temperature.item(), 0.05, rel_tol=1e-5)


def test_items_of_a_residual_tower_lie_apart_from_the_first_step_on():
    catalogue = Catalogue.of([Item(f"i{n}", title="the same") for n in range(50)], CONFIG)
    alike = {}
    for tower in ("mlp", "residual"):
        torch.manual_seed(0)
        config = CONFIG.model_copy(update={"tower": tower, "bag_gain": 0.0})
        table = PinRecModel(config, Vocabulary()).item_table(catalogue)
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
        alike[tower] = float((table @ table.T).mean())
    assert alike["residual"] < 0.2
    assert alike["mlp"] > 0.8


@torch.no_grad()
def test_with_a_residual_tower_the_first_prediction_is_the_last_item():
    torch.manual_seed(0)
    model = PinRecModel(CONFIG.model_copy(update={"tower": "residual"}), Vocabulary()).eval()
    catalogue = Catalogue.of([Item(f"i{n}") for n in range(6)], CONFIG)
    table = torch.from_numpy(model.item_table(catalogue))
    timestamp = torch.full((6, 1), 1.7e9, dtype=torch.float64)
    nothing = torch.zeros(6, 1, dtype=torch.int64)
    x_BLD = model.tokens(table[:, None], nothing, nothing, timestamp, previous_timestamps(timestamp))
    e_BED = model.head(model(x_BLD)[:, 0], nothing, nothing, torch.zeros(6, 1))
    assert (e_BED[:, 0] * table).sum(1).min() > 0.9
    assert (e_BED[:, 0] @ table.T).argmax(1).tolist() == list(range(6))


def test_with_a_bag_gain_items_that_share_features_are_alike_from_the_first_step_on():
    items = [Item(f"i{n}", categories=(f"of {n % 5}", f"also of {n % 5}")) for n in range(50)]
    groups = np.arange(50) % 5
    same = (groups[:, None] == groups) & ~np.eye(50, dtype=bool)
    nearer = {}
    for gain in (0.0, 8.0):
        torch.manual_seed(0)
        config = CONFIG.model_copy(update={"tower": "residual", "bag_gain": gain})
        table = PinRecModel(config, Vocabulary()).item_table(Catalogue.of(items, config))
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
        alike = table @ table.T
        nearer[gain] = float(alike[same].mean() - alike[groups[:, None] != groups].mean())
    assert nearer[8.0] > 0.5
    assert abs(nearer[0.0]) < 0.1


def test_a_bag_gain_without_a_residual_tower_is_an_error():
    assert ModelConfig(tower="mlp", bag_gain=0).bag_gain == 0
    with pytest.raises(ValueError, match="bag_gain: is of the residual tower; set it to 0 with tower: mlp"):
        ModelConfig(tower="mlp", bag_gain=4)


def test_the_temperature_falls_no_lower_than_it_may():
    model = PinRecModel(CONFIG.model_copy(update={"least_temperature": 0.1}), Vocabulary())
    assert math.isclose(model.temperature.item(), 0.1, rel_tol=1e-5)
    with torch.no_grad():
        model.log_temperature.fill_(-9.0)
    assert math.isclose(model.temperature.item(), 0.1, rel_tol=1e-5)


def test_a_residual_tower_learns_from_content():
    torch.manual_seed(0)
    model = PinRecModel(CONFIG.model_copy(update={"tower": "residual"}), Vocabulary())
    optimiser = torch.optim.SGD(model.tower.parameters(), 1.0)
    hashes, bags = as_int64(np.array([hash_id("a")], np.uint64)), torch.zeros(1, CONFIG.bag_size, dtype=torch.int32)
    vectors = [
        lambda content=content: model.item_vectors(hashes, bags, torch.tensor([content]), torch.ones(1, dtype=bool))
        for content in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    ]
    assert torch.equal(vectors[0](), vectors[1]())
    for _ in range(2):  # the last layer first, what stands before it then
        optimiser.zero_grad()
        (vectors[0]()[0, 0] - vectors[1]()[0, 0] - vectors[0]()[0, 1]).backward()
        optimiser.step()
    assert not torch.allclose(vectors[0](), vectors[1](), atol=1e-3)
