"""Many strings as one run of UTF-8 bytes: loaded without an object for each, and decoded as they are asked for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray


class Texts(Sequence[str]):
    """Immutable; equal to any sequence of the same strings.

    Args:
        utf8: uint8, all strings side by side.
        ends: int64[N], where each of them ends.

    Raises:
        ValueError: the ends do not fit the bytes.
    """

    def __init__(self, utf8: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        starts = np.concatenate((np.zeros(1, np.int64), ends))
        if utf8.dtype != np.uint8 or ends.dtype != np.int64 or starts[-1] != len(utf8) or (np.diff(starts) < 0).any():
            raise ValueError("the ends of the strings do not fit their bytes")
        self.utf8, self._starts = utf8, starts
        # What memory views give costs half of what scalars of NumPy do, and a list decodes dozens of strings.
        self._bytes, self._bounds = np.ascontiguousarray(utf8).data, starts.data

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """These strings."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @property
    def ends(self) -> NDArray[np.int64]:
        """int64[N], where each string ends."""
        return self._starts[1:]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int, /) -> str: ...

    @overload
    def __getitem__(self, row: slice, /) -> list[str]: ...

    def __getitem__(self, row: int | slice, /) -> str | list[str]:
        if isinstance(row, slice):
            return [self[at] for at in range(len(self))[row]]
        at = row if row >= 0 else range(len(self))[row]
        return str(self._bytes[self._bounds[at] : self._bounds[at + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        whole, start = self.utf8.tobytes(), 0
        for end in self.ends.tolist():
            yield whole[start:end].decode()
            start = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class TextGroups(Sequence[tuple[str, ...]]):
    """N tuples of strings, in the same way.

    Args:
        texts: the strings of all tuples, one behind the other.
        ends: int64[N], where each tuple ends among them.

    Raises:
        ValueError: the ends do not fit the strings.
    """

    def __init__(self, texts: Texts, ends: NDArray[np.int64]) -> None:
        starts = np.concatenate((np.zeros(1, np.int64), ends))
        if ends.dtype != np.int64 or starts[-1] != len(texts) or (np.diff(starts) < 0).any():
            raise ValueError("the ends of the groups do not fit their strings")
        self.texts, self._starts = texts, starts

    @classmethod
    def of(cls, groups: Sequence[Sequence[str]]) -> Self:
        """These tuples."""
        ends = np.cumsum(np.fromiter(map(len, groups), np.int64, len(groups)), dtype=np.int64)
        return cls(Texts.of(text for group in groups for text in group), ends)

    @property
    def ends(self) -> NDArray[np.int64]:
        """int64[N], where each tuple ends."""
        return self._starts[1:]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int, /) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, row: slice, /) -> list[tuple[str, ...]]: ...

    def __getitem__(self, row: int | slice, /) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(row, slice):
            return [self[at] for at in range(len(self))[row]]
        at = range(len(self))[row]
        return tuple(self.texts[self._starts[at] : self._starts[at + 1]])

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        texts, start = iter(self.texts), 0
        for end in self.ends.tolist():
            yield tuple(next(texts) for _ in range(end - start))
            start = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
