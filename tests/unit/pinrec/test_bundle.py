import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pinrec.bundle
from pinrec.budget import BudgetError
from pinrec.bundle import MANIFEST, REQUIRED, Bundle, BundleError, Manifest, _entry, read_learner
from pinrec.config import GenerationConfig
from pinrec.generation import generate
from pinrec.index import ItemIndex
from pinrec.items import Catalogue, Item
from pinrec.quantised import QuantisedTable
from tests.small_bundle import CONFIG, request, small_bundle, small_items

ROOT = Path(__file__).parents[3]
INT8 = CONFIG.model_copy(update={"table_dtype": "int8"})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "v000001"
    small_bundle().write(folder, "v000001", learner={"moment": torch.arange(3.0)})
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "v000001"))


@pytest.fixture(scope="module")
def written_int8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "v000001"
    small_bundle(config=INT8).write(folder, "v000001")
    return folder


@pytest.fixture
def int8_folder(written_int8, tmp_path):
    return Path(shutil.copytree(written_int8, tmp_path / "int8"))


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as error:
        Bundle.load(folder)
    return error.value.check


def sign_again(folder: Path, **changes) -> None:
    """Make hashes and checksum fit what is in the folder: damage that only the later checks can see."""
    manifest = Manifest.model_validate(json.loads((folder / MANIFEST).read_text()))
    files = {name: _entry(folder / name) for name in manifest.files}
    (folder / MANIFEST).write_text(manifest.model_copy(update={"files": files, **changes}).sealed())


def save_table(folder: Path, table: np.ndarray) -> None:
    np.save(folder / "table.npy", table)
    sign_again(folder)


def lists(bundle: Bundle) -> list[list[str]]:
    asked = [request(n, n) for n in (1, 5, 30)]
    return [[c.item_id for c in found] for found in generate(bundle, asked, GenerationConfig())]


def test_a_loaded_bundle_answers_as_the_one_that_was_written(folder):
    for mmap in (False, True):
        loaded = Bundle.load(folder, mmap)
        assert loaded.version == "v000001"
        assert loaded.manifest.metrics == {"recall@10": 0.5}
        assert lists(loaded) == lists(small_bundle())


def test_a_loaded_int8_bundle_answers_as_the_one_that_was_written(int8_folder):
    made = small_bundle(config=INT8)
    for mmap in (False, True):
        loaded = Bundle.load(int8_folder, mmap)
        assert isinstance(loaded.table, QuantisedTable)
        assert lists(loaded) == lists(made)
        assert loaded.manifest.table == made.manifest.table
    assert made.manifest.table.dtype == "int8"
    assert 0.95 <= made.manifest.table.recall < 1


def test_an_int8_table_is_a_quarter_of_the_size_and_hardly_changes_the_answers(folder, int8_folder):
    sizes = [(f / "table.npy").stat().st_size - 128 for f in (folder, int8_folder)]
    assert sizes == [120 * 16 * 4, 120 * (16 + 4)]
    same = [len(set(a) & set(b)) for a, b in zip(*(lists(Bundle.load(f)) for f in (folder, int8_folder)), strict=True)]
    assert min(same) >= 8


def test_a_table_that_int8_would_spoil_stays_float32(caplog):
    bundle = small_bundle(small_items(600), config=INT8)
    model = copy.deepcopy(bundle.model)
    with torch.no_grad():  # vectors that differ in the fourth digit
        model.tower.mlp[2].weight.mul_(1e-4)
        model.tower.mlp[2].bias.copy_(torch.linspace(-1, 1, 16))
    alike = Bundle.of(model, bundle.catalogue, bundle.popularity)
    assert alike.manifest.table.dtype == "float32"
    assert isinstance(alike.table, np.ndarray)
    assert "the item table stays float32" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux to tell what is mapped")
def test_id_embedding_and_table_are_mapped_and_nothing_writes_to_them(folder):
    loaded = Bundle.load(folder)
    lists(loaded)
    pages = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.fullmatch(r"([0-9a-f]+)-([0-9a-f]+) .*", line):
            start, end, name = int(match[1], 16), int(match[2], 16), line.split()[-1]
        elif match := re.fullmatch(r"Anonymous: +(\d+) kB", line):
            pages.setdefault(name, []).append((start, end, int(match[1])))
    addresses = {
        "ids.npy": loaded.model.tower.ids.weight.weight.data_ptr(),
        "table.npy": loaded.table.__array_interface__["data"][0],
    }
    for name, address in addresses.items():
        found = pages[str(folder / name)]
        assert any(start <= address < end for start, end, _ in found)
        assert sum(copied for *_, copied in found) == 0


def test_a_fresh_process_answers_the_same(folder):
    script = (
        "import sys, json; from pathlib import Path; from tests.unit.pinrec.test_bundle import lists, Bundle\n"
        "print(json.dumps(lists(Bundle.load(Path(sys.argv[1])))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == lists(small_bundle())


def test_loading_leaves_the_callers_random_numbers_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Bundle.load(folder)
    assert torch.rand(1) == expected


def test_the_learners_tensors_come_back(folder):
    assert read_learner(folder)["moment"].tolist() == [0.0, 1.0, 2.0]
    (folder / "learner.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"hash: learner\.safetensors"):
        read_learner(folder)


@pytest.mark.parametrize("name", [*REQUIRED, "learner.safetensors"])
def test_a_flipped_bit_in_any_file_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert refused(folder) == "hash"


def test_a_flipped_bit_anywhere_in_the_manifest_is_refused(folder):
    content = (folder / MANIFEST).read_bytes()
    for at in range(0, len(content), len(content) // 23):
        damaged = bytearray(content)
        damaged[at] ^= 1
        (folder / MANIFEST).write_bytes(damaged)
        assert refused(folder) in {"hash", "format"}


@pytest.mark.parametrize("name", [*REQUIRED, MANIFEST])
def test_a_truncated_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert refused(folder) == ("format" if name == MANIFEST else "hash")


@pytest.mark.parametrize("name", [*REQUIRED, MANIFEST, "learner.safetensors"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    assert refused(folder) == "missing"


def test_a_manifest_that_leaves_a_file_out_is_refused(folder):
    manifest = Manifest.parse((folder / MANIFEST).read_bytes())
    files = {name: entry for name, entry in manifest.files.items() if name != "table.npy"}
    (folder / MANIFEST).write_text(manifest.model_copy(update={"files": files}).sealed())
    assert refused(folder) == "missing"


def test_a_bundle_written_before_a_setting_was_there_still_loads(folder):
    raw = json.loads((folder / MANIFEST).read_text())
    assert raw["config"].pop("ranking") is False
    del raw["checksum"]
    raw["checksum"] = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(raw))
    assert Bundle.load(folder).config.ranking is False


def test_the_positions_of_the_items_topic_come_back_by_partition(folder):
    sign_again(folder, items_positions={10: 5, 2: 7, 0: 0})
    assert Bundle.load(folder).manifest.items_positions == {0: 0, 2: 7, 10: 5}
    raw = json.loads((folder / MANIFEST).read_text())
    for name in ("items_positions", "checksum"):
        del raw[name]
    raw["checksum"] = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(raw))
    assert Bundle.load(folder).manifest.items_positions == {}, "of a bundle from before they were written"


@pytest.mark.parametrize("found", [0, 2, "3", 4, None])
def test_another_format_is_refused(folder, found):
    raw = json.loads((folder / MANIFEST).read_text()) | {"format": found}
    (folder / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="this program reads 5") as error:
        Bundle.load(folder)
    assert error.value.check == "format"


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", ".hidden"])
def test_a_manifest_cannot_name_files_outside_its_folder(folder, name):
    raw = json.loads((folder / MANIFEST).read_text())
    raw["files"][name] = raw["files"]["table.npy"]
    (folder / MANIFEST).write_text(json.dumps(raw))
    assert refused(folder) == "format"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_file_of_another_kind_is_refused(folder, name):
    (folder / name).write_bytes(b"\x93NUMPY something else")
    sign_again(folder)
    assert refused(folder) == "format"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_table_that_is_not_finite_is_refused(folder, bad):
    table = np.load(folder / "table.npy")
    table[7, 3] = bad
    save_table(folder, table)
    assert refused(folder) == "nan"


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lambda t: t.astype(np.float64), "dtype"),
        (lambda t: t[:, :-1], "shape"),
        (lambda t: t[:-1], "rows"),
        (lambda t: t * 1.1, "norm"),
        (lambda t: t[::-1], "table"),
        (lambda t: np.concatenate((t[1:2], t[:1], t[2:])), "table"),
    ],
    ids=["float64", "narrow", "short", "long vectors", "reversed", "two rows swapped"],
)
def test_a_wrong_table_is_refused_by_name(folder, damage, check):
    save_table(folder, damage(np.load(folder / "table.npy")))
    assert refused(folder) == check


def scaled(stored: np.ndarray, scale: float, rows=slice(None)) -> np.ndarray:
    stored["scale"][rows] *= scale
    return stored


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lambda t: scaled(t, np.nan, 7), "nan"),
        (lambda t: scaled(t, np.inf, 7), "nan"),
        (lambda t: t["steps"].astype(np.float32), "dtype"),
        (lambda t: t["steps"], "dtype"),
        (lambda t: t.astype([("scale", "<f4"), ("steps", "i1", (15,))]), "dtype"),
        (lambda t: t.astype([("scale", "<f8"), ("steps", "i1", (16,))]), "dtype"),
        (lambda t: t.reshape(2, -1), "shape"),
        (lambda t: t[:-1], "rows"),
        (lambda t: scaled(t, 1.1), "norm"),
        (lambda t: scaled(t, 0.0, 5), "norm"),
        (lambda t: scaled(t, 1e30, 5), "norm"),
        (lambda t: scaled(t, -1.0), "norm"),
        (lambda t: t[::-1], "table"),
        (lambda t: np.concatenate((t[1:2], t[:1], t[2:])), "table"),
    ],
    ids=["nan", "inf", "float32", "steps alone", "narrow", "float64", "folded", "short", "long vectors", "zero row",
         "huge row", "turned", "reversed", "two rows swapped"],
)  # fmt: skip
def test_a_wrong_int8_table_is_refused_by_name(int8_folder, damage, check):
    save_table(int8_folder, damage(np.load(int8_folder / "table.npy")))
    assert refused(int8_folder) == check


def test_a_float32_table_where_int8_is_announced_is_refused(folder, int8_folder, tmp_path):
    manifest = Manifest.parse((int8_folder / MANIFEST).read_bytes())
    save_table(int8_folder, np.zeros((120, 16), np.float32))
    assert refused(int8_folder) == "dtype"
    shutil.rmtree(int8_folder)
    small_bundle().write(int8_folder, "v000001")
    sign_again(int8_folder, table=manifest.table)
    assert refused(int8_folder) == "dtype"


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lambda w: w * np.float32(np.nan), "nan"),
        (lambda w: w.astype(np.float16), "dtype"),
        (lambda w: w[:-1], "shape"),
        (lambda w: w.reshape(-1), "shape"),
        (lambda w: w[::-1], "table"),
    ],
    ids=["nan", "half", "short", "flat", "reversed"],
)
def test_a_wrong_id_embedding_is_refused_by_name(folder, damage, check):
    np.save(folder / "ids.npy", damage(np.load(folder / "ids.npy")))
    sign_again(folder)
    assert refused(folder) == check


@pytest.mark.parametrize(
    ("rows", "check"), [(slice(0, 0), "rows"), (slice(0, -1), "rows"), (slice(None, None, -1), "recall")]
)
def test_an_index_over_other_rows_is_refused(folder, rows, check):
    table = np.load(folder / "table.npy")
    ItemIndex.build(np.ascontiguousarray(table[rows])).save(folder / "index.faiss")
    sign_again(folder)
    assert refused(folder) == check


def test_an_index_of_another_width_is_refused(folder):
    ItemIndex.build(np.load(folder / "table.npy")[:, :8].copy()).save(folder / "index.faiss")
    sign_again(folder)
    assert refused(folder) == "shape"


def test_a_catalogue_of_other_items_is_refused(folder, tmp_path):
    other = small_bundle(small_items(60))
    other.catalogue.save(folder)
    sign_again(folder)
    assert refused(folder) == "rows"
    shutil.rmtree(folder)
    small_bundle().write(folder, "v000001")
    small_bundle(small_items()[::-1]).catalogue.save(folder)
    sign_again(folder)
    assert refused(folder) == "table"


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lambda w: w.__setitem__("output.out.bias", w["output.out.bias"] * torch.nan), "nan"),
        (lambda w: w.__setitem__("output.out.bias", w["output.out.bias"].half()), "dtype"),
        (lambda w: w.__setitem__("output.out.bias", w["output.out.bias"][:3].clone()), "shape"),
        (lambda w: w.pop("output.out.bias"), "shape"),
        (lambda w: w.__setitem__("tower.ids.weight.weight", torch.zeros(512, 4)), "shape"),
        (lambda w: w["output.out.bias"].add_(0.5), "golden"),
        (lambda w: w["action.weight"].copy_(w["action.weight"].flip(0)), "golden"),
    ],
    ids=["nan", "half", "short", "absent", "twice", "shifted", "actions reversed"],
)
def test_weights_that_are_not_the_bundles_are_refused(folder, damage, check):
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors")
    sign_again(folder)
    assert refused(folder) == check


def test_popularity_of_another_catalogue_is_refused(folder):
    small_bundle(small_items(240)).popularity.save(folder)
    sign_again(folder)
    assert refused(folder) == "rows"


def test_a_bundle_is_never_written_over_and_leaves_nothing_aside(folder):
    with pytest.raises(FileExistsError):
        small_bundle().write(folder, "v000001")
    assert [path.name for path in folder.parent.iterdir()] == ["v000001"]


def test_a_snapshot_does_not_follow_the_model_it_was_taken_of():
    bundle = small_bundle()
    again = Bundle.of(bundle.model, bundle.catalogue, bundle.popularity)
    before = lists(again)
    bundle.model.output.out.bias.data += 1.0
    assert lists(again) == before


def test_no_bundle_without_items_or_with_a_broken_model():
    with pytest.raises(BundleError, match="no items"):
        small_bundle([])
    bundle = small_bundle()
    bundle.model.tower.mlp[0].bias.data[:] = torch.nan
    with pytest.raises(BundleError, match="nan"):
        Bundle.of(bundle.model, bundle.catalogue, bundle.popularity)
    with pytest.raises(BudgetError):
        Bundle.of(small_bundle().model, bundle.catalogue, bundle.popularity, outcomes={"buy": 1.0})


def test_with_the_same_weights_only_new_and_changed_items_are_made_again(monkeypatch):
    older = small_bundle()
    items = small_items()[::-1]
    changed = replace(items[3], title="another title altogether")
    items[3:5] = [changed]
    items.append(Item("brand new", title="wool"))
    catalogue = Catalogue.of(items, CONFIG)
    made = []
    vectors = pinrec.bundle._vectors

    def counted(model, catalogue, rows):
        made.extend(catalogue.item_ids[row] for row in rows)
        return vectors(model, catalogue, rows)

    monkeypatch.setattr(pinrec.bundle, "_vectors", counted)
    newer = Bundle.of(older.model, catalogue, older.popularity, like=older)
    assert made == [changed.item_id, "brand new"]
    np.testing.assert_allclose(newer.table, older.model.item_table(catalogue), atol=1e-6)
    others = Catalogue.of([Item("another one"), Item("and another")], CONFIG)
    assert len(Bundle.of(older.model, others, older.popularity, like=older).table) == 2, "nothing is as it was"


def test_with_other_weights_every_row_is_made_and_the_index_keeps_its_lists(monkeypatch, tmp_path):
    monkeypatch.setattr(ItemIndex, "build", partial(ItemIndex.build, exact_below=0))
    first = small_bundle(small_items(300)).write(tmp_path / "v000001", "v000001")
    model = copy.deepcopy(first.model)
    with torch.no_grad():
        model.tower.mlp[2].bias += 0.01
    second = Bundle.of(model, first.catalogue, first.popularity, like=first)
    np.testing.assert_array_equal(second.table, model.item_table(first.catalogue))
    assert second.index.report.recall >= 0.98
    assert second.manifest.index.trained_nprobe == first.manifest.index.trained_nprobe > 0
    assert second.write(tmp_path / "v000002", "v000002").index.has_lists
