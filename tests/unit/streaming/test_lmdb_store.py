"""What only the LMDB backend promises: several processes, a size limit, kill -9."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pinrec.history import HistoryEvent
from streaming.stores.base import StoreMismatchError
from streaming.stores.lmdb import LmdbSequenceStore, StoreFullError

WRITER = """
import sys
from pathlib import Path
from pinrec.history import HistoryEvent
from streaming.stores.lmdb import LmdbSequenceStore
store = LmdbSequenceStore(Path(sys.argv[1]), 64, 16, map_gib=0.1)
partition = int(sys.argv[2])
at = store.offset(partition) or 0
while at < int(sys.argv[3]):
    events = [HistoryEvent(float(i), f"e{i:06d}", "item", 1, 0, 0, False) for i in range(at, at + 10)]
    store.apply(partition, at, at + 10, [(f"user-{partition}", event) for event in events], float(at))
    at += 10
    print(at, flush=True)
"""


def event(i: int) -> HistoryEvent:
    return HistoryEvent(float(i), f"e{i:06d}", f"item-{i}", i, 0, 0, False)


def test_a_full_store_says_what_to_raise_and_keeps_its_offset(tmp_path: Path) -> None:
    store = LmdbSequenceStore(tmp_path, 64, 16, map_gib=0.0002)
    store.apply(0, 0, 1, [("ann", event(1))], 1.0)
    with pytest.raises(StoreFullError, match=r"state\.map_gib"):
        store.apply(0, 1, 5_001, [(f"user-{i}", event(i)) for i in range(5_000)], 2.0)
    assert store.offset(0) == 1
    assert store.count() == 1
    store.close()
    larger = LmdbSequenceStore(tmp_path, 64, 16, map_gib=0.1)
    larger.apply(0, 1, 5_001, [(f"user-{i}", event(i)) for i in range(5_000)], 2.0)
    assert larger.count() == 5_001
    larger.close()


@pytest.mark.parametrize(("limit", "stride", "name"), [(32, 16, "limit"), (64, 8, "stride")])
def test_another_window_is_refused_with_the_remedy(tmp_path: Path, limit: int, stride: int, name: str) -> None:
    LmdbSequenceStore(tmp_path, 64, 16, map_gib=0.1).close()
    with pytest.raises(StoreMismatchError, match=rf"{name}.*delete the folder"):
        LmdbSequenceStore(tmp_path, limit, stride, map_gib=0.1)
    LmdbSequenceStore(tmp_path, 64, 16, map_gib=0.1).close()


def test_a_reader_may_come_before_the_first_writer(tmp_path: Path) -> None:
    reader = LmdbSequenceStore(tmp_path / "new", 64, 16, map_gib=0.1, readonly=True)
    assert reader.read(["user-0"]) == [None]
    assert reader.as_of() is None
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "new"), "0", "50"], check=True, timeout=60)
    (history,) = reader.read(["user-0"])
    assert history is not None
    assert (history.total, reader.offset(0), reader.count()) == (50, 50, 1)
    reader.close()


def test_two_writers_share_a_store_and_a_killed_one_leaves_whole_transactions(tmp_path: Path) -> None:
    reader = LmdbSequenceStore(tmp_path, 64, 16, map_gib=0.1, readonly=True)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with (
        subprocess.Popen([*command, "0", "1000000"], stdout=subprocess.PIPE, text=True) as doomed,
        subprocess.Popen([*command, "1", "1000"], stdout=subprocess.PIPE, text=True) as other,
    ):
        assert doomed.stdout is not None
        written = 0
        while written < 300:
            written = int(doomed.stdout.readline())
        os.kill(doomed.pid, signal.SIGKILL)
        assert other.communicate(timeout=60)[0].split()[-1] == "1000"
        doomed.stdout.read()
    offset = reader.offset(0)
    first, second = reader.read(["user-0", "user-1"])
    assert first is not None
    assert second is not None
    assert offset is not None
    assert offset >= written
    assert first.total == offset
    assert second.total == 1_000
    reader.close()
