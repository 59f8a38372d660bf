"""The page about the town runs as it stands."""

import re
from pathlib import Path

import pytest

from streaming.simulator.words import KINDS

PAGE = (Path(__file__).parents[4] / "docs/simulator.md").read_text()


def test_the_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(snippet, "docs/simulator.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_table_of_kinds_is_the_towns() -> None:
    for kind in KINDS:
        chances = " | ".join(f"{chance:.2f}".lstrip("0") for chance in (kind.click, kind.save, kind.share))
        assert f"| {kind.name} | {chances} |" in PAGE
