from dataclasses import replace

import numpy as np
import pytest

from benchmarks.synced import command
from benchmarks.synced.closed_loop import PARTS, ClosedLoop
from benchmarks.synced.command import LIVES
from benchmarks.synced.record import read_records
from benchmarks.synced.report import render
from benchmarks.synced.town import OPENS_AT, Life, Opening
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig
from streaming.simulator import TownConfig

LIFE = Life(
    town=TownConfig(inhabitants=40, items=80, past_days=2, past_events=1_500, new_items_per_minute=1),
    days=1.5 / 24,
    model=ModelConfig(
        width=16, layers=1, heads=1, history=32, stride=8, hash_buckets=256, id_width=8, bag_buckets=256,
        content_width=32,
    ),
    training=TrainingConfig(batch_users=4, window=16, uniform_negatives=32, initial_steps=20),
    generation=GenerationConfig(mode="outcome", steps=1),
)  # fmt: skip


@pytest.fixture(scope="module")
def opening():
    return Opening(LIFE, 0)


@pytest.fixture(scope="module")
def short():
    """Ten minutes of it."""
    return Opening(replace(LIFE, days=10 / 1_440), 0)


def asked(opening, sync, monkeypatch):
    """For each minute: the moment, and what lists were made with."""
    loop, found = ClosedLoop(opening, sync), []
    lists = loop._lists

    def noting(users, now):
        made = lists(users, now)
        known = {user: loop._histories[user][: loop._known[user]] for user in users}
        found.append((now, loop._bundle, loop._delta, known, made))
        return made

    monkeypatch.setattr(loop, "_lists", noting)
    return loop.run(), found


def items_of(bundle, delta):
    names = {n for row, n in enumerate(bundle.catalogue.item_ids) if delta is None or not delta.gone[row]}
    return names | set(delta.catalogue.item_ids if delta is not None else ())


def test_with_all_synced_each_minute_lists_are_made_of_what_there_is(opening, monkeypatch):
    lived, found = asked(opening, {}, monkeypatch)
    assert lived.rounds > 10
    # A minute in which nobody did anything leaves the weights as they are.
    assert lived.rounds - 1 <= len({id(bundle) for _, bundle, *_ in found}) - 1 <= lived.rounds
    for number, (now, bundle, delta, known, made) in enumerate(found):
        there = items_of(bundle, delta)
        assert len(there) == 80
        new = len(there - set(opening.catalogue.item_ids))
        assert min(number, 80) <= new <= number + 1, "one comes and one goes a minute"
        for user, items in made.items():
            assert {item.item_id for item in items} <= there
            assert known[user]["timestamp"].max(initial=0) < now
    late = [known[u]["timestamp"].max() for now, _, _, known, _ in found for u in known if len(known[u])]
    assert max(late) > OPENS_AT + 60, "what is done in the loop is known later"


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_never_synced_stays_as_it_was_and_the_others_go_on(part, opening, monkeypatch):
    lived, found = asked(opening, {part: "never"}, monkeypatch)
    moved = {
        "histories": any(k["timestamp"].max(initial=0) > OPENS_AT for *_, known, _ in found for k in known.values()),
        "weights": lived.rounds > 0 and len({id(bundle.model) for _, bundle, *_ in found}) > 1,
        "catalogue": len({frozenset(items_of(bundle, delta)) for _, bundle, delta, *_ in found}) > 1,
    }
    assert moved == {name: name != part for name in PARTS}


def test_an_hourly_sync_takes_everything_at_the_full_hour(opening, monkeypatch):
    _, found = asked(opening, dict.fromkeys(PARTS, "hour"), monkeypatch)
    hours = [[bundle for now, bundle, *_ in found if (now - OPENS_AT) // 3_600 == hour] for hour in (0, 1)]
    assert [len({id(bundle) for bundle in hour}) for hour in hours] == [1, 1]
    assert hours[0][0] is not hours[1][0]
    assert all(delta is None for _, _, delta, *_ in found), "a version of the hour has its catalogue in it"
    assert len(set(hours[1][0].catalogue.item_ids) - set(opening.catalogue.item_ids)) in (60, 61)


def test_lives_of_a_seed_begin_alike_and_are_visited_alike(short):
    one, other = (ClosedLoop(short, sync).run() for sync in ({}, dict.fromkeys(PARTS, "never")))
    again = ClosedLoop(short, {}).run()
    assert (one.sessions == other.sessions).all()
    assert (one.reward == again.reward).all(), "a life leaves nothing behind in the opening"
    assert not (one.reward == other.reward).all()
    assert 0 < one.of_best < 1
    assert np.isfinite(one.reward).all()


def test_a_command_that_was_cut_takes_the_runs_that_are_missing_and_the_page_tells_of_them(
    short, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "_opening", lambda options, seed: short)
    monkeypatch.setattr(command, "use_all_cores", lambda: None)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(command, "LIVES", {name: LIVES[name] for name in ("minute", "weights-hour", "weights-never")})
    arguments = ["--town", "--seeds", "0", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(files) == {f"town-{life}-seed0.json" for life in ("minute", "weights-hour", "weights-never")}
    (tmp_path / "town-weights-hour-seed0.json").unlink()
    capsys.readouterr()
    assert command.main([*arguments, "--list"]) == 0
    assert "to do town-weights-hour-seed0" in capsys.readouterr().out
    assert command.main(arguments) == 0
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name in files if files[name] != after[name]} == {"town-weights-hour-seed0.json"}
    replays, lives = read_records(tmp_path)
    assert not replays
    page = render(replays, lives)
    never = next(lived for lived in lives if lived.life == "weights-never")
    assert f"| never | {never.reward:.3f} | {never.of_best:.1%} | +0.0% [+0.0% to +0.0%] |" in page
    assert "| Weights synced each |" in page
    assert "| Histories synced each |" not in page, "only one interval of it was taken"
