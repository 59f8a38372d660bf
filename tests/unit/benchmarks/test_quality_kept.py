import numpy as np
import pytest

from benchmarks.quality import kept
from benchmarks.quality.kept_record import TYPES, read_kept
from benchmarks.quality.kept_report import kept_section
from pinrec.protocols import by_time
from tests.unit.pinrec.small_split import user_log


def test_lists_of_each_type_are_compared_with_those_of_float32():
    early = [("a", 0, "click", float(n)) for n in range(6)] + [("a", 1, "click", 6.0), ("b", 1, "skip", 6.5)]
    log = user_log(*early, ("a", 2, "click", 20.0), ("b", 0, "click", 21.0), ("b", 2, "save", 22.0), items=4)
    cases = by_time(log, 0.5, 0.75).test
    assert [found.tolist() for found in cases.targets] == [[2], [0, 2]]
    exact, other = np.array([[2, 1, -1], [1, 0, 3]]), np.array([[1, 0, -1], [1, 0, 3]])
    found = kept.compared(cases, {"float32": exact, "bfloat16": exact, "int8": other})
    assert [found[name].recall for name in TYPES] == pytest.approx([0.75, 0.75, 0.25])
    assert [found[name].same for name in TYPES] == pytest.approx([1.0, 1.0, 4 / 5])
    assert found["float32"].interval is None
    assert found["bfloat16"].interval == (0.0, 0.0)
    assert found["int8"].interval == (-1.0, 0.0)


def test_a_small_town_is_measured_from_its_past_to_the_page(tmp_path, small_town, capsys):
    assert kept.main(["--town", "--epochs", "1", "--out", str(tmp_path)]) == 0
    (run,) = read_kept(tmp_path / "kept")
    assert tuple(run.types) == TYPES
    assert run.types["float32"].same == 1.0
    assert run.types["bfloat16"].same > 0.9
    assert "of the places as with float32" in capsys.readouterr().out
    page = "\n".join(kept_section([run]))
    for name, of in run.types.items():
        assert f"| {name} | {f'{of.recall:.4f}'.removeprefix('0')} |" in page
    assert kept.main(["--data", str(tmp_path / "nothing")]) == 2
