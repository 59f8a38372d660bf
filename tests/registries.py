"""A registry for tests: on a folder, or on a store without folders, renames or local paths."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec

from pinrec.registry import Registry


@contextlib.contextmanager
def registry_on(kind: str, folder: Path) -> Iterator[Registry]:
    """An empty one, on a "folder" or an "object store"; gone at the end."""
    if kind == "folder":
        yield Registry(folder / "the models")
        return
    bucket = uuid.uuid4().hex
    memory = fsspec.filesystem("memory")
    memory.makedirs(f"/{bucket}")
    yield Registry(f"memory://{bucket}/models", cache=folder / "cache")
    memory.rm(f"/{bucket}", recursive=True)
