import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from streaming.item_files import items_beside, read_items
from streaming.log_files import LogError
from streaming.logs import derive_vocabulary, read_log, validate_log
from streaming.replay import Pace

SHARED = Path(__file__).parents[4] / "shared" / "data"
HEADER = "user_id,item_id,action,surface,timestamp"

ROWS = [
    {"user_id": "7", "item_id": "2020-01-01", "action": "click", "surface": "home", "timestamp": 1_700_000_002.5},
    {"user_id": "8", "item_id": "11", "action": "skip", "surface": "home", "timestamp": 1_700_000_001.0},
    {"user_id": "7", "item_id": "12", "action": "click", "surface": "tab:1", "timestamp": 1_700_000_001.0},
]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".csv" in path.name:
        lines = [",".join(rows[0])] + [",".join(str(cell) for cell in row.values()) for row in rows]
    else:
        lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join((HEADER, *lines)) + "\n")
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_form_gives_the_same_events_in_time_order_and_ties_in_file_order(tmp_path: Path, name: str) -> None:
    log = read_log(write(tmp_path / name, ROWS))
    assert [(event.user_id, event.item_id, event.timestamp) for event in log] == [
        ("8", "11", 1_700_000_001.0),
        ("7", "12", 1_700_000_001.0),
        ("7", "2020-01-01", 1_700_000_002.5),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_ids_that_are_numbers_are_read_as_text(tmp_path: Path, name: str) -> None:
    rows = [{**row, "user_id": int(row["user_id"])} for row in ROWS]
    assert {event.user_id for event in read_log(write(tmp_path / name, rows))} == {"7", "8"}


def test_json_lines_may_mix_numbers_and_text_and_leave_fields_out(tmp_path: Path) -> None:
    search = {key: value for key, value in ROWS[1].items() if key != "item_id"}
    rows = [{**ROWS[0], "user_id": 7}, {**search, "item_type": "query", "query": "red  shoes"}, ROWS[2]]
    first, _, last = read_log(write(tmp_path / "a.jsonl", rows))
    assert (first.subject, first.item_id, first.item_type) == ("red shoes", None, "query")
    assert (last.user_id, last.item_type) == ("7", "item")


def test_times_may_be_rfc_3339_with_any_offset(tmp_path: Path) -> None:
    path = csv(tmp_path, "u,a,click,home,2026-01-31T12:00:00Z", "u,b,click,home,2026-01-31T12:00:00.5+01:00")
    assert [event.timestamp for event in read_log(path)] == [1_769_857_200.5, 1_769_860_800.0]


def test_an_event_without_an_id_has_the_same_one_however_the_log_is_cut_or_moved(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "a.csv", ROWS))
    ids = [event.event_id for event in log]
    assert len(set(ids)) == 3
    (tmp_path / "elsewhere").mkdir()
    moved = read_log(write(tmp_path / "elsewhere" / "a.csv", ROWS))
    early, late = moved.split(0.4)
    assert (len(early), len(late)) == (1, 2)
    assert [event.event_id for part in (early, late) for event in part] == ids
    other = read_log(write(tmp_path / "elsewhere" / "a.csv", [{**ROWS[0], "user_id": "9"}, *ROWS[1:]]))
    assert {event.event_id for event in other}.isdisjoint(ids)


def test_ids_of_the_log_itself_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "event_id": f"own-{i}"} for i, row in enumerate(ROWS)]
    assert [event.event_id for event in read_log(write(tmp_path / "a.csv", rows))] == ["own-1", "own-2", "own-0"]


def test_columns_are_mapped_and_unknown_ones_left_out(tmp_path: Path) -> None:
    rows = [{**row, "visitor": row["user_id"] + "v", "price": 3} for row in ROWS]
    log = read_log(write(tmp_path / "a.csv", rows), columns={"visitor": "user_id"})
    assert {event.user_id for event in log} == {"7v", "8v"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u,b,click,home,soon", r"log\.csv, line 3, column timestamp: .*2026-01-31T12:00:00Z"),
        ("u,b,click,home,", r"line 3, column timestamp"),
        ("u,b,click,home,nan", r"line 3, column timestamp"),
        ("u,b,click,home,-1", r"line 3, column timestamp: must not be negative"),
        ("u,b,click,home,1700000000000", r"line 3, column timestamp: looks like milliseconds"),
        ("u,b,click,home,9999-01-01T00:00:00Z", r"line 3, column timestamp: .*future|milliseconds"),
        ("u,b,click,home,2026-01-31T12:00:00", r"line 3, column timestamp"),
        (",b,click,home,1", r"line 3, column user_id: is empty"),
        ("u,,click,home,1", r"line 3, column item_id: is empty"),
        (f"{'u' * 257},b,click,home,1", r"line 3, column user_id: is longer than 256 bytes"),
        ("u\x01,b,click,home,1", r"line 3, column user_id: holds control characters"),
        ("u,b,,home,1", r"line 3, column action: is empty"),
        ("u,b,click,home page,1", r"line 3, column surface: must be a name"),
        ("u,b,click", r"line 3: has 3 cells, the header has 5"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_column(tmp_path: Path, line: str, message: str) -> None:
    path = csv(tmp_path, "u,a,click,home,1700000000", line, "u,c,click,home,1700000001")
    with pytest.raises(LogError, match=message):
        read_log(path)


def test_a_bad_line_of_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{broken\n")
    with pytest.raises(LogError, match=r"a\.jsonl, line 2: is not JSON"):
        read_log(path)


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("none.csv", None, {}, "no such file"),
        ("a.xls", b"", {}, r"not a known form; name it \.csv"),
        ("a.csv", b"", {}, "cannot be read as csv"),
        ("a.csv.gz", b"plain text", {}, "cannot be read"),
        ("a.parquet", b"plain text", {}, "cannot be read as parquet"),
        ("a.csv", f"{HEADER}\n".encode(), {"visitor": "user_id"}, "no column 'visitor' to map; it has user_id"),
        ("a.csv", f"{HEADER}\n".encode(), {"user_id": "person"}, "cannot map user_id to 'person'"),
        ("a.csv", f"{HEADER}\n".encode(), {"user_id": "item_id", "item_id": "item_id"}, "map each field once"),
        ("a.csv", b"user_id,item_id,action\n", {}, r"no column surface or timestamp; .*--columns theirs=surface"),
    ],
)
def test_a_log_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: bytes | None, columns: dict[str, str], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LogError, match=message):
        read_log(tmp_path / name, columns)


def test_validation_counts_what_is_there_and_lists_what_is_wrong(tmp_path: Path) -> None:
    path = csv(tmp_path, "u,a,click,home,20", "u,b,skip,home,10", "v,,click,home,soon", "v,a,click,feed,30")
    report = validate_log(path)
    assert (report.rows, report.bad_rows, report.users, report.items) == (4, 1, 2, 2)
    assert report.actions == {"click": 3, "skip": 1}
    assert report.surfaces == {"home": 3, "feed": 1}
    assert (report.first_timestamp, report.last_timestamp, report.in_order) == (10.0, 30.0, False)
    assert {(problem.line, problem.column) for problem in report.problems} == {(4, "item_id"), (4, "timestamp")}


def test_actions_and_surfaces_are_derived_the_frequent_first(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "a.csv", ROWS))
    vocabulary = derive_vocabulary(log)
    assert [(action.name, action.engaging) for action in vocabulary.actions] == [("click", True), ("skip", False)]
    assert vocabulary.surfaces == ("home", "tab:1")
    only_views = read_log(write(tmp_path / "b.csv", [{**row, "action": "view"} for row in ROWS]))
    assert derive_vocabulary(only_views).outcomes == ("view",)


def test_items_beside_a_log_are_read_with_their_categories(tmp_path: Path) -> None:
    log = write(tmp_path / "a.csv", ROWS)
    assert items_beside(log) is None
    (tmp_path / "items.csv").write_text(
        f'item_id,title,category\n1,"Heat, the film",Action|Film Noir\n2,{"x" * 600},39 7\n'
    )
    path = items_beside(log)
    assert path is not None
    first, second = read_items(path)
    assert (first.item_id, first.title, first.categories) == ("1", "Heat, the film", ("Action", "Film Noir"))
    assert (len(second.title), second.categories) == (512, ("39", "7"))


def test_other_columns_of_items_are_features_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "item_id,author_id,year,ms,kind,music_id,asin,text,a name,mixed\n"
        f"1,77,1995,9e3,song,5,B1,{'x' * 64},q,1\n"
        f"2,77,,12,song,5,B2,{'x' * 64},q,two\n"
        "3,,1999,nan, talk ,6,B3,,q,1\n"
        "4,8,1995,7,talk,,B4,,q\n"
    )
    items = list(read_items(path))
    assert [item.author for item in items] == ["77", "77", None, "8"]
    assert [item.numeric for item in items] == [
        {"year": 1995, "ms": 9000}, {"ms": 12}, {"year": 1999}, {"year": 1995, "ms": 7},
    ]  # fmt: skip
    assert [item.categories for item in items] == [
        ("kind=song", "music_id=5", "mixed=1"), ("kind=song", "music_id=5"), ("kind=talk", "mixed=1"), ("kind=talk",),
    ]  # fmt: skip


def test_beginnings_of_codes_that_items_share_are_values_as_well(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,asin,ean\n1,B0047,4001\n2,B0049,4001\n3,B0111,4002\n4,,4100\n5,B0,4101\n")
    categories = [item.categories for item in read_items(path, {"asin": (2, 4), "ean": (2,)})]
    assert categories == [
        ("asin=B0", "asin=B004", "ean=40", "ean=4001"), ("asin=B0", "asin=B004", "ean=40", "ean=4001"),
        ("asin=B0", "ean=40"), ("ean=41",), ("asin=B0", "ean=41"),
    ]  # fmt: skip
    assert all(
        item.numeric == {"ean": float(ean)}
        for item, ean in zip(read_items(path), (4001, 4001, 4002, 4100, 4101), strict=True)
    )
    with pytest.raises(
        LogError, match=r"items\.csv: beginnings: there is no column isbn; there are item_id, asin, ean"
    ):
        list(read_items(path, {"isbn": (3,)}))


def test_when_items_of_a_csv_came_is_no_feature_but_a_date(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,created_at\n1,1650812741\n2,2022-04-24T15:05:41Z\n3,\n")
    items = list(read_items(path))
    assert [item.created_at for item in items] == [1650812741, 1650812741, 0]
    assert not any(item.numeric or item.categories for item in items)
    path.write_text("item_id,created_at\n1,1650812741\n2,yesterday\n")
    with pytest.raises(LogError, match=r"items\.csv, line 3, column created_at"):
        list(read_items(path))


def test_no_more_columns_are_features_than_an_item_may_have(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    names = [*(f"n{i}" for i in range(20)), *(f"c{i}" for i in range(70))]
    cells = ",".join(["1"] * 20 + ["x"] * 70)
    path.write_text(f"item_id,category,{','.join(names)}\na,own,{cells}\nb,own,{cells}\n")
    item, _ = read_items(path)
    assert list(item.numeric) == names[:16]
    assert item.categories[:2] == ("own", "c0=x")
    assert len(item.categories) == 64


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ('{"item_id": "1", "numeric": {"year": "1995"}}', "numeric.year"),
        ('{"item_id": "1", "numeric": {"year": NaN}}', "numeric.year"),
        ('{"item_id": "1", "numeric": {"a name": 1}}', "numeric.a name"),
        (json.dumps({"item_id": "1", "numeric": {f"n{i}": i for i in range(17)}}), "numeric"),
        ('{"item_id": "1", "author": ""}', "author"),
        ('{"item_id": "1", "author": "two\\nlines"}', "author"),
    ],
)
def test_a_bad_feature_of_an_item_is_named(tmp_path: Path, line: str, column: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(LogError, match=rf"items\.jsonl, line 1, column {column}"):
        list(read_items(path))


def test_a_bad_item_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "1", "embedding": [0.5, 1]}\n{"item_id": ""}\n')
    with pytest.raises(LogError, match=r"items\.jsonl, line 2, column item_id"):
        list(read_items(path))


@pytest.mark.parametrize(
    ("text", "second_event_due"), [("max", 0.0), ("4", 0.25), ("4/s", 0.25), ("60x", 0.5), ("0.5x", 60.0)]
)
def test_a_pace_says_when_an_event_is_due(text: str, second_event_due: float) -> None:
    assert Pace.parse(text).due(1, elapsed_s=30.0) == second_event_due


@pytest.mark.parametrize("text", ["", "fast", "-1", "0", "0x", "x", "1e9"])
def test_a_pace_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"pace|speed"):
        Pace.parse(text)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "events", "items", "first_action"),
    [("kuairand_pure", 300_917, 7_583, "skip"), ("ml1m", 999_611, 3_883, "like")],
)
def test_the_shared_logs_are_read_as_they_stand(folder: str, events: int, items: int, first_action: str) -> None:
    path = SHARED / folder / "interactions.csv.gz"
    if not path.exists():
        pytest.skip("the shared data sets are not here")
    log = read_log(path)
    assert len(log) == events
    assert derive_vocabulary(log).actions[0].name == first_action
    assert len(list(log.slice(0, 100))) == 100
    beside = items_beside(path)
    assert beside is not None
    assert sum(1 for _ in read_items(beside)) == items
