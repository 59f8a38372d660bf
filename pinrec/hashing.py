"""The one hash of ids and content features: 64 bits, the same in every process and on every machine."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import xxhash

BUCKETS_PER_OCTAVE: Final = (2, 128)
"""Resolutions of a number: coarse for what spans magnitudes (a duration), fine for what spans none (a year)."""

_WORD = re.compile(r"\w+", re.UNICODE)


def hash_id(text: str) -> int:
    """64-bit hash of an item id (or any string); unsigned."""
    return xxhash.xxh3_64_intdigest(text.encode())


def hash_words(text: str) -> list[int]:
    """Hashes of the distinct lower-case words of a title or a query, in order of appearance.

    Titles and queries share these features, so that a query meets the items it names.
    """
    return [hash_id(f"word={word}") for word in dict.fromkeys(_WORD.findall(text.lower()))]


def hash_categories(categories: Sequence[str]) -> list[int]:
    """Hashes of an item's categories."""
    return [hash_id(f"category={category}") for category in categories]


def hash_author(author: str) -> int:
    """Hash of who made an item."""
    return hash_id(f"author={author}")


def hash_numbers(numbers: Mapping[str, float]) -> list[int]:
    """Hashes of named numbers, four for each: at every resolution two buckets, half a bucket apart.

    Numbers less than half a bucket apart share at least one of the two, on whichever side of a border they lie (tile
    coding, Sutton and Barto 2018, section 9.5.4). Buckets are a function of the number alone, so a new item needs no
    statistics of the others.

    Raises:
        ValueError: a number that is not finite, by its name.
    """
    hashes = []
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}, not a finite number")
        place = signed_log2(number)
        hashes += [
            hash_id(f"number={buckets}:{shift}:{math.floor(place * buckets + shift)}:{name}")
            for buckets in BUCKETS_PER_OCTAVE
            for shift in (0.0, 0.5)
        ]
    return hashes


def signed_log2(number: float) -> float:
    """sign(x) log2(1 + |x|), between powers of two by a straight line (at most .09 off).

    Exact in floating point, so that it falls into the same bucket on every machine, as a logarithm may not.
    """
    mantissa, exponent = math.frexp(1.0 + abs(number))  # mantissa in [1/2, 1)
    return math.copysign(exponent - 2 + 2 * mantissa, number)
