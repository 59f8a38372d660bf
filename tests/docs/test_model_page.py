"""docs/model.md has every field of the model's settings, with its default and its bounds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pinrec.comparison import ComparisonConfig
from pinrec.config import GateSettings, GenerationConfig, ModelConfig, TrainingConfig

PAGE = Path(__file__).parents[2] / "docs" / "model.md"
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _allowed(schema: dict[str, Any]) -> str:
    schema = next(iter(schema.get("anyOf", [schema])))  # the other is null
    if "enum" in schema:
        return ", ".join(schema["enum"])
    bounds = [f"{sign} {schema[key]:g}" for key, sign in SIGNS.items() if key in schema]
    if schema.get("minItems"):
        bounds.append(f"at least {schema['minItems']}")
    return ", ".join(bounds)


def described(kind: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Field -> (default, what is allowed), as the page has them; settings within settings have their own rows."""
    properties = kind.model_json_schema()["properties"]
    return {
        name: (json.dumps(schema["default"]).strip('"'), _allowed(schema))
        for name, schema in properties.items()
        if "$ref" not in schema
    }


def rows(heading: str) -> dict[str, tuple[str, str]]:
    section = re.search(rf"^### {heading}$(.*?)(?=^#|\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert section, f"docs/model.md has no section {heading}"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section[1].splitlines() if "| `" in line]
    assert all(len(row) == 4 and row[3] for row in cells), "a field needs its meaning"
    return {field.strip("`"): (default, allowed) for field, default, allowed, _ in cells}


@pytest.mark.parametrize(
    "kind",
    [ModelConfig, TrainingConfig, GenerationConfig, GateSettings, ComparisonConfig],
    ids=lambda kind: kind.__name__,
)
def test_every_field_is_on_the_page_as_it_is(kind: type[BaseModel]) -> None:
    expected = described(kind)
    assert rows(kind.__name__) == expected, f"rows should be: {expected}"
