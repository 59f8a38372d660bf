"""`pinrec models`: by the running application, or where none answers on the registry of the deploy file itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from serving.options import DEFAULT_DEPLOY, Deploy
from serving.terminal import console

if TYPE_CHECKING:
    from pinrec.registry import Registry
    from serving.api import ModelVersion
    from serving.client import PinRecClient
    from serving.config import AppSettings

models_app = typer.Typer(help="Versions of the model.", no_args_is_help=True)

Url = Annotated[
    str | None,
    typer.Option("--url", help="The HTTP API; none = that of the deploy file, or its registry where nothing answers."),
]
Token = Annotated[
    str | None, typer.Option(help="The admin token; none = that of the deploy file.", envvar="PINREC_ADMIN_TOKEN")
]


@models_app.command("list")
def list_models(url: Url = None, deploy: Deploy = DEFAULT_DEPLOY) -> None:
    """The versions in the registry, newest first: how good they are, how users took them, why one does not serve.

    Example: pinrec models list
    """
    from serving.model_list import models_of

    client, settings = _reached(url, None, deploy)
    if client is None:
        found = models_of(_registry(settings), settings.pinned_version)
    else:
        with client:
            found = client.models()
    table = Table()
    for name in ("version", "", "items", "recall@10", "candidate's", "popularity's", "impressions", "engaged", "why"):
        # On a narrow terminal other columns give way: a version is named to be typed again.
        table.add_column(name, overflow="fold" if name == "why" else "ellipsis", no_wrap=name == "version")
    for version in found.versions:
        recalls = (version.metrics.get(name) for name in ("recall@10", "candidate_recall@10", "recall@10_popularity"))
        cells = ("" if recall is None else f"{recall:.3f}" for recall in recalls)
        engaged = f"{version.engaged / version.impressions:.2%}" if version.impressions else ""
        mark = "pinned" if version.version == found.pinned else "current" if version.current else version.state
        table.add_row(
            version.version, mark, f"{version.items:,}", *cells, f"{version.impressions:,}", engaged, _why(version)
        )
    console.print(table)


@models_app.command("activate")
def activate_model(
    version: Annotated[str, typer.Argument(help="E.g. v000003.")],
    force: Annotated[bool, typer.Option("--force", help="Although it was refused or withdrawn.")] = False,
    token: Token = None,
    url: Url = None,
    deploy: Deploy = DEFAULT_DEPLOY,
) -> None:
    """Serve this version; replicas load and check it, then flip.

    Example: pinrec models activate v000003
    """
    from serving.model_list import activate

    client, settings = _reached(url, token, deploy)
    if client is None:
        activate(_registry(settings), settings.pinned_version, version, force)
    else:
        with client:
            client.activate(version, force)
    console.print(f"{version} is the registry's current version", highlight=False)


@models_app.command("rollback")
def rollback_model(
    reason: Annotated[str, typer.Option(help="Shown wherever versions are listed.")] = "",
    token: Token = None,
    url: Url = None,
    deploy: Deploy = DEFAULT_DEPLOY,
) -> None:
    """Go back to the newest older version that passed the gate; the one that is left does not serve again by itself.

    Example: pinrec models rollback --reason "wrong prices in the catalogue"
    """
    from serving.model_list import rollback

    client, settings = _reached(url, token, deploy)
    if client is None:
        version: str | None = rollback(_registry(settings), settings.pinned_version, reason)
    else:
        with client:
            version = client.rollback(reason).current
    console.print(f"{version} is the registry's current version", highlight=False)


def _reached(url: str | None, token: str | None, deploy: Path) -> "tuple[PinRecClient | None, AppSettings]":
    """A client of the application that answers; None where no address was given and none does."""
    from serving.client import ClientError, PinRecClient
    from serving.cluster import DeployFile
    from serving.tokens import read_token

    file = DeployFile.read(deploy)
    client = PinRecClient(url or file.url, token or read_token(file.settings))
    if url is None:
        try:
            client.models()
        except ClientError as error:
            if error.status == 0:
                client.close()
                return None, file.settings
    return client, file.settings


def _registry(settings: "AppSettings") -> "Registry":
    from streaming.registry_of import registry_of

    console.print(f"no application answers; this is {settings.state.registry}", highlight=False, soft_wrap=True)
    return registry_of(settings.state)


def _why(version: "ModelVersion") -> str:
    said = [
        f"{refusal.check}: {refusal.message}"
        + (f" ({refusal.figure:.4g}, bound {refusal.bound:.4g})" if refusal.figure is not None else "")
        for refusal in version.refusals
    ]
    return "; ".join([*said, version.problem] if version.problem else said)
