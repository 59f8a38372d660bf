import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from pinrec.measures import measure
from pinrec.protocols import leave_one_out
from pinrec.selection import Point, fit_selected
from tests.unit.pinrec.small_split import Wanderer, random_user_log

EPOCHS = 7


@pytest.fixture(scope="module")
def split():
    return leave_one_out(random_user_log())


def curve(fitted):
    return [replace(point, seconds=0.0) for point in fitted.curve]


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def best_of(fitted, metric):
    return max(p.valid[metric] for p in fitted.curve if p.valid)


def test_the_weights_that_validated_best_are_kept_and_the_earliest_of_equals(split):
    contender = Wanderer(split, EPOCHS)
    fitted = fit_selected(contender, split.valid)
    assert [p.epoch for p in fitted.curve] == list(range(1, EPOCHS + 1))
    assert 1 < fitted.best_epoch < EPOCHS, "a case that tells nothing: choose another seed"
    assert fitted.value("ndcg@10") == best_of(fitted, "ndcg@10")
    assert contender.epoch == fitted.best_epoch == min(
        p.epoch for p in fitted.curve if p.valid["ndcg@10"] == fitted.value("ndcg@10")
    )  # fmt: skip
    assert measure(contender, split.valid).mean() == fitted.valid


def test_evaluates_every_few_epochs_and_at_the_end(split):
    fitted = fit_selected(Wanderer(split, EPOCHS), split.valid, every=3)
    assert [p.epoch for p in fitted.curve if p.valid] == [3, 6, EPOCHS]


def test_stops_when_patience_is_lost(split):
    whole = fit_selected(Wanderer(split, EPOCHS), split.valid)
    stopped = fit_selected(Wanderer(split, EPOCHS), split.valid, patience=1)
    values = [p.valid["ndcg@10"] for p in whole.curve]
    first_worse = next(i for i, (a, b) in enumerate(pairwise(values)) if b <= a) + 2
    assert curve(stopped) == curve(whole)[:first_worse]
    assert first_worse < EPOCHS


@pytest.mark.parametrize("killed_after", range(1, EPOCHS + 1))
@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_that_is_killed_ends_where_an_uncut_one_does(split, tmp_path, killed_after, patience):
    uncut = Wanderer(split, EPOCHS)
    whole = fit_selected(uncut, split.valid, patience=patience, checkpoint=tmp_path / "uncut")

    def kill(fitted):
        if len(fitted.curve) == killed_after:
            raise KeyboardInterrupt

    path = tmp_path / "cut"
    if killed_after <= len(whole.curve):
        with pytest.raises(KeyboardInterrupt):
            fit_selected(Wanderer(split, EPOCHS), split.valid, patience=patience, checkpoint=path, progress=kill)
    resumed = Wanderer(split, EPOCHS)
    fitted = fit_selected(resumed, split.valid, patience=patience, checkpoint=path)
    assert curve(fitted) == curve(whole)
    assert fitted.best_epoch == whole.best_epoch
    assert same_state(resumed.state(), uncut.state())
    assert same_state(load_file(path), load_file(tmp_path / "uncut"))


def test_a_kill_within_an_epoch_or_while_the_checkpoint_is_written_goes_back_to_the_last_whole_one(split, tmp_path):
    class Dying(Wanderer):
        def fit_epoch(self):
            super().fit_epoch()
            if self.epoch == 4:
                raise KeyboardInterrupt
            return 0.0

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit_selected(Dying(split, EPOCHS), split.valid, checkpoint=path)
    path.with_name(path.name + ".tmp").write_bytes(path.read_bytes()[:100])
    resumed, uncut = Wanderer(split, EPOCHS), Wanderer(split, EPOCHS)
    fitted = fit_selected(resumed, split.valid, checkpoint=path)
    whole = fit_selected(uncut, split.valid)
    assert same_state(resumed.state(), uncut.state())
    assert curve(fitted)[3:] == curve(whole)[3:]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_finished_run_is_loaded_without_another_epoch(split, tmp_path):
    class Finished(Wanderer):
        def fit_epoch(self):
            raise AssertionError("it was done")

    first = fit_selected(Wanderer(split, EPOCHS), split.valid, checkpoint=tmp_path / "run")
    again = Finished(split, EPOCHS)
    assert fit_selected(again, split.valid, checkpoint=tmp_path / "run") == first
    assert again.epoch == first.best_epoch


def test_seconds_go_on_where_the_cut_run_stopped(split, tmp_path):
    fit_selected(Wanderer(split, 2), split.valid, checkpoint=tmp_path / "run")
    seconds = fit_selected(Wanderer(split, 4), split.valid, checkpoint=tmp_path / "run").curve
    assert [p.epoch for p in seconds] == [1, 2, 3, 4]
    assert all(0 < a.seconds < b.seconds for a, b in pairwise(seconds))


def test_where_nothing_is_fitted_it_is_evaluated_once(split, tmp_path):
    fitted = fit_selected(Wanderer(split, 0), split.valid, checkpoint=tmp_path / "run")
    assert curve(fitted) == [Point(0, None, 0.0, fitted.valid)]
    assert fitted.value("ndcg@10") > 0


def test_a_loss_that_is_not_finite_is_recorded_as_none(split):
    class Diverging(Wanderer):
        def fit_epoch(self):
            super().fit_epoch()
            return math.inf

    assert fit_selected(Diverging(split, 1), split.valid).curve[0].loss is None


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(split):
    with pytest.raises(ValueError, match=r"metric: ndcg@5 is not measured; there are hr@10, ndcg@10, recall@10"):
        fit_selected(Wanderer(split), split.valid, metric="ndcg@5")


def test_of_equal_epochs_the_earliest_is_kept(split):
    class Still(Wanderer):
        def fit_epoch(self):
            self.epoch += 1
            return 1.0

    assert fit_selected(Still(split, 3), split.valid).best_epoch == 1
