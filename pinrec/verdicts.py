"""What has been decided about a version: a small file beside it in the registry, `verdicts/v000012.json`."""

import json
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from pinrec.config import Frozen

State = Literal["candidate", "passed", "refused", "withdrawn"]
"""candidate: nothing decided yet. passed: may serve. refused: never served. withdrawn: served and was taken back."""


class Refusal(Frozen):
    """One check that a version failed.

    Attributes:
        figure, bound: None where the check has no figure, as of a file that is damaged.
    """

    check: str
    figure: Annotated[float | None, Field(allow_inf_nan=False)] = None
    bound: Annotated[float | None, Field(allow_inf_nan=False)] = None
    message: str

    def __str__(self) -> str:
        figures = "" if self.figure is None else f" ({self.figure:.4g}, bound {self.bound:.4g})"
        return f"{self.check}: {self.message}{figures}"


class Verdict(Frozen):
    """Whether a version may serve, since when, and why not."""

    state: Literal["passed", "refused", "withdrawn"]
    at: Annotated[float, Field(description="epoch s")]
    refusals: tuple[Refusal, ...] = ()
    forced: Annotated[bool, Field(description="an operator insisted; nothing takes the version back by itself")] = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read one. A file that cannot be read lets nothing serve."""
        try:
            return cls.model_validate(json.loads(text))
        except (ValidationError, ValueError):
            damaged = Refusal(
                check="verdict", message="the file cannot be read; activate the version by force, or delete it"
            )
            return cls(state="refused", at=0.0, refusals=(damaged,))

    @property
    def reason(self) -> str:
        """All refusals in one line."""
        return "; ".join(map(str, self.refusals))
