"""docs/metrics.md names every metric: it is made from the registry in code."""

from pathlib import Path

from serving.metrics import page


def test_the_page_is_what_the_code_makes() -> None:
    found = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert found == page(), "python -m serving.metrics"
