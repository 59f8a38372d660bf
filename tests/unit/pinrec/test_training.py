from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from pinrec.config import ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.evaluation import prequential
from pinrec.items import Catalogue, Item
from pinrec.model import as_int64
from pinrec.training import Learner
from tests.unit.pinrec.events import log

VOCABULARY = Vocabulary()
CONFIG = ModelConfig(
    width=32, layers=1, heads=2, hash_buckets=1_024, bag_buckets=64, id_width=32, bag_width=4, dropout=0.0
)
TRAINING = TrainingConfig(batch_users=8, window=32, uniform_negatives=64)
TOPICS, ITEMS = 8, 24


def topical_rows(users=300, events=20, seed=0):
    """Each user likes one topic; of a topic's items the even ones are clicked, the odd ones saved."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        topic = rng.integers(TOPICS)
        for n, item in enumerate(rng.permutation(ITEMS)[:events]):
            action = "save" if item % 2 else "click"
            rows.append((f"u{user}", f"t{topic}i{item}", action, 1e9 + 60.0 * n + user / 1e3))
    return sorted(rows, key=lambda row: row[3])


@cache
def topical_log():
    return log(*topical_rows())


def catalogue():
    return Catalogue.of([Item(f"t{t}i{i}") for t in range(TOPICS) for i in range(ITEMS)], CONFIG)


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    events = topical_log()
    learner = Learner(CONFIG, VOCABULARY, TRAINING, "multi_token")
    result = learner.fit(events.before(int(len(events) * 0.7)), catalogue(), 200)
    return learner, result


def recall(learner, **options):
    events = topical_log()
    items = catalogue()
    return prequential(
        learner.model, learner.model.item_table(items), items, events, int(len(events) * 0.7), max_users=200, **options
    )


def test_each_mode_of_the_same_weights_finds_a_users_topic_which_popularity_cannot(trained):
    learner, result = trained
    assert result.steps == 200
    assert result.events > 0
    for mode in ("unconditioned", "outcome", "multi_token"):
        found = recall(learner, mode=mode)
        assert found["users"] == 200
        assert found["recall@10"] > 3 * found["recall@10_popularity"]
        assert found["recall@10_unordered"] >= found["recall@10"]


def test_a_budget_of_one_outcome_raises_that_outcomes_recall_and_lowers_the_others(trained):
    learner, _ = trained
    saves, clicks = ({"save": 1.0}, {"click": 1.0})
    for mode in ("outcome", "multi_token"):
        for wanted, unwanted in ((saves, clicks), (clicks, saves)):
            (name,) = wanted
            right = recall(learner, k=3, mode=mode, outcomes=wanted, only=name)["recall@3"]
            wrong = recall(learner, k=3, mode=mode, outcomes=unwanted, only=name)["recall@3"]
            assert right > 1.5 * wrong


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not():
    events = topical_log().before(900)

    def weights(seed):
        learner = Learner(CONFIG, VOCABULARY, TRAINING.model_copy(update={"seed": seed}), "multi_token")
        learner.fit(events, catalogue(), 5)
        return learner.model.item_table(catalogue())

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.allclose(weights(1), weights(2))


def test_a_learner_goes_on_from_saved_state_as_if_it_had_not_stopped():
    events = topical_log()
    one = Learner(CONFIG, VOCABULARY, TRAINING, "multi_token")
    one.fit(events.before(2_000), catalogue(), 6)
    other = Learner(CONFIG, VOCABULARY, TRAINING, "multi_token")
    other.load_state(load(save(one.state())))
    for learner in (one, other):
        learner.fit(events, catalogue(), 4, since_row=2_000)
    assert one.step == other.step == 10
    for name, value in one.state().items():
        torch.testing.assert_close(value, other.state()[name], rtol=0, atol=0, msg=name)


def test_tables_learn_at_a_rate_of_their_own():
    def moved(rate):
        learner = Learner(CONFIG, VOCABULARY, TRAINING.model_copy(update={"table_rate": rate}), "outcome")
        before = {name: value.clone() for name, value in learner.model.state_dict().items()}
        learner.fit(topical_log().before(900), catalogue(), 3)
        after = learner.model.state_dict()
        return [
            float((after[name] - before[name]).abs().max()) for name in ("tower.ids.weight.weight", "item_in.weight")
        ]

    (slow_table, slow_matrix), (fast_table, fast_matrix) = moved(0.01), moved(10.0)
    assert fast_table > 100 * slow_table > 0
    assert fast_matrix < 2 * slow_matrix


@pytest.mark.parametrize("softmax", ["sampled", "exact"])
def test_an_item_is_no_negative_of_what_was_chosen_before_it_was_there(softmax):
    """With no negatives but of its own time, nothing tells a newer item apart from one that nobody was asked about."""
    training = TRAINING.model_copy(update={"softmax": softmax, "weight_decay": 0.0})

    def moved(created_at):
        learner = Learner(CONFIG, VOCABULARY, training, "outcome")
        table = learner.model.tower.ids
        before = table.weight.weight.detach().clone()
        items = [Item(f"t{t}i{i}") for t in range(TOPICS) for i in range(ITEMS)]
        new = Catalogue.of([*items, Item("new", created_at=created_at)], CONFIG)
        learner.fit(topical_log().before(900), new, 20)
        own = table.index(as_int64(new.hashes[-1:]))
        others = table.index(as_int64(new.hashes[:-1]))
        mine = own[~torch.isin(own, others)]
        assert len(mine)
        return float((table.weight.weight.detach() - before)[mine].abs().max())

    assert moved(1e9 - 1.0) > 0
    assert moved(2e9) == 0


def test_with_id_decay_items_without_events_are_what_their_features_say():
    new = Catalogue.of([Item("new", categories=("t1",)), Item("as new", categories=("t1",))], CONFIG)

    def alike(decay):
        config = CONFIG.model_copy(update={"tower": "residual", "bag_width": 32, "bag_gain": 1.0})
        learner = Learner(config, VOCABULARY, TRAINING.model_copy(update={"id_decay": decay}), "outcome")
        learner.fit(topical_log().before(900), catalogue(), 40)
        one, other = learner.model.item_table(new)
        return float(one @ other)

    assert alike(0.0) < 0.8
    assert alike(15.0) > 0.99


def test_an_id_decay_that_takes_more_than_there_is_is_an_error():
    TrainingConfig(learning_rate=0.01, table_rate=10.0, id_decay=9.0)
    with pytest.raises(ValueError, match="id_decay: times learning_rate and table_rate it must stay below 1"):
        TrainingConfig(learning_rate=0.01, table_rate=10.0, id_decay=10.0)


def test_state_of_another_size_is_refused_with_the_remedy():
    state = Learner(CONFIG, VOCABULARY, TRAINING, "outcome").state()
    other = Learner(CONFIG.model_copy(update={"layers": 2}), VOCABULARY, TRAINING, "outcome")
    with pytest.raises(ValueError, match="state: of a model of other sizes; train a new one"):
        other.load_state(state)


def test_a_later_round_learns_what_is_new(trained):
    learner, _ = trained
    copy = Learner(CONFIG, VOCABULARY, TRAINING, "multi_token")
    copy.load_state(learner.state())
    events = topical_log()
    since = int(len(events) * 0.7)
    rows = [(f"w{u}", f"t{t}new{u % 3}", "click", 2e9 + u + n) for u in range(90) for t in (u % TOPICS,) for n in (0,)]
    rows += [(f"w{u}", f"t{u % TOPICS}i{u % ITEMS}", "click", 1.9e9 + u) for u in range(90)]
    new = log(*sorted(rows, key=lambda row: row[3]))
    seen_steps = []
    result = copy.fit(new, catalogue(), 30, lambda done, steps, loss: seen_steps.append((done, steps)), since_row=0)
    assert seen_steps == [(n, 30) for n in range(1, 31)]
    first = Learner(CONFIG, VOCABULARY, TRAINING, "multi_token")
    assert result.loss < first.fit(new, catalogue(), 3).loss
    assert copy.fit(events, catalogue(), 3, since_row=since).steps == 3


@cache
def turned_log():
    """`topical_log`, and then other users whose every second item is of the next topic."""
    rng = np.random.default_rng(5)
    rows = [
        (f"new{user}", f"t{(user + n % 2) % TOPICS}i{rng.integers(ITEMS)}", "click", 2e9 + 60 * n)
        for n in range(12)
        for user in range(80)
    ]
    old = topical_rows()
    return log(*old, *rows), len(old)


def test_replay_keeps_what_new_events_would_overwrite(trained):
    events, since = turned_log()
    found = []
    for share in (0.0, 0.5):
        training = TRAINING.model_copy(update={"replay_share": share})
        learner = Learner(CONFIG, VOCABULARY, training, "multi_token")
        learner.load_state(trained[0].state())
        assert learner.fit(events, catalogue(), 80, since_row=since).steps == 80
        found.append(recall(learner, mode="unconditioned")["recall@10"])
    without, replayed = found
    assert replayed > 1.3 * without


def test_nothing_to_predict_means_no_steps():
    learner = Learner(CONFIG, VOCABULARY, TRAINING, "multi_token")
    before = learner.model.item_table(catalogue())
    for events in (log(("u", "t0i0", "click", 1)), log(("u", "t0i0", "click", 1), ("u", "t0i1", "impression", 2))):
        assert learner.fit(events, catalogue(), 5).steps == 0
    np.testing.assert_array_equal(learner.model.item_table(catalogue()), before)


def test_queries_feeds_and_items_outside_the_catalogue_are_trained_on():
    n = 400
    rng = np.random.default_rng(0)
    columns = {
        "user_id": [f"u{i}" for i in rng.integers(0, 20, n)],
        "item_id": [f"t{i}i{i}" if i < 8 else f"elsewhere{i}" for i in rng.integers(0, 12, n)],
        "action": rng.choice(["impression", "click", "save", "search"], n).tolist(),
        "surface": rng.choice(["home", "search"], n).tolist(),
        "timestamp": np.sort(rng.random(n)) * 1e5,
        "feed_id": [f"f{i}" for i in rng.integers(0, 9, n)],
    }
    columns["item_type"] = ["query" if action == "search" else "item" for action in columns["action"]]
    columns["query"] = ["red cup" if action == "search" else None for action in columns["action"]]
    events = EventColumns.of_columns(columns, VOCABULARY)
    for mode in ("unconditioned", "outcome", "multi_token"):
        result = Learner(CONFIG, VOCABULARY, TRAINING, mode).fit(events, catalogue(), 4)
        assert result.steps == 4
        assert np.isfinite(result.loss)


@pytest.mark.parametrize(("softmax", "later"), [("sampled", 1), ("exact", 0)])
def test_of_items_that_are_hidden_nothing_is_learnt_but_as_targets(softmax, later):
    def moved(mask):
        training = TRAINING.model_copy(
            update={"item_mask": mask, "weight_decay": 0.0, "softmax": softmax, "later_targets": later}
        )
        learner = Learner(CONFIG, VOCABULARY, training, "multi_token")
        before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
        learner.fit(topical_log(), catalogue(), 3)
        now = dict(learner.model.named_parameters())
        return {name for name, was in before.items() if not torch.equal(was, now[name])}

    assert "item_in.weight" in moved(0.5)
    hidden = moved(1 - 1e-9)
    assert "item_in.weight" not in hidden
    assert {"tower.ids.weight.weight", "item_in.bias", "action.weight"} <= hidden


def test_inner_dropout_is_for_training_alone():
    bare = CONFIG.model_copy(update={"tower": "mlp"})  # whose parts all matter before training
    config = bare.model_copy(update={"inner_dropout": 0.5})
    model = Learner(config, VOCABULARY, TRAINING, "multi_token").model
    plain = Learner(bare, VOCABULARY, TRAINING, "multi_token").model
    hashes, bags = torch.arange(5), torch.ones(5, 2, dtype=torch.int64)
    content = torch.zeros(5, 0), torch.zeros(5, dtype=torch.bool)
    h, any_ = torch.randn(5, 32), torch.full((5, 3), -1)

    def lacking(of, name):
        """What the backbone makes without one of a block's parts."""
        part = getattr(of.backbone.blocks[0], name)
        kept = part.weight.detach().clone()
        with torch.no_grad():
            part.weight.zero_()
            made = of(h[None])
            part.weight.copy_(kept)
        return made

    def made(of):
        attention, feed_forward = lacking(of, "down"), lacking(of, "out")
        return of.item_vectors(hashes, bags, *content), of.head(h, any_, any_, any_.float()), attention, feed_forward

    for part in range(4):
        assert not torch.equal(made(model.train())[part], made(model)[part])
        assert torch.equal(made(model.eval())[part], made(plain.eval())[part])
        assert torch.equal(made(plain.train())[part], made(plain.eval())[part])
