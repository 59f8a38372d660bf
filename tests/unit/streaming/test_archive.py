"""The archive: every offset once, gaps visible, deleted users gone."""

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import streaming.archive as archive_module
from streaming.archive import Archive, ArchiveError, RowBuffer

TOPIC = "pinrec.events"
NOON = 1_700_000_000.0


def rows(
    partition: int, first: int, next_offset: int, deleted: dict[int, str] | None = None, skip: int = -1
) -> RowBuffer:
    """Offsets [first, next) by three users; offset `skip` was a dead letter."""
    buffer = RowBuffer(partition, first, 0.0)
    for offset in range(first, next_offset):
        if deleted and offset in deleted:
            buffer.add((offset, NOON + offset, None, deleted[offset], *[None] * 9, True))
        elif offset != skip:
            event: tuple[Any, ...] = (f"e{partition}-{offset}", f"u{partition}-{offset % 3}", "item", "click", "home")
            buffer.add((offset, NOON + offset, *event, NOON + offset, "item", None, None, "request", 4, False))
    buffer.next = next_offset
    return buffer


def offsets(archive: Archive, partition: int = 0, **where: Any) -> list[int]:
    table = archive.read(**where)
    return [
        o for p, o in zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True) if p == partition
    ]


def test_an_empty_archive_reads_as_no_rows(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "none")
    assert len(archive.read()) == 0
    assert archive.position(TOPIC, 0) is None
    assert archive.gaps() == []


def test_files_lie_by_hour_and_are_named_by_their_range(tmp_path: Path) -> None:
    path = Archive(tmp_path, clock=lambda: NOON).write(TOPIC, rows(3, 10, 20))
    folder = tmp_path / "date=2023-11-14" / "hour=22"
    assert path == folder / f"{TOPIC}-00003-{10:020d}-{20:020d}.parquet"
    assert [file.name for file in folder.iterdir()] == [path.name]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(TOPIC, rows(1, 5, 7))
    assert archive.read().to_pylist()[0] == {
        "partition": 1,
        "offset": 5,
        "arrived": NOON + 5,
        "event_id": "e1-5",
        "user_id": "u1-2",
        "item_id": "item",
        "action": "click",
        "surface": "home",
        "timestamp": NOON + 5,
        "item_type": "item",
        "query": None,
        "feed_id": None,
        "request_id": "request",
        "position": 4,
    }
    assert archive.read(columns=["user_id", "action"]).column_names == ["user_id", "action"]


def test_refused_events_are_covered_and_missing_files_are_gaps(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(TOPIC, rows(0, 0, 10, skip=4))
    missing = archive.write(TOPIC, rows(0, 10, 20))
    archive.write(TOPIC, rows(0, 20, 30))
    assert archive.position(TOPIC, 0) == 30
    assert archive.gaps() == []
    assert offsets(archive) == [o for o in range(30) if o != 4]
    missing.unlink()
    assert archive.position(TOPIC, 0) == 10
    assert [(gap.first, gap.next, gap.expired) for gap in archive.gaps()] == [(10, 20, False)]
    archive.write(TOPIC, rows(0, 10, 20))
    assert (archive.position(TOPIC, 0), archive.gaps()) == (30, [])


def test_a_range_that_kafka_dropped_is_told_but_does_not_stop_the_archive(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(TOPIC, rows(0, 0, 10))
    archive.mark_lost(TOPIC, 0, 10, 50)
    archive.write(TOPIC, rows(0, 50, 60))
    assert archive.position(TOPIC, 0) == 60
    assert [(gap.first, gap.next, gap.expired) for gap in archive.gaps()] == [(10, 50, True)]
    assert offsets(archive) == [*range(10), *range(50, 60)]


@pytest.mark.parametrize("ranges", [[(0, 10), (0, 10)], [(0, 10), (4, 12)], [(0, 6), (0, 12), (3, 9), (5, 7)]])
def test_overlapping_writers_are_read_once_per_offset(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    archive = Archive(tmp_path)
    for first, next_offset in ranges:
        archive.write(TOPIC, rows(0, first, next_offset))
    assert offsets(archive) == list(range(max(end for _, end in ranges)))


def test_a_reader_may_go_on_from_where_it_was(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    for partition in (0, 1):
        archive.write(TOPIC, rows(partition, 0, 20))
        archive.write(TOPIC, rows(partition, 20, 30))
    after = {0: 15, 1: 30}
    assert offsets(archive, 0, after=after) == list(range(15, 30))
    assert offsets(archive, 1, after=after) == []
    both = archive.read(after={0: 28, 1: 27})
    assert both["arrived"].to_pylist() == sorted(both["arrived"].to_pylist())
    assert len(both) == 5


def test_log_order_holds_within_a_partition_whatever_the_clocks_said(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    buffer = rows(0, 0, 6)
    buffer.rows = [(row[0], NOON - row[0], *row[2:]) for row in buffer.rows]
    archive.write(TOPIC, buffer)
    assert offsets(archive) == list(range(6))


def test_a_deleted_user_is_not_read_and_comes_back_only_with_later_events(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(TOPIC, rows(0, 0, 9))
    archive.write(TOPIC, rows(0, 9, 18, deleted={13: "u0-1"}))
    kept = [o for o in range(18) if o != 13 and (o % 3 != 1 or o > 13)]
    assert offsets(archive) == kept
    assert archive.deletions() == ["u0-1"]
    assert archive.deletions(after={0: 14}) == []


def test_a_purge_takes_deleted_users_off_the_disk(tmp_path: Path) -> None:
    archive = Archive(tmp_path, clock=lambda: NOON + 100)
    archive.write(TOPIC, rows(0, 0, 9))
    archive.write(TOPIC, rows(0, 9, 18, deleted={12: "u0-1"}))
    archive.write(TOPIC, rows(1, 0, 9))
    before = archive.read()
    assert archive.purge() == 4
    assert archive.read().equals(before)
    assert archive.position(TOPIC, 0) == 18
    users = [
        (row["user_id"], row["offset"])
        for path in tmp_path.rglob("*.parquet")
        for row in pq.read_table(path, partitioning=None).to_pylist()
    ]
    assert [offset for user, offset in users if user == "u0-1" and offset <= 12] == [12]
    assert archive.purge() == 0
    archive.write(TOPIC, rows(0, 3, 12))  # a late writer cannot bring the user back
    assert archive.read().equals(before)
    assert archive.purge(keep_deletions_s=50) == 3
    assert archive.deletions() == []
    assert archive.read().equals(before)


def test_a_purge_opens_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the archive has grown, the deletions in it are looked for once."""
    archive, opened = Archive(tmp_path, clock=lambda: NOON + 100), []
    load = archive_module._load
    monkeypatch.setattr(archive_module, "_load", lambda path, *args: opened.append(path) or load(path, *args))
    for first in range(0, 90, 9):
        archive.write(TOPIC, rows(0, first, first + 9))
    archive.purge()
    assert len(opened) == 10
    archive.write(TOPIC, rows(0, 90, 99))
    opened.clear()
    archive.purge()
    assert len(opened) == 1
    archive.write(TOPIC, rows(0, 99, 108, deleted={102: "u0-1"}))
    assert archive.purge() == 34, "a deletion reaches files that were looked at before"
    assert archive.purge(keep_deletions_s=-50) == 0
    assert archive.deletions() == []
    opened.clear()
    assert archive.purge(keep_deletions_s=-50) == 0
    assert len(opened) == 1, "the file that held the deletion is another now"


HOUR = 3_600.0


def files(folder: Path) -> list[tuple[str, int, int, int]]:
    """(hour, partition, first, next) of each file."""
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        _, partition, first, end = path.name.split(".parquet")[0].removesuffix(".lost").rsplit("-", 3)
        found.append((path.parent.name, int(partition), int(first), int(end)))
    return found


def test_the_files_of_an_hour_that_is_over_become_one_and_later_those_of_a_day(tmp_path: Path) -> None:
    now = [NOON]
    archive = Archive(tmp_path, clock=lambda: now[0])
    for first in range(0, 60, 10):
        archive.write(TOPIC, rows(0, first, first + 10))
        archive.write(TOPIC, rows(1, first, first + 10))
    now[0] = NOON + HOUR
    archive.write(TOPIC, rows(0, 60, 70))
    archive.write(TOPIC, rows(0, 70, 80, deleted={75: "u0-1"}))
    before = archive.read()
    assert archive.merge() == 10
    assert files(tmp_path) == [
        ("hour=22", 0, 0, 60), ("hour=22", 1, 0, 60), ("hour=23", 0, 60, 70), ("hour=23", 0, 70, 80),
    ]  # fmt: skip
    assert archive.merge() == 0, "this hour's are left alone"
    now[0] = NOON + 4 * HOUR
    assert archive.merge() == 2
    assert files(tmp_path) == [("hour=22", 0, 0, 80), ("hour=22", 1, 0, 60)]
    assert archive.read().equals(before)
    assert archive.positions(TOPIC) == {0: 80, 1: 60}
    assert archive.deletions() == ["u0-1"]


def test_files_with_a_gap_between_them_stay_apart(tmp_path: Path) -> None:
    archive = Archive(tmp_path, clock=lambda: NOON)
    for first in (0, 10, 30, 40):
        archive.write(TOPIC, rows(0, first, first + 10))
    archive.mark_lost(TOPIC, 0, 20, 25)
    gaps = archive.gaps()
    assert Archive(tmp_path, clock=lambda: NOON + 48 * HOUR).merge() == 2
    assert archive.gaps() == gaps
    assert [(first, end) for _, _, first, end in files(tmp_path) if first != 20] == [(0, 20), (30, 50)]


def test_a_merged_file_covers_no_more_than_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_MERGED_ROWS", 25)
    archive = Archive(tmp_path, clock=lambda: NOON)
    for first in range(0, 60, 10):
        archive.write(TOPIC, rows(0, first, first + 10))
    late = Archive(tmp_path, clock=lambda: NOON + 48 * HOUR)
    assert late.merge() == 3
    assert [(first, end) for _, _, first, end in files(tmp_path)] == [(0, 20), (20, 40), (40, 60)]
    assert late.merge() == 0


def test_what_a_killed_merge_left_is_read_once_and_taken_away_by_the_next(tmp_path: Path) -> None:
    archive = Archive(tmp_path, clock=lambda: NOON)
    archive.write(TOPIC, rows(0, 0, 10))
    archive.write(TOPIC, rows(0, 10, 20))
    archive.write(TOPIC, rows(0, 0, 20))  # the merged one, beside its parts
    assert offsets(archive) == list(range(20))
    assert Archive(tmp_path, clock=lambda: NOON + HOUR).merge() == 2
    assert offsets(archive) == list(range(20))
    assert files(tmp_path) == [("hour=22", 0, 0, 20)]


def test_several_topics_are_not_mixed_by_accident(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write("a-b", rows(0, 0, 5))
    archive.write("c", rows(0, 0, 7))
    with pytest.raises(ArchiveError, match="a-b, c"):
        archive.read()
    assert len(archive.read(topic="a-b")) == 5
    assert archive.position("c", 0) == 7


def test_a_reader_never_fails_while_files_are_written_purged_and_merged(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(TOPIC, rows(0, 0, 50))
    done = threading.Event()
    counts: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                counts.append(len(Archive(tmp_path).read()))
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    late = Archive(tmp_path, clock=lambda: time.time() + 2 * HOUR)
    for first in range(50, 800, 50):
        archive.write(TOPIC, rows(0, first, first + 50))
        archive.write(TOPIC, rows(0, first, first + 50))
        archive.purge()
        late.merge()
    archive.write(TOPIC, rows(0, 800, 801, deleted={800: "u0-0"}))
    archive.purge()
    done.set()
    reader.join()
    assert not failures
    assert counts == sorted(counts) or counts[-1] < 800
    assert len(archive.read()) == 800 - 267
