"""The broker's jars in the user's cache: fetched once, checked, and never half there."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from streaming.broker_jars import JARS, KAFKA_VERSION

Progress: TypeAlias = Callable[[int, int], None]
"""Told (jars done, jars in all)."""


class BrokerError(RuntimeError):
    """The local broker cannot be had; the message says why and what to do."""


def cache_folder() -> Path:
    """`pinrec` below the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinrec"


def kafka_jars(progress: Progress | None = None) -> Path:
    """The folder that holds every jar, downloaded first if need be (45 MB).

    The folder is made aside and renamed, under a lock: two processes at once download once.

    Raises:
        BrokerError: a jar cannot be downloaded, or is not the one that was asked for.
    """
    cache = cache_folder()
    jars = cache / f"kafka-{KAFKA_VERSION}"
    if jars.is_dir():
        return jars
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{jars.name}.lock").open("w") as lock, _locked(lock):
        if not jars.is_dir():
            for left_behind in cache.glob(f"{jars.name}.part-*"):
                shutil.rmtree(left_behind)
            with tempfile.TemporaryDirectory(prefix=f"{jars.name}.part-", dir=cache) as aside:
                made = Path(aside) / "jars"
                _download(made, Path(aside) / "repository", progress)
                made.rename(jars)
    return jars


def _download(jars: Path, repository: Path, progress: Progress | None) -> None:
    # Slow to import, and needed once in a machine's life.
    from jgo.maven import MavenContext  # noqa: PLC0415

    jars.mkdir()
    context = MavenContext(repo_cache=repository, timeout=30)

    def fetch(coordinate: str) -> None:
        try:
            path = context.create_dependency(coordinate).artifact.resolve()
        except Exception as error:  # jgo lets through whatever its HTTP client raises
            raise BrokerError(
                f"could not download {coordinate} from Maven Central ({error}); "
                "try again with a connection to it, or set kafka.bootstrap to a broker that runs already"
            ) from error
        if hashlib.sha256(path.read_bytes()).hexdigest() != JARS[coordinate]:
            raise BrokerError(f"{coordinate}: the download is not the jar that was expected (SHA-256); try again")
        path.rename(jars / path.name)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(fetch, coordinate) for coordinate in JARS]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if progress:
                    progress(done, len(JARS))
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _locked(file: IO[str]) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
