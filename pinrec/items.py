"""The catalogue: what is known of the items, in columns."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pinrec.config import ModelConfig
from pinrec.hashing import hash_author, hash_categories, hash_id, hash_numbers, hash_words
from pinrec.texts import TextGroups, Texts

CATALOGUE_FILE: Final = "catalogue.safetensors"


@dataclass(frozen=True)
class Item:
    """One item. `created_at` is in epoch seconds, 0 where it is not known; `numeric` holds finite numbers by name."""

    item_id: str
    title: str = ""
    categories: tuple[str, ...] = ()
    embedding: tuple[float, ...] | None = None
    created_at: float = 0.0
    author: str | None = None
    numeric: Mapping[str, float] = field(default_factory=dict)

    def fitting(self, content_width: int) -> Self:
        """The item itself, or without an embedding that a model of this content width cannot take."""
        if self.embedding is None or len(self.embedding) == content_width:
            return self
        return replace(self, embedding=None)

    def features(self) -> list[int]:
        """Hashes of the content features, the telling ones first: a bag may not hold them all.

        Raises:
            ValueError: a number that is not finite.
        """
        author = [hash_author(self.author)] if self.author else []
        try:
            numbers = hash_numbers(self.numeric)
        except ValueError as error:
            raise ValueError(f"numeric: of item {self.item_id!r}, {error}") from None
        return author + hash_categories(self.categories) + numbers + hash_words(self.title)


_NO_FEATURES: Final = (hash_id("no features"),)


def feature_bag(hashes: Sequence[int], config: ModelConfig) -> NDArray[np.int32]:
    """The first `bag_size` content features as bucket + 1, int32[bag_size]; 0 is padding.

    To have none is a feature as well: items of which nothing is known have that in common, as all others have theirs,
    and what they are chosen for as a kind, their popularity to begin with, need not be learned for each.
    """
    bag = np.zeros(config.bag_size, np.int32)
    for i, value in enumerate(hashes[: config.bag_size] or _NO_FEATURES):
        bag[i] = value % config.bag_buckets + 1
    return bag


def query_bag(text: str, config: ModelConfig) -> NDArray[np.int32]:
    """A query's content features: its words, int32[bag_size]."""
    return feature_bag(hash_words(text), config)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N items in columns; immutable, in the order they were given. Authors and numbers are in the bags alone.

    Attributes:
        item_ids, titles, categories: of length N; once loaded, decoded only as they are asked for.
        hashes: uint64[N], `hash_id` of the item ids.
        created_at: float64[N], epoch seconds.
        bags: int32[N, bag_size], hashed content features as bucket + 1; 0 is padding.
        content: float32[N, content_width], zeros where an item has none.
        has_content: bool[N].
    """

    item_ids: Sequence[str]
    hashes: NDArray[np.uint64]
    titles: Sequence[str]
    categories: Sequence[tuple[str, ...]]
    created_at: NDArray[np.float64]
    bags: NDArray[np.int32]
    content: NDArray[np.float32]
    has_content: NDArray[np.bool_]

    @classmethod
    def of(cls, items: Sequence[Item], config: ModelConfig) -> Self:
        """Columns of `items`.

        Raises:
            ValueError: an id twice, an embedding that is not `content_width` finite numbers, or a number that is not
                finite.
        """
        ids = [item.item_id for item in items]
        if len(set(ids)) != len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise ValueError(f"item_id: {twice!r} is there twice; keep the newest version of each item")
        bags = np.zeros((len(items), config.bag_size), np.int32)
        content = np.zeros((len(items), config.content_width), np.float32)
        has_content = np.zeros(len(items), np.bool_)
        for row, item in enumerate(items):
            bags[row] = feature_bag(item.features(), config)
            if item.embedding is not None and config.content_width:
                if len(item.embedding) != config.content_width or not np.isfinite(item.embedding).all():
                    raise ValueError(
                        f"embedding: item {item.item_id!r} has {len(item.embedding)} numbers; "
                        f"content_width is {config.content_width}, all of them finite"
                    )
                content[row] = item.embedding
                has_content[row] = True
        return cls(
            item_ids=ids,
            hashes=np.fromiter(map(hash_id, ids), np.uint64, len(ids)),
            titles=[item.title for item in items],
            categories=[item.categories for item in items],
            created_at=np.array([item.created_at for item in items], np.float64),
            bags=bags,
            content=content,
            has_content=has_content,
        )

    @classmethod
    def following(
        cls, known: Self | None, items: Mapping[str, Item], changed: Collection[str], config: ModelConfig
    ) -> Self:
        """The catalogue of exactly `items`: those of `known` in their order, then the others by id.

        Args:
            known: an older catalogue for the same config.
            items: by item id.
            changed: those whose rows are made anew; an item that `known` does not have is made in any case.

        Raises:
            ValueError: see `of`.
        """
        row_of = {name: row for row, name in enumerate(known.item_ids) if name in items} if known is not None else {}
        anew = set(changed) | (items.keys() - row_of.keys())
        order = [*row_of, *sorted(items.keys() - row_of.keys())]
        made = cls.of([items[name] for name in order if name in anew], config)
        if known is None or len(made) == len(order):
            return made
        is_new = np.fromiter((name in anew for name in order), np.bool_, len(order))
        kept = np.fromiter((row_of[name] for name in order if name not in anew), np.int64, len(order) - len(made))
        columns: dict[str, Any] = {}
        for name in ("hashes", "created_at", "bags", "content", "has_content"):
            new = getattr(made, name)
            column = np.empty((len(order), *new.shape[1:]), new.dtype)
            column[is_new], column[~is_new] = new, getattr(known, name)[kept]
            columns[name] = column
        for name in ("titles", "categories"):
            new, old = iter(getattr(made, name)), getattr(known, name)
            columns[name] = [next(new) if item in anew else old[row_of[item]] for item in order]
        return cls(item_ids=order, **columns)

    def same_as(self, other: "Catalogue") -> bool:
        """Whether both hold the same rows in the same order."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__]
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def _ranked(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order = np.argsort(self.hashes, kind="stable")
        return order, self.hashes[order]

    def rows(self, item_hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row of each hash, int64 of the same shape; -1 where the catalogue has no such item."""
        if not len(self):
            return np.full(item_hashes.shape, -1, np.int64)
        order, ranked = self._ranked
        at = np.minimum(np.searchsorted(ranked, item_hashes), len(self) - 1)
        return np.where(ranked[at] == item_hashes, order[at], -1)

    def row(self, item_id: str) -> int:
        """Row of an item, -1 where the catalogue has no such item."""
        return int(self.rows(np.array([hash_id(item_id)], np.uint64))[0])

    @cached_property
    def _rows_by_category(self) -> dict[str, NDArray[np.int64]]:
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(self.categories):
            for name in set(names):
                rows.setdefault(name, []).append(row)
        return {name: np.array(of_name, np.int64) for name, of_name in rows.items()}

    def category_rows(self, categories: frozenset[str]) -> NDArray[np.int64]:
        """int64, sorted: rows of the items that are in at least one of the categories."""
        known = [self._rows_by_category[name] for name in categories if name in self._rows_by_category]
        return known[0] if len(known) == 1 else np.unique(np.concatenate([np.empty(0, np.int64), *known]))

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The items of these rows, in this order."""
        columns: dict[str, Any] = {
            name: column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows.tolist()]
            for name, column in self._columns()
        }
        return type(self)(**columns)

    def joined(self, other: Self) -> Self:
        """These items, and the other ones behind them."""
        columns: dict[str, Any] = {
            name: np.concatenate((mine, theirs)) if isinstance(mine, np.ndarray) else [*mine, *theirs]
            for (name, mine), (_, theirs) in zip(self._columns(), other._columns(), strict=True)
        }
        return type(self)(**columns)

    def _columns(self) -> list[tuple[str, Any]]:
        return [(column.name, getattr(self, column.name)) for column in fields(self)]

    def save(self, folder: Path) -> None:
        """Write `catalogue.safetensors` into `folder`."""
        item_ids, titles, categories = Texts.of(self.item_ids), Texts.of(self.titles), TextGroups.of(self.categories)
        arrays: dict[str, NDArray[Any]] = {
            "item_ids": item_ids.utf8,
            "item_ids_ends": item_ids.ends,
            "titles": titles.utf8,
            "titles_ends": titles.ends,
            "categories": categories.texts.utf8,
            "categories_texts_ends": categories.texts.ends,
            "categories_ends": categories.ends,
            "hashes": self.hashes,
            "created_at": self.created_at,
            "bags": self.bags,
            "content": self.content,
            "has_content": self.has_content,
        }
        save_file(arrays, folder / CATALOGUE_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: the strings do not fit their ends.
        """
        arrays = load_file(folder / CATALOGUE_FILE)
        categories = Texts(arrays.pop("categories"), arrays.pop("categories_texts_ends"))
        return cls(
            item_ids=Texts(arrays.pop("item_ids"), arrays.pop("item_ids_ends")),
            titles=Texts(arrays.pop("titles"), arrays.pop("titles_ends")),
            categories=TextGroups(categories, arrays.pop("categories_ends")),
            **arrays,
        )
