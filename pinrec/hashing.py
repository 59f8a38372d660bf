"""The one hash of ids and content features: 64 bits, the same in every process and on every machine."""

import re

import xxhash

_WORD = re.compile(r"\w+", re.UNICODE)


def hash_id(text: str) -> int:
    """64-bit hash of an item id (or any string); unsigned."""
    return xxhash.xxh3_64_intdigest(text.encode())


def hash_words(text: str) -> list[int]:
    """Hashes of the distinct lower-case words of a title or a query, in order of appearance.

    Titles and queries share these features, so that a query meets the items it names.
    """
    return [hash_id(f"word={word}") for word in dict.fromkeys(_WORD.findall(text.lower()))]


def hash_categories(categories: list[str] | tuple[str, ...]) -> list[int]:
    """Hashes of an item's categories."""
    return [hash_id(f"category={category}") for category in categories]
