from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import cold
from benchmarks.quality.cold_record import read_colds
from benchmarks.quality.cold_report import cold_section
from benchmarks.result import BenchmarkError
from pinrec.contender import PinRec
from pinrec.protocols import Split, by_time, disjoint
from tests.unit.pinrec.small_split import random_user_log, user_log
from tests.unit.pinrec.test_pinrec_contender import recipe


def test_items_are_grouped_by_their_events_in_training_and_places_and_targets_counted():
    early = [("a", 0, "click", float(n)) for n in range(6)] + [("a", 1, "click", 6.0), ("b", 1, "skip", 6.5)]
    late = [("a", 2, "click", 20.0), ("b", 0, "click", 21.0), ("b", 2, "save", 22.0)]
    log = user_log(*early, *late, items=4)
    split = by_time(log, 0.5, 0.75)
    split = Split(log, log.events.timestamp < 10, split.valid, split.test)
    targets = [found.tolist() for found in split.test.targets]
    assert targets == [[2], [0, 2]]
    lists, popular = np.array([[2, 1, -1], [1, 0, 3]]), np.array([[1, -1, -1], [0, 1, -1]])
    reward = np.array([[0.5, 0.1, 0.0], [0.1, 0.2, 0.3]])
    found = cold.groups(split, split.test, lists, popular, reward)
    never, seldom, often = (found[name] for name in cold.GROUPS)
    assert [group.items for group in (never, seldom, often)] == [2, 1, 1]
    assert [group.answers for group in (never, seldom, often)] == pytest.approx([2 / 5, 2 / 5, 1 / 5])
    assert [group.popular_answers for group in (never, seldom, often)] == pytest.approx([0, 2 / 3, 1 / 3])
    assert [(group.targets, group.found, group.popular_found) for group in (never, seldom, often)] == [
        (2, 1, 0), (0, 0, 0), (1, 1, 1),
    ]  # fmt: skip
    assert [group.recall for group in (never, seldom, often)] == [0.5, None, 1.0]
    assert [group.reward for group in (never, seldom, often)] == pytest.approx([0.4, 0.1, 0.2])


def test_what_came_after_a_history_is_not_to_be_found_in_it():
    early = [("a", 0, "click", 1.0), ("a", 1, "click", 2.0), ("a", 3, "click", 9.0)]
    log = user_log(*early, ("a", 2, "click", 20.0), ("a", 4, "click", 21.0), items=5)
    split = by_time(log, 0.4, 0.7)
    assert [found.tolist() for found in split.test.targets] == [[2, 4]]
    log.catalogue.created_at[2], log.catalogue.created_at[4] = 9.0, 9.5
    cases = cold.of_its_time(split)
    assert [found.tolist() for found in cases.targets] == [[2]]
    assert [len(met) for met in cases.outcomes] == [1]


def test_what_came_after_a_history_is_not_in_its_list():
    split = disjoint(random_user_log(users=40), folds=4)
    catalogue = replace(split.log.catalogue, created_at=np.arange(12) + 0.5)
    model = PinRec(replace(split, log=replace(split.log, catalogue=catalogue)), recipe(), 0)
    model.fit_epoch()
    asked_at = split.log.events.timestamp[split.test.hi - 1]
    there = [
        (catalogue.created_at[row[row >= 0]] <= at).all()
        for row, at in zip(cold.listed(model, split.test), asked_at, strict=True)
    ]
    assert all(there)
    assert not all(catalogue.created_at.max() <= asked_at)


def test_a_small_town_is_measured_from_its_past_to_the_json(tmp_path, small_town, capsys):
    assert cold.main(["--town", "--epochs", "1", "--out", str(tmp_path)]) == 0
    (run,) = read_colds(tmp_path / "cold")
    assert sum(group.items for group in run.groups.values()) == 120
    assert sum(group.answers for group in run.groups.values()) == pytest.approx(1)
    assert all(0 <= group.found <= group.targets for group in run.groups.values())
    assert "of the answers" in capsys.readouterr().out
    page = "\n".join(cold_section([run]))
    for label, group in run.groups.items():
        (line,) = [line for line in page.splitlines() if f"| {label.removesuffix(' events')} |" in line]
        assert f"| {group.items} | {100 * group.answers:.1f} % (" in line
        assert f"| {group.targets:,} |" in line
    assert cold.main(["--data", str(tmp_path / "nothing")]) == 2


def test_a_trial_stays_out_of_the_results_and_an_interruption_is_a_sentence(tmp_path, small_town, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.quality.process.TRIALS", tmp_path / "trials")
    assert cold.main(["--town", "--epochs", "1"]) == 0
    assert len(read_colds(tmp_path / "trials" / "cold")) == 1

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PinRec, "fit_epoch", interrupted)
    assert cold.main(["--town", "--epochs", "1", "--out", str(tmp_path)]) == 130
    assert "cold: interrupted; the same command begins again" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cold.main(["--town", "--epochs", "0"])
    assert "--epochs: must be a whole number from 1" in capsys.readouterr().err


def test_a_file_that_is_no_measure_of_cold_items_is_named(tmp_path):
    assert read_colds(tmp_path / "none") == []
    (tmp_path / "town-cold-seed0.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"town-cold-seed0\.json: not a measure of this version"):
        read_colds(tmp_path)
