"""A bundle: everything one version answers with, in one folder that is checked before it serves.

manifest.json            what the files must be (`Manifest`)
model.safetensors        dense weights
ids.npy                  tables of the ID embedding, float32; mapped, so that the processes of a machine share them
table.npy                item vectors in catalogue order, float32[N, D] or [N] of `quantised.row_dtype`; mapped
index.faiss              the index over them
catalogue.safetensors    items
popularity.safetensors   the answer to unknown users
learner.safetensors      optional: what training goes on from
"""

import copy
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pinrec.budget import normalised
from pinrec.config import Frozen, GenerationConfig, Mode, ModelConfig, Vocabulary
from pinrec.exact import CHUNK, perturbed_rows
from pinrec.fused import FusedModel
from pinrec.generation import embed, rank
from pinrec.hashing import hash_id
from pinrec.history import History, HistoryEvent
from pinrec.index import IndexFileError, IndexReport, ItemIndex
from pinrec.items import CATALOGUE_FILE, Catalogue
from pinrec.model import PinRecModel, as_int64
from pinrec.popularity import POPULARITY_FILE, Popularity
from pinrec.quantised import QuantisedTable, int8_recall, quantise, row_dtype
from pinrec.requests import GenerationRequest
from pinrec.tower import id_tables_shape

log = logging.getLogger(__name__)

FORMAT: Final = 5
MANIFEST: Final = "manifest.json"
MODEL: Final = "model.safetensors"
IDS: Final = "ids.npy"
TABLE: Final = "table.npy"
INDEX: Final = "index.faiss"
LEARNER: Final = "learner.safetensors"
REQUIRED: Final = (MODEL, IDS, TABLE, INDEX, CATALOGUE_FILE, POPULARITY_FILE)
TOLERANCE: Final = 1e-3
"""Processors differ in the sixth digit; a wrong weight or row in the first."""
LOWEST_RECALL: Final = 0.9
LOWEST_TABLE_RECALL: Final = 0.95
"""Of an INT8 table; where it would lose more, as of items that lie close together, the table stays float32."""
_STAYS: Final = 0.95
"""Cosine to what it was, above which an item stays in its list of the index; the index's recall decides."""
_ID_WEIGHT: Final = "tower.ids.weight.weight"
_GOLDEN_LENGTHS: Final = (1, 7, 30)
_GOLDEN_K: Final = 10
_SAMPLE: Final = 2_048
_NEW_ROWS: Final = 2_000

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]


class BundleError(ValueError):
    """A bundle that must not serve; `check` names the check it failed.

    One of missing, format, hash, shape, dtype, nan, norm, rows, table, recall or golden.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"{check}: {message}")
        self.check = check


class OtherFormatError(BundleError):
    """A bundle that another release made: nothing of it can serve here."""


class FileEntry(Frozen):
    """One file as it was written."""

    bytes: int
    sha256: str


class IndexEntry(Frozen):
    """How the index was built; see `pinrec.index.IndexReport`."""

    kind: Literal["exact", "codes", "ivf"]
    nprobe: int
    recall: float
    trained_nprobe: int = 0
    looked_at: int = 2


class TableEntry(Frozen):
    """How the item table is stored; `recall` is recall@100 of it against float32, for perturbed rows of it."""

    dtype: Literal["float32", "int8"]
    recall: float


class GoldenEvent(Frozen):
    """One event of a golden history; action and surface are vocabulary indices."""

    item_id: str
    action: int
    surface: int
    timestamp: float
    is_query: bool = False


class GoldenQuery(Frozen):
    """A made-up history, the first embedding of each step, the items the very first finds, and their ranking scores.

    Without a ranking head there are no scores.
    """

    history: tuple[GoldenEvent, ...]
    now: float
    embeddings: tuple[tuple[float, ...], ...] = ()
    items: tuple[str, ...] = ()
    ranking: tuple[float, ...] = ()


class Manifest(Frozen):
    """What a bundle is, and what its files must be."""

    format: int = FORMAT
    version: str = ""
    created_at: Annotated[float, Field(description="epoch s")]
    trained_until: Annotated[float, Field(description="Kafka time of the newest event trained on, epoch s")]
    mode: Annotated[Mode, Field(description="what the model was trained for")]
    config: ModelConfig
    vocabulary: Vocabulary
    outcomes: Annotated[dict[str, float], Field(description="default budget: shares as frequent as in training")]
    items: int
    table: TableEntry
    index: IndexEntry
    metrics: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    golden: tuple[GoldenQuery, ...] = ()
    items_positions: Annotated[
        dict[int, int], Field(description="of the items topic, by partition: what the catalogue was read up to")
    ] = Field(default_factory=dict)
    files: dict[FileName, FileEntry] = Field(default_factory=dict)
    checksum: Annotated[str, Field(description="sha256 of this manifest without this field")] = ""

    def sealed(self) -> str:
        """As JSON, with its checksum."""
        raw = self.model_dump(mode="json", exclude={"checksum"})
        return json.dumps(raw | {"checksum": _checksum(raw)}, separators=(",", ":"))

    @classmethod
    def parse(cls, text: bytes) -> "Manifest":
        """Read and check a manifest.

        Raises:
            BundleError: format or hash.
        """
        try:
            raw = json.loads(text)
            found = raw.get("format") if isinstance(raw, dict) else None
            if found != FORMAT:
                said = f"the bundle has format {found}, this program reads {FORMAT}; train anew"
                raise (OtherFormatError if isinstance(found, int) else BundleError)("format", said)
            manifest = cls.model_validate(raw)
        except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BundleError("format", f"{MANIFEST} cannot be read: {error}") from None
        # Of what was written, not of what this program makes of it: a setting that came later has its default here.
        if manifest.checksum != _checksum({name: value for name, value in raw.items() if name != "checksum"}):
            raise BundleError("hash", f"{MANIFEST} is not as it was written")
        return manifest


def _checksum(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Bundle:
    """One version, loaded: nothing in it ever changes, so an answer made with it is of one version.

    Attributes:
        model: in eval mode, without gradients.
        table: item vectors in catalogue order; `table[rows]` is float32[len(rows), D].
    """

    manifest: Manifest
    model: PinRecModel
    catalogue: Catalogue
    table: np.ndarray | QuantisedTable
    index: ItemIndex
    popularity: Popularity

    @cached_property
    def fused(self) -> FusedModel:
        """The model as lists are made with it."""
        return FusedModel(self.model)

    @classmethod
    def of(
        cls,
        model: PinRecModel,
        catalogue: Catalogue,
        popularity: Popularity,
        *,
        mode: Mode = "multi_token",
        outcomes: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        trained_until: float = 0.0,
        items_positions: Mapping[int, int] | None = None,
        like: "Bundle | None" = None,
    ) -> "Bundle":
        """A bundle of a snapshot of `model`: makes item table, index and golden answers.

        Args:
            outcomes: the default budget; None = equal shares.
            items_positions: see `Manifest`; whoever serves the bundle takes in what came after. None = not known.
            like: an older bundle; what is the same as there is not made again.

        Raises:
            BundleError: there are no items, or the model gives NaN.
            BudgetError: `outcomes` cannot be spent.
        """
        if not len(catalogue):
            raise BundleError("rows", "the catalogue has no items")
        model = copy.deepcopy(model).eval().requires_grad_(False)
        was_N = None if like is None else like.catalogue.rows(catalogue.hashes)
        table = _item_table(model, catalogue, like, was_N)
        _check_table(table, len(catalogue), model.config.width)
        stays_N = None if like is None or was_N is None else _staying(table, like, was_N)
        index = ItemIndex.build(table, like=None if like is None else like.index, stays_N=stays_N)
        stored, table_entry = _stored(table, model.config)
        assert index.report is not None
        budget = outcomes or dict.fromkeys(model.vocabulary.outcomes, 1.0)
        manifest = Manifest(
            created_at=time.time(),
            trained_until=trained_until,
            mode=mode,
            config=model.config,
            vocabulary=model.vocabulary,
            outcomes=normalised(budget, model.vocabulary),
            items=len(catalogue),
            table=table_entry,
            index=IndexEntry(**asdict(index.report)),
            metrics=dict(metrics or {}),
            items_positions=dict(items_positions or {}),
        )
        bundle = cls(manifest, model, catalogue, stored, index.over(stored), popularity)
        golden = tuple(bundle._answered(query) for query in _golden_queries(catalogue, model.vocabulary))
        return replace(bundle, manifest=manifest.model_copy(update={"golden": golden}))

    def measured(self, metrics: Mapping[str, float]) -> "Bundle":
        """The same bundle with these metrics."""
        return replace(self, manifest=self.manifest.model_copy(update={"metrics": dict(metrics)}))

    @property
    def version(self) -> str:
        """The registry's id of this version; empty until it is written."""
        return self.manifest.version

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.manifest.config

    @property
    def vocabulary(self) -> Vocabulary:
        """What the indices of histories mean to this model."""
        return self.manifest.vocabulary

    @property
    def outcomes(self) -> dict[str, float]:
        """The default budget."""
        return self.manifest.outcomes

    @cached_property
    def temperature(self) -> float:
        """The model's, as a number: what inner products of embeddings with the table are divided by."""
        return float(self.model.temperature)

    @cached_property
    def new_rows(self) -> np.ndarray:
        """int64: rows of items that nobody engaged with lately, the newest first; then those without a known time."""
        known = np.union1d(self.popularity.ranked[-1], self.popularity.newest)
        fresh = self.popularity.newest[~np.isin(self.popularity.newest, self.popularity.ranked[-1])]
        undated = np.flatnonzero(self.catalogue.created_at <= 0)
        return np.concatenate((fresh, undated[~np.isin(undated, known)]))[:_NEW_ROWS]

    def write(self, folder: Path, version: str, learner: Mapping[str, Tensor] | None = None) -> "Bundle":
        """Write the bundle aside, load it as a reader would, and give it its name.

        Args:
            folder: must not exist; its parent must.
            learner: tensors that training goes on from.

        Returns:
            the bundle as loaded.

        Raises:
            OSError: it cannot be written in full; nothing is left behind.
            BundleError: what was written fails a check; nothing is left behind.
        """
        if folder.exists():
            raise FileExistsError(f"{folder} exists; a bundle never changes")
        aside = folder.parent / f".{folder.name}.writing-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            self._write_files(aside, learner)
            files = {path.name: _entry(path) for path in sorted(aside.iterdir())}
            manifest = self.manifest.model_copy(update={"version": version, "files": files})
            (aside / MANIFEST).write_text(manifest.sealed())
            for path in (*aside.iterdir(), aside):
                _sync(path)
            loaded = Bundle.load(aside)
            aside.rename(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return loaded

    def _write_files(self, folder: Path, learner: Mapping[str, Tensor] | None) -> None:
        try:
            weights = self.model.state_dict()
            ids = weights.pop(_ID_WEIGHT)
            save_file(weights, folder / MODEL)
            if learner is not None:
                save_file(dict(learner), folder / LEARNER)
            self.catalogue.save(folder)
            self.popularity.save(folder)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        table = self.table.stored if isinstance(self.table, QuantisedTable) else self.table
        for name, array in ((IDS, ids.numpy()), (TABLE, table)):
            with (folder / name).open("wb") as file:
                np.save(file, array, allow_pickle=False)
        self.index.save(folder / INDEX)

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> "Bundle":
        """Load and check a bundle.

        Args:
            mmap: map ID embedding, item table and the vectors of an exact index, so that the processes of a machine
                share their pages. Codes are read.

        Raises:
            BundleError: naming the check it fails.
        """
        manifest = read_manifest(folder)
        _check_files(folder, manifest)
        model = _load_model(folder, manifest, mmap)
        table = _as_table(_load_array(folder / TABLE, "r" if mmap else None), manifest)
        try:
            index = ItemIndex.load(folder / INDEX, table, mmap, IndexReport(**manifest.index.model_dump()))
            catalogue = Catalogue.load(folder)
            popularity = Popularity.load(folder)
        except IndexFileError as error:
            raise BundleError("format", str(error)) from None
        except (ValueError, KeyError, TypeError, EOFError, SafetensorError) as error:
            raise BundleError("format", f"{CATALOGUE_FILE} or {POPULARITY_FILE} cannot be read: {error}") from None
        bundle = cls(manifest, model, catalogue, table, index, popularity)
        bundle._check()
        return bundle

    def _check(self) -> None:
        items, width = self.manifest.items, self.config.width
        _check_table(self.table, items, width)
        if self.index.width != width:
            raise BundleError("shape", f"{INDEX} is {self.index.width} wide, the model {width}")
        columns = {TABLE: len(self.table), INDEX: len(self.index)} | {
            f"{CATALOGUE_FILE} {name}": len(getattr(self.catalogue, name)) for name in Catalogue.__dataclass_fields__
        }
        if set(columns.values()) != {items} or not items:
            raise BundleError("rows", f"the manifest counts {items} items; found {columns}")
        for ranked in (self.popularity.ranked, self.popularity.newest):
            if ranked.max(initial=-1) >= items:
                raise BundleError("rows", f"{POPULARITY_FILE} names rows that the catalogue does not have")
        self._check_sample()
        if (recall := self.index.recall(self.table)) < LOWEST_RECALL:
            raise BundleError("recall", f"{INDEX} finds {recall:.2f} of the exact best 100; at least {LOWEST_RECALL}")
        for query in self.manifest.golden:
            self._check_golden(query)

    def _check_sample(self) -> None:
        """Rows of the table against the model: a table of another model, or in another order, is found out."""
        rows = np.unique(np.linspace(0, len(self.table) - 1, _SAMPLE).astype(np.int64))
        fresh_ND = _vectors(self.model, self.catalogue, rows)
        differs_ND = np.abs(fresh_ND - self.table[rows]) - _bound(self.table, rows)[:, None]
        if not (worst := differs_ND.max()) < TOLERANCE:
            raise BundleError("table", f"{TABLE} differs by {worst:.3g} from what the model makes of the catalogue")

    def _answered(self, query: GoldenQuery) -> GoldenQuery:
        e_SD = self._golden_embeddings(query)
        _, rows = self.index.search(e_SD[:1], min(_GOLDEN_K, len(self.index)))
        return query.model_copy(
            update={
                "embeddings": tuple(tuple(round(x, 6) for x in e_D) for e_D in e_SD.tolist()),
                "items": tuple(self.catalogue.item_ids[row] for row in rows[0]),
                "ranking": tuple(round(x, 6) for x in self._golden_ranking(query, rows[0]).tolist()),
            }
        )

    def _golden_embeddings(self, query: GoldenQuery) -> np.ndarray:
        """float32[steps, D]: the first embedding of each of two steps."""
        request = GenerationRequest(_history(query), k=1, now=query.now)
        generated = embed(self, [request], GenerationConfig(mode=self.manifest.mode, steps=2))
        e_SD: np.ndarray = generated.e_BED[0].reshape(2, -1, self.config.width)[:, 0]
        return e_SD

    def _golden_ranking(self, query: GoldenQuery, rows: np.ndarray) -> np.ndarray:
        """float32[len(rows)], or none without a ranking head."""
        if self.model.ranking is None:
            return np.zeros(0, np.float32)
        request = GenerationRequest(_history(query), k=1, now=query.now)
        return rank(self, [request], [rows], GenerationConfig())[0]

    def _check_golden(self, query: GoldenQuery) -> None:
        e_SD, expected_SD = self._golden_embeddings(query), np.array(query.embeddings, np.float32)
        if e_SD.shape != expected_SD.shape or not np.allclose(e_SD, expected_SD, rtol=0, atol=TOLERANCE):
            raise BundleError("golden", "a golden history gives other embeddings than when the bundle was made")
        scores, _ = self.index.search(e_SD[:1], len(query.items))
        rows = np.array([self.catalogue.row(item_id) for item_id in query.items])
        # Of items whose scores are all but equal, any may come first.
        least = scores[0] - TOLERANCE - _bound(self.table, rows) * self.config.width**0.5
        if (rows < 0).any() or (self.table[rows] @ e_SD[0] < least).any():
            raise BundleError("golden", "a golden history gives other items than when the bundle was made")
        score_C, expected_C = self._golden_ranking(query, rows), np.array(query.ranking, np.float32)
        if score_C.shape != expected_C.shape or not np.allclose(score_C, expected_C, rtol=0, atol=TOLERANCE):
            raise BundleError("golden", "a golden history ranks items otherwise than when the bundle was made")


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone.

    Raises:
        BundleError: missing, format or hash.
    """
    try:
        return Manifest.parse((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError("missing", f"{MANIFEST} is not in {folder}") from None


def read_learner(folder: Path) -> dict[str, Tensor] | None:
    """What training goes on from, checked; None where the bundle holds none.

    Raises:
        BundleError: missing, format or hash.
    """
    manifest = read_manifest(folder)
    if LEARNER not in manifest.files:
        return None
    _check_file(folder / LEARNER, manifest.files[LEARNER])
    return load_file(folder / LEARNER)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError("missing", f"{name} is not in {MANIFEST}")
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)


def _check_file(path: Path, expected: FileEntry) -> None:
    try:
        found = _entry(path)
    except FileNotFoundError:
        raise BundleError("missing", f"{path.name} is not in the folder") from None
    if found != expected:
        size = f"{found.bytes} bytes instead of {expected.bytes}" if found.bytes != expected.bytes else "other bytes"
        raise BundleError("hash", f"{path.name} is not as it was written: {size}")


def _load_array(path: Path, mmap_mode: Literal["r", "c"] | None) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode=mmap_mode, allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:
        raise BundleError("format", f"{path.name} cannot be read: {error}") from None


def _load_ids(folder: Path, config: ModelConfig, mmap: bool) -> Tensor:
    # torch knows no read-only memory. Pages mapped to be copied when written are shared all the same: nobody writes.
    ids = _load_array(folder / IDS, "c" if mmap else None)
    if ids.dtype != np.float32:
        raise BundleError("dtype", f"{IDS} is {ids.dtype}, not float32")
    if ids.shape != (expected := id_tables_shape(config)):
        raise BundleError("shape", f"{IDS} has shape {ids.shape}, the model's ID embedding {expected}")
    if not all(np.isfinite(ids[at : at + CHUNK]).all() for at in range(0, len(ids), CHUNK)):
        raise BundleError("nan", f"{IDS} has NaN or infinity")
    return torch.from_numpy(ids)


def _load_model(folder: Path, manifest: Manifest, mmap: bool) -> PinRecModel:
    ids = _load_ids(folder, manifest.config, mmap)
    try:
        weights = load_file(folder / MODEL)
    except SafetensorError as error:
        raise BundleError("format", f"{MODEL} cannot be read: {error}") from None
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise BundleError("nan", f"{MODEL} has NaN or infinity in {name}")
    with torch.random.fork_rng(devices=[]):  # random first weights must not move the caller's generator
        model = PinRecModel(manifest.config, manifest.vocabulary, ids)
    for name, expected in model.state_dict().items():
        if name in weights and weights[name].dtype != expected.dtype:
            raise BundleError("dtype", f"{MODEL} has {weights[name].dtype} in {name}, not {expected.dtype}")
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise BundleError("shape", f"{MODEL} does not fit the manifest's config: {error}") from None
    if set(missing) != {_ID_WEIGHT} or unexpected:
        raise BundleError(
            "shape", f"{MODEL}: {IDS} alone must hold {_ID_WEIGHT}; lacking {missing}, too much {unexpected}"
        )
    return model.eval().requires_grad_(False)


def _item_table(model: PinRecModel, catalogue: Catalogue, like: Bundle | None, was_N: np.ndarray | None) -> np.ndarray:
    """The item vectors, float32[N, D]; of weights that are those of `like`, only rows of new or changed items are made.

    Args:
        was_N: each item's row in `like`, -1 where it has none.
    """
    if like is None or was_N is None or not isinstance(like.table, np.ndarray) or not _same_weights(model, like.model):
        return model.item_table(catalogue)
    known = np.flatnonzero(was_N >= 0)
    same = np.ones(len(known), np.bool_)
    for name in ("bags", "content", "has_content"):
        differs = getattr(catalogue, name)[known] != getattr(like.catalogue, name)[was_N[known]]
        same &= ~differs.any(axis=tuple(range(1, differs.ndim)))
    known = known[same]
    made = np.setdiff1d(np.arange(len(catalogue)), known)
    table = np.empty((len(catalogue), model.config.width), np.float32)
    table[known] = like.table[was_N[known]]
    for at in range(0, len(made), CHUNK):
        table[made[at : at + CHUNK]] = _vectors(model, catalogue, made[at : at + CHUNK])
    return table


def _same_weights(one: PinRecModel, other: PinRecModel) -> bool:
    theirs = other.state_dict()
    return one.config == other.config and all(torch.equal(w, theirs[name]) for name, w in one.state_dict().items())


def _vectors(model: PinRecModel, catalogue: Catalogue, rows: np.ndarray) -> np.ndarray:
    """What the model makes of some items, float32[len(rows), D]."""
    with torch.inference_mode():
        vectors: np.ndarray = model.item_vectors(
            as_int64(catalogue.hashes[rows]),
            torch.from_numpy(catalogue.bags[rows]),
            torch.from_numpy(catalogue.content[rows]),
            torch.from_numpy(catalogue.has_content[rows]),
        ).numpy()
    return vectors


def _staying(table_ND: np.ndarray, like: Bundle, was_N: np.ndarray) -> np.ndarray | None:
    """Each item's row in `like` where its vector moved little since, else -1; None where there are no lists."""
    if not like.index.has_lists:
        return None
    stays_N = was_N.copy()
    for at in range(0, len(table_ND), CHUNK):
        rows = slice(at, at + CHUNK)
        cosine_N = np.einsum("nd,nd->n", table_ND[rows], like.table[np.maximum(was_N[rows], 0)])
        stays_N[rows][cosine_N < _STAYS] = -1
    return stays_N


def _stored(table_ND: np.ndarray, config: ModelConfig) -> tuple[np.ndarray | QuantisedTable, TableEntry]:
    """The table as the config asks for it, or as it is where too much would be lost."""
    if config.table_dtype == "int8":
        recall = int8_recall(table_ND, perturbed_rows(table_ND))
        if recall >= LOWEST_TABLE_RECALL:
            return quantise(table_ND), TableEntry(dtype="int8", recall=recall)
        log.warning("the item table stays float32: int8 would find %.2f of the best 100", recall)
    return table_ND, TableEntry(dtype="float32", recall=1.0)


def _as_table(array: np.ndarray, manifest: Manifest) -> np.ndarray | QuantisedTable:
    quantised = manifest.table.dtype == "int8"
    expected = row_dtype(manifest.config.width) if quantised else np.dtype(np.float32)
    if array.dtype != expected:
        raise BundleError("dtype", f"{TABLE} is {array.dtype}, not {expected}")
    if array.ndim != (1 if quantised else 2):
        raise BundleError("shape", f"{TABLE} has shape {array.shape}")
    return QuantisedTable(array) if quantised else array


def _bound(table: np.ndarray | QuantisedTable, rows: Any) -> np.ndarray:
    """How far a number of each of the rows may be from what the model made, float32[len(rows)]."""
    return table.bound(rows) if isinstance(table, QuantisedTable) else np.zeros(len(table[rows]), np.float32)


def _check_table(table: np.ndarray | QuantisedTable, items: int, width: int) -> None:
    if table.shape[1] != width:
        raise BundleError("shape", f"{TABLE} has shape {table.shape}, the model is {width} wide")
    if len(table) != items:
        raise BundleError("rows", f"{TABLE} has {len(table)} rows for {items} items")
    for at in range(0, items, CHUNK):
        rows = slice(at, at + CHUNK)
        with np.errstate(invalid="ignore", over="ignore"):
            x_ND = table[rows]
            norms = np.linalg.norm(x_ND, axis=1)
        if not np.isfinite(x_ND).all():
            raise BundleError("nan", f"{TABLE} has NaN or infinity")
        if (np.abs(norms - 1) > TOLERANCE + _bound(table, rows) * width**0.5).any():
            raise BundleError("norm", f"{TABLE} has rows of length {norms.min():.3g} to {norms.max():.3g}, not 1")


def _golden_queries(catalogue: Catalogue, vocabulary: Vocabulary) -> list[GoldenQuery]:
    """Fixed histories over this catalogue, one unknown item and, where search is declared, a query among them."""
    queries = []
    for at, length in enumerate(_GOLDEN_LENGTHS):
        events = []
        for i in range(length):
            item_id = catalogue.item_ids[(31 * i + 7 * at) % len(catalogue)] if i % 5 != 3 else f"unknown {i}"
            action = (i + at) % len(vocabulary.actions)
            is_query = vocabulary.actions[action].name == "search"
            events.append(
                GoldenEvent(
                    item_id=" ".join(catalogue.titles[i % len(catalogue)].split()) if is_query else item_id,
                    action=action,
                    surface=i % len(vocabulary.surfaces),
                    timestamp=1_750_000_000.0 + 97.0 * i * i,
                    is_query=is_query,
                )
            )
        queries.append(GoldenQuery(history=tuple(events), now=events[-1].timestamp + 45.0))
    return queries


def _history(query: GoldenQuery) -> History:
    return History.of(
        [
            HistoryEvent(e.timestamp, f"{i:06d}", e.item_id, hash_id(e.item_id), e.action, e.surface, e.is_query)
            for i, e in enumerate(query.history)
        ]
    )
