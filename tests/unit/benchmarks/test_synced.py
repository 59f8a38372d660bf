import numpy as np
import pytest

from benchmarks.result import BenchmarkError, Machine
from benchmarks.synced.record import RESULTS, Replayed, monotone, read_records, synced
from benchmarks.synced.replay import K, Replay
from benchmarks.synced.report import DOCUMENT, LOG_PLOT, PLOTS, TOWN_PLOT, render
from benchmarks.synced.syncs import SYNCS_S
from pinrec.config import Action, GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.contender import PinRecRecipe
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.protocols import UserLog

BEGIN = 1_000_000.0
MACHINE = Machine(cpu="a", cores=2, memory_gib=1, kernel="k", python="3", filesystem="f")
RECIPE = PinRecRecipe(
    model=ModelConfig(width=16, layers=1, heads=1, history=32, stride=8, hash_buckets=256, id_width=8),
    training=TrainingConfig(batch_users=8, window=16, uniform_negatives=32),
    generation=GenerationConfig(mode="unconditioned", steps=1),
    epochs=3,
)


def a_log(users=12, items=60):
    """Each user walks along a ring of items, an event an hour before `BEGIN`, then one each 20 minutes for 12 h."""
    rng = np.random.default_rng(0)
    columns = {name: [] for name in ("user_id", "item_id", "action", "surface", "timestamp")}
    for user in range(users):
        at = rng.integers(items)
        times = [*(BEGIN - 3_600.0 * np.arange(20, 0, -1)), *(BEGIN + 1_200.0 * np.arange(36) + 10 * user)]
        for time in times:
            at = (at + 1) % items
            for name, value in zip(columns, (f"u{user}", f"i{at}", "click", "home", time), strict=True):
                columns[name].append(value)
    vocabulary = Vocabulary(actions=(Action(name="click"),), surfaces=("home",))
    events = EventColumns.of_columns(columns, vocabulary)
    return UserLog.of(events, Catalogue.of([Item(f"i{i}") for i in range(items)], RECIPE.model), vocabulary)


@pytest.fixture(scope="module")
def replay():
    return Replay(a_log(), RECIPE, BEGIN)


def test_a_moment_is_a_new_item_of_a_known_user_after_the_beginning(replay):
    log, moments = replay.log, replay.moments
    assert (moments.at >= BEGIN).all()
    assert (np.diff(moments.at) >= 0).all()
    for row, item in zip(moments.row, moments.item, strict=True):
        start = log.start[log.events.user[row]]
        assert item not in log.item[start:row]


def test_histories_hold_what_was_known_at_the_last_sync_and_nothing_later(replay, monkeypatch):
    asked = []

    def generate(bundle, requests, config):
        asked.extend(requests)
        return [[] for _ in requests]

    monkeypatch.setattr("benchmarks.synced.replay.generate", generate)
    monkeypatch.setattr(Replay, "first", None)
    every = np.arange(len(replay.moments))
    for name, seconds in SYNCS_S.items():
        asked.clear()
        replay.histories()
        assert len(asked) == len(SYNCS_S) * len(every)
        of_sync = asked[list(SYNCS_S).index(name) * len(every) :][: len(every)]
        for request in of_sync:
            newest = request.history.rows["timestamp"][-1]
            assert newest < request.now, "the event to be found is not in it"
            if seconds == np.inf:
                assert newest < BEGIN
            elif seconds:
                assert newest < BEGIN + (request.now - BEGIN) // seconds * seconds or newest < BEGIN


def test_on_a_walk_fresh_histories_find_what_stale_ones_do_not(replay):
    histories, weights = replay.histories(), replay.weights()
    assert set(histories) == set(SYNCS_S)
    assert set(weights) == set(SYNCS_S) - {"event"}
    assert histories["event"].mean() > histories["never"].mean() + 0.2
    assert histories["event"].mean() >= histories["hour"].mean() >= histories["day"].mean()
    assert (histories["day"] == histories["never"]).all(), "no day has passed"
    assert (weights["never"] == histories["event"]).all(), "the same weights and the same histories"
    assert replay.rounds == len({int((t - BEGIN) // 60) for t in replay.by_time.timestamp if t >= BEGIN})


def test_the_page_says_how_each_sync_compares_with_never():
    rng = np.random.default_rng(0)
    never = rng.random(2_000) < 0.1
    found = {"event": never | (rng.random(2_000) < 0.05), "never": never}
    rows = synced(found)
    assert rows[1].gain == rows[1].low == rows[1].high == 0
    assert rows[0].low > 0
    replays = [
        Replayed(
            data="town", what=what, seed=0, days=3, moments=2_000, users=10, rounds=5, rows=of, seconds=60,
            machine=MACHINE, commit="c",
        )
        for what, of in (("histories", rows), ("weights", rows[::-1]))
    ]  # fmt: skip
    assert monotone([row.recall for row in rows])
    page = render(replays, [])
    assert f"| event | {rows[0].recall:.4f} | {rows[0].gain:+.1%}" in page
    assert "Histories: the rarer the sync, the less is found; 5 rounds of training." in page
    assert "Weights: not monotone" in page
    assert K == 10, "the page says recall@10"


def test_the_page_is_what_the_runs_give():
    replays, lives = read_records(RESULTS)
    assert DOCUMENT.read_text() == render(replays, lives), "run `python -m benchmarks.synced --report`"
    assert (PLOTS / f"{LOG_PLOT}.svg").exists() == bool(replays)
    assert (PLOTS / f"{TOWN_PLOT}.svg").exists() == bool(lives)


def test_without_runs_the_page_says_so_and_a_file_that_is_none_is_named(tmp_path):
    assert read_records(tmp_path / "none") == ([], [])
    assert render([], []).count("Not run yet.") == 2
    (tmp_path / "town-minute-seed0.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"town-minute-seed0\.json: not a run of this version"):
        read_records(tmp_path)
