import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import command, models, process
from benchmarks.quality.equal import embeddings_on, generating
from benchmarks.quality.models import EMBEDDINGS, MODELS, Entry, Selection, plain
from benchmarks.quality.record import RESULTS, Run, pack, read_run, read_runs, unpack
from benchmarks.quality.run import Prepared, Wanted
from benchmarks.result import BenchmarkError
from pinrec.config import Action, Frozen, Vocabulary
from pinrec.measures import measure
from pinrec.protocols import disjoint
from tests.unit.pinrec.small_split import Wanderer, random_user_log

ITEMS, USERS, EMBEDDED = 40, 60, 2


class WalkConfig(Frozen):
    epochs: int = 4
    pace: float = 1.0


class Walk(Wanderer):
    def __init__(self, split, config, seed):
        super().__init__(split, config.epochs, seed)


HERE = __name__
ENTRY = Entry(
    f"{HERE}:Walk", f"{HERE}:WalkConfig",
    settings={"": {"pace": 2.0}, "loo": {"epochs": 5}},
    selection={"tiny disjoint": {"embeddings": EMBEDDED}},
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,action,surface,timestamp"]
    for user in range(USERS):
        items = rng.permutation(ITEMS)[: rng.integers(4, 12)]
        rows += [
            f"{user},{item},{('click', 'like', 'skip')[rng.integers(3)]},web,{1_000 + time}"
            for time, item in enumerate(items)
        ]
    with gzip.open(folder / "interactions.csv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    with gzip.open(folder / "items.csv.gz", "wt") as file:
        file.write("item_id,title,category\n7,a title,x|y\n999,not in the log,\n")
    return folder


@pytest.fixture
def run(data, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(models.MODELS, "walk", ENTRY)
    monkeypatch.setattr("benchmarks.quality.run.CHECKPOINTS", tmp_path / "checkpoints")

    def run(*more, protocol="disjoint", model="walk"):
        out = tmp_path / "out"
        code = command.main(["--data", str(data), "--protocol", protocol, "--model", model, "--out", str(out), *more])
        return code, out, capsys.readouterr()

    return run


def test_a_run_leaves_one_json_with_what_decides_it_and_what_came_of_it(run):
    code, out, said = run("--fold", "1", "--folds", "3", "--seed", "2")
    path = out / "tiny-disjoint-walk-seed2-fold1.json"
    assert code == 0
    assert str(path) in said.out
    assert "epoch 4/4" in said.out
    content = json.loads(path.read_text())
    assert list(content) == [
        "dataset", "protocol", "model", "seed", "fold", "test", "valid", "config", "commit", "data_sha256", "seconds",
        "curve", "machine", "users",
    ]  # fmt: skip
    assert content["config"] == {
        "model": {"epochs": 4, "pace": 2.0},
        "selection": {"metric": "equal@20", "every": 1, "patience": None, "embeddings": EMBEDDED},
        "protocol": {"all_engage": False, "folds": 3},
    }
    assert {"hr@10", "ndcg@10", "recall@10", "unordered@10", "equal@20", "diversity", "users", "targets"} <= set(
        content["test"]
    )
    assert [epoch["epoch"] for epoch in content["curve"]] == [1, 2, 3, 4]
    assert "unordered@10:like" in content["valid"]
    assert {k: v for k, v in content["valid"].items() if ":" not in k} in [epoch["valid"] for epoch in content["curve"]]


def test_leave_one_out_takes_every_action_and_records_no_users(run):
    code, out, _ = run(protocol="loo")
    content = json.loads((out / "tiny-loo-walk-seed0.json").read_text())
    assert code == 0
    assert content["config"]["protocol"] == {"all_engage": True}
    assert content["config"]["model"]["epochs"] == 5
    assert content["test"]["users"] == USERS
    assert not {"fold", "users"} & set(content)


def test_figures_of_each_user_survive_the_file(run, data):
    _, out, _ = run()
    (found,) = read_runs(out)
    prepared = Prepared(Wanted(data, "disjoint", "walk"))
    prepared.fit()
    measured = measure(prepared.contender, prepared.split.test, EMBEDDED)
    user, figures = found.per_user()
    np.testing.assert_array_equal(user, measured.user)
    assert {"recall@10", "unordered@10", "unordered@10:click", "unordered@10:like", "equal@20", "diversity"} == set(
        figures
    )
    for name, values in figures.items():
        np.testing.assert_allclose(values, measured.figures[name], atol=6e-4 if name == "diversity" else 1e-12)
    np.testing.assert_array_equal(unpack(found.users["targets"]), measured.targets)


def test_a_run_that_was_interrupted_goes_on_and_gives_the_same_json(run, monkeypatch, tmp_path):
    again = ("--seed", "1")
    _, out, _ = run(*again, "--checkpoints", str(tmp_path / "elsewhere"), protocol="loo")
    (whole,) = read_runs(out)
    (out / f"{whole.name}.json").unlink()
    fit_epoch = Walk.fit_epoch

    def interrupted(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        return fit_epoch(self)

    monkeypatch.setattr(Walk, "fit_epoch", interrupted)
    code, _, said = run(*again, protocol="loo")
    assert code == 130
    assert "goes on from the last whole epoch" in said.err
    monkeypatch.setattr(Walk, "fit_epoch", fit_epoch)
    code, _, said = run(*again, protocol="loo")
    assert code == 0
    assert "epoch 3/5" not in said.out
    assert "epoch 4/5" in said.out
    (resumed,) = read_runs(out)
    assert _but_for_time(resumed) == _but_for_time(whole)


def _but_for_time(run):
    content = run.model_dump(exclude={"seconds", "curve"})
    return content | {"curve": [epoch.model_dump(exclude={"seconds"}) for epoch in run.curve]}


def test_other_settings_do_not_go_on_from_a_checkpoint(run, data, tmp_path):
    run()
    code, _, said = run("--folds", "4")
    assert code == 0
    assert "epoch 1/4" in said.out
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_trial_of_few_epochs_stays_out_of_the_results(data, monkeypatch, tmp_path, run):
    monkeypatch.setattr(process, "TRIALS", tmp_path / "trials")
    assert command.main(["--data", str(data), "--protocol", "loo", "--model", "walk", "--epochs", "2"]) == 0
    assert len(read_runs(tmp_path / "trials")[0].curve) == 2


def test_what_is_wrong_with_log_or_arguments_is_a_sentence(run, data):
    assert "fold: must be from 0 to 4, not 9" in run("--fold", "9")[2].err
    (data / "interactions.csv.gz").unlink()
    code, _, said = run()
    assert code == 2
    assert "holds no log; name it interactions.csv.gz" in said.err


def test_a_file_that_is_no_run_is_told(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BenchmarkError, match=r"x\.json: not a run"):
        read_runs(tmp_path)


def test_settings_go_from_the_general_to_the_particular():
    entry = Entry(
        f"{HERE}:Walk", f"{HERE}:WalkConfig",
        settings={
            "": {"epochs": 1, "pace": 1.0}, "loo": {"epochs": 2}, "ml1m": {"epochs": 3}, "ml1m loo": {"pace": 9.0}
        },
    )  # fmt: skip
    assert entry.config_for("ml1m", "loo") == WalkConfig(epochs=3, pace=9.0)
    assert entry.config_for("other", "loo") == WalkConfig(epochs=2, pace=1.0)
    other = entry.but({"ml1m loo": {"epochs": 5}, "": {"pace": 5.0}})
    assert other.config_for("ml1m", "loo") == WalkConfig(epochs=5, pace=9.0)
    assert other.config_for("other", "loo") == WalkConfig(epochs=2, pace=5.0)
    assert entry.config_for("ml1m", "loo", epochs=7).epochs == 7
    assert entry.selection_for("ml1m", "loo") == Selection(metric="ndcg@10")
    assert entry.selection_for("ml1m", "disjoint").embeddings == EMBEDDINGS["ml1m"]
    with pytest.raises(ValueError, match="pase"):
        entry.but({"": {"pase": 1.0}}).config_for("ml1m", "loo")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("where", ["ml1m loo", "amazon_beauty loo", "kuairand_pure disjoint", "ml1m disjoint"])
def test_every_model_has_a_config_that_is_valid(name, where):
    assert MODELS[name].config_for(*where.split()) is not None


def test_the_settings_of_every_run_on_record_can_be_read():
    for run in read_runs(RESULTS):
        assert MODELS[run.model].config_of(run.config["model"]) is not None


@pytest.fixture
def three_outcomes(tmp_path, monkeypatch):
    """A log that no model has settings for, with click, like and save; PinRec is small."""
    folder = tmp_path / "unheard_of"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,action,surface,timestamp"]
    rows += [
        f"{user},{item},{('click', 'like', 'save', 'impression')[rng.integers(4)]},web,{1_000 + time}"
        for user in range(40)
        for time, item in enumerate(rng.permutation(ITEMS)[:12])
    ]
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    small = {
        "model": {"width": 16, "layers": 1, "history": 16, "stride": 1, "hash_buckets": 64, "bag_buckets": 64},
        "training": {"batch_users": 8, "window": 8, "uniform_negatives": 8, "id_decay": 0.0}, "epochs": 1,
    }  # fmt: skip
    for name in ("pinrec", "pinrec_oc", "pinrec_uc"):
        monkeypatch.setitem(models.MODELS, name, MODELS[name].but({"disjoint": small}))
    return folder


def test_on_a_log_of_ones_own_every_model_makes_as_many_embeddings_as_mt_oc(three_outcomes, tmp_path):
    where = ["--checkpoints", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out")]
    for name in ("pinrec", "pinrec_oc", "pinrec_uc", "popular"):
        assert command.main(["--data", str(three_outcomes), "--protocol", "disjoint", "--model", name, *where]) == 0
    runs = {run.model: run for run in read_runs(tmp_path / "out")}
    assert {run.config["selection"]["embeddings"] for run in runs.values()} == {12}
    assert all({"equal@120", "unordered@10"} <= run.test.keys() for run in runs.values())
    made = {name: runs[name].config["model"]["generation"] for name in ("pinrec", "pinrec_oc", "pinrec_uc")}
    assert {name: of["steps"] for name, of in made.items()} == {"pinrec": 2, "pinrec_oc": 4, "pinrec_uc": 12}
    assert set(made["pinrec"]["default_outcomes"]) == {"click", "like", "save"}


def test_numbers_that_cannot_agree_are_refused_before_training(three_outcomes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pinrec.contender.PinRec.fit_epoch", lambda _: pytest.fail("trained"))
    rare = models.MODELS["pinrec"].but({"disjoint": {"model": {"offsets_s": (0.0, 1.0, 2.0, 3.0, 4.0)}}})
    monkeypatch.setitem(models.MODELS, "odd", rare)
    command.main(["--data", str(three_outcomes), "--protocol", "disjoint", "--model", "odd", "--out", str(tmp_path)])
    assert "makes 15 embeddings a user, where every model is to make 12" in capsys.readouterr().err
    known = tmp_path / "ml1m"
    three_outcomes.rename(known)
    command.main(["--data", str(known), "--protocol", "disjoint", "--model", "pinrec", "--out", str(tmp_path)])
    assert "outcomes.neutral" in capsys.readouterr().err


@pytest.mark.parametrize("data", EMBEDDINGS)
def test_settings_that_a_data_set_has_stay_as_they_are_and_agree_with_its_recorded_runs(data):
    split = disjoint(random_user_log(users=40))
    known = Vocabulary(actions=[Action(name=name) for name in _outcomes_on(data)])
    split = replace(split, log=replace(split.log, vocabulary=known))
    for name in ("pinrec", "pinrec_oc", "pinrec_uc", "popular"):
        recorded = read_run(next(RESULTS.glob(f"{data}-disjoint-{name}-seed0-fold0.json")))
        config = MODELS[name].config_for(data, "disjoint")
        embeddings = embeddings_on(data, split)
        assert plain(generating(config, data, split, embeddings)) == plain(config)
        assert recorded.config["selection"]["embeddings"] == embeddings


def _outcomes_on(data):
    return MODELS["pinrec"].config_for(data, "disjoint").generation.default_outcomes


def test_counts_survive_packing():
    values = np.array([0, 3, -2, 70_000])
    np.testing.assert_array_equal(unpack(pack(values)), values)


def test_a_run_cannot_have_unknown_keys():
    with pytest.raises(ValueError, match="extra"):
        Run.model_validate({"dataset": "a", "extra": 1})
