"""What several commands of `pinrec` take, and the error of those that cannot be run as asked."""

from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DEPLOY = Path("deploy/local.yaml")

Url = Annotated[str, typer.Option("--url", help="Where the HTTP API is.")]
Deploy = Annotated[Path, typer.Option("--deploy", help="The deploy file.")]


class UsageError(Exception):
    """Something the user can mend; one sentence."""


def settings_of(deploy: Path) -> Any:
    """The settings in a deploy file."""
    from serving.cluster import DeployFile

    return DeployFile.read(deploy).settings
