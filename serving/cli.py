"""The command line: `pinrec`. Each command is thin; what it does stands in the modules it calls."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from serving.models_cli import models_app
from serving.options import DEFAULT_DEPLOY, DEFAULT_URL, Deploy, Url, UsageError, settings_of
from serving.terminal import Steps, console, errors, stoppable

app = typer.Typer(
    help="A streaming, real-time recommender: Kafka in, PinRec on Ray Serve, models swapped under load.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
events_app = typer.Typer(help="Logs of events.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(events_app, name="events")

DeployFileArgument = Annotated[Path, typer.Argument(metavar="DEPLOY_FILE", help="The deploy file.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="theirs=ours, where the log calls a column otherwise; may be repeated."),
]
Bootstrap = Annotated[str, typer.Option("--bootstrap", help="host:port of Kafka.")]


@app.command()
def demo(
    events: Annotated[Path | None, typer.Option(help="Replay this log instead of the simulated town.")] = None,
    columns: Columns = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Live events per second.")] = 50.0,
    for_seconds: Annotated[
        float | None, typer.Option("--for", min=1, help="Live seconds; then end, exit 1 unless the loop closed.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write counts and latencies here.")] = None,
    interval: Annotated[float, typer.Option(min=1, help="Seconds from one training round to the next.")] = 20.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier demos left.")] = False,
    deploy: Deploy = DEFAULT_DEPLOY,
) -> None:
    """The whole loop on this machine: broker, events, first model, then live recommendations.

    Example: pinrec demo --for 60 --json out.json
    """
    from rich.live import Live

    from serving.cluster import DeployFile
    from serving.demo import Demo
    from serving.demo_sources import LogSource, Source, TownSource, log_folder
    from serving.demo_view import Lines, View
    from serving.stack import Stack
    from serving.tokens import token_file

    file = DeployFile.read(deploy)
    token = token_file(file.settings).resolve()  # one for all demos, where the other commands look for it
    root = file.settings.state.root.resolve() / ("demo-town" if events is None else log_folder(events))
    if fresh:
        shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    source: Source = TownSource(rate, root) if events is None else LogSource(events, _mapping(columns), rate)
    # A demo's models are its own, wherever those of the application are kept.
    state = {"root": str(root), "registry_url": None}
    file.override(state=state, trainer={"interval_s": interval}, serving={"admin_token_file": str(token)})
    steps = Steps()
    with stoppable(), Stack(file, steps) as stack:
        running = Demo(stack, source, steps)
        running.start()
        steps.pause()
        if console.is_terminal:
            view = View(running)
            with Live(view.render(), console=console, auto_refresh=False) as live:
                report = running.run(for_seconds, lambda: live.update(view.render(), refresh=True))
        else:
            report = running.run(for_seconds, Lines(running, console).show)
    if json_file:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    for problem in report["problems"] if for_seconds else ():
        errors.print(f"the loop did not close: {problem}", highlight=False, soft_wrap=True)
    if for_seconds and not report["ok"]:
        raise typer.Exit(1)
    if report["ok"]:
        console.print("the loop closed: events -> lists -> training -> swap, and no request failed", highlight=False)


@app.command()
def up(deploy: DeployFileArgument = DEFAULT_DEPLOY) -> None:
    """The application of a deploy file, with a local broker if it names none; runs until Ctrl-C.

    Run it again while it runs, and the changed file is deployed into the running application.

    Example: pinrec up deploy/local.yaml
    """
    from serving.cluster import DeployFile
    from serving.stack import Stack

    steps = Steps()
    stack = Stack(DeployFile.read(deploy), steps)
    if stack.redeploy():
        steps.pause()
        console.print(f"deployed into the running application at {stack.file.url}", highlight=False)
        return
    with stoppable(), stack:
        stack.start()
        stack.deploy()
        steps.pause()
        settings = stack.file.settings
        console.print(
            f"PinRec answers at {stack.file.url} (API: /docs), Kafka at {settings.kafka.bootstrap}, "
            f"state under {settings.state.root}. Ctrl-C stops it.",
            highlight=False,
            soft_wrap=True,
        )
        _until_interrupted()


@app.command()
def broker(
    folder: Annotated[Path, typer.Option(help="Of its data.")] = Path(".pinrec/kafka"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 picks a free one.")] = 9_092,
) -> None:
    """The local Kafka broker alone, with PinRec's topics; runs until Ctrl-C.

    Example: pinrec broker --port 9092
    """
    from streaming.broker import LocalBroker
    from streaming.topics import create_topics

    steps = Steps()
    local = LocalBroker(folder, port=port)
    with stoppable():
        try:
            local.start(lambda done, total: steps("Kafka's jars (once)", done, total))
            create_topics(local.settings)
            steps.pause()
            console.print(f"Kafka answers at {local.bootstrap}. Ctrl-C stops it.", highlight=False)
            _until_interrupted()
        finally:
            local.stop()


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(help="A log: CSV, JSONL (also .gz) or Parquet.")],
    columns: Columns = None,
    speed: Annotated[str, typer.Option(help="Events a second (500), times the log's pace (60x), or max.")] = "max",
    bootstrap: Bootstrap = "127.0.0.1:9092",
    deploy: Deploy = DEFAULT_DEPLOY,
) -> None:
    """Publish a log in the order of its times.

    Example: pinrec replay interactions.csv.gz --speed 200
    """
    from streaming.logs import read_log
    from streaming.publisher import EventPublisher
    from streaming.replay import Pace, Replay
    from streaming.schema import EventCodec

    settings = settings_of(deploy)
    log = read_log(path, _mapping(columns))
    kafka = settings.kafka.model_copy(update={"bootstrap": bootstrap})
    steps = Steps()
    with stoppable(), EventPublisher(kafka, EventCodec(settings.vocabulary)) as publisher:
        replayed = Replay(log, publisher, Pace.parse(speed), lambda n, of: steps("events", n, of)).run()
    steps.pause()
    console.print(f"{replayed.published} events published to {kafka.events} at {bootstrap}", highlight=False)


@events_app.command("import")
def import_events(
    path: Annotated[Path, typer.Argument(help="A log: CSV, JSONL (also .gz) or Parquet.")],
    columns: Columns = None,
    bootstrap: Bootstrap = "127.0.0.1:9092",
    deploy: Deploy = DEFAULT_DEPLOY,
) -> None:
    """Publish a log as fast as Kafka takes it. Doing it twice counts every event once.

    Example: pinrec events import history.parquet --columns uid=user_id --columns ts=timestamp
    """
    replay(path, columns, "max", bootstrap, deploy)


@events_app.command("validate")
def validate_events(
    path: Annotated[Path, typer.Argument(help="A log: CSV, JSONL (also .gz) or Parquet.")],
    columns: Columns = None,
) -> None:
    """Check a log: what it holds, and the first rows that would be refused.

    Example: pinrec events validate interactions.csv.gz
    """
    from streaming.logs import validate_log

    report = validate_log(path, _mapping(columns))
    table = Table(title=str(path), title_justify="left", show_header=False)
    for name, value in (
        ("rows", f"{report.rows:,}"),
        ("bad rows", f"{report.bad_rows:,}"),
        ("users", f"{report.users:,}"),
        ("items", f"{report.items:,}"),
        ("actions", ", ".join(f"{name} {count:,}" for name, count in report.actions.items())),
        ("surfaces", ", ".join(f"{name} {count:,}" for name, count in report.surfaces.items())),
        ("in order of time", "yes" if report.in_order else "no"),
    ):
        table.add_row(name, value)
    console.print(table)
    for problem in report.problems:
        errors.print(f"line {problem.line}, {problem.column}: {problem.reason}", highlight=False, soft_wrap=True)
    if report.bad_rows:
        raise UsageError(f"{path}: {report.bad_rows} of {report.rows} rows would be refused")


@app.command()
def evaluate(
    path: Annotated[
        Path, typer.Argument(help="A log, or a folder with one named interactions; items beside it count.")
    ],
    columns: Columns = None,
    protocol: Annotated[
        Literal["disjoint", "loo"],
        typer.Option(help="disjoint: users never trained on, half of their events given; loo: the last event of each."),
    ] = "disjoint",
    fold: Annotated[int, typer.Option(min=0, help="disjoint: the fold that is tested.")] = 0,
    folds: Annotated[int, typer.Option(min=2, help="disjoint: into how many the users are divided.")] = 5,
    engaging: Annotated[
        list[str] | None, typer.Option("--engaging", help="An action that counts as engagement; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the models; the split stays.")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of every model; none = what takes minutes.")] = None,
    max_users: Annotated[int, typer.Option(min=2, help="Most users that are tested.")] = 2_000,
    deploy: Annotated[
        Path | None, typer.Option("--deploy", help="Take vocabulary, model, training and generation from this file.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """What PinRec finds on your own log, beside popularity and SASRec: one table, in minutes.

    Example: pinrec evaluate interactions.csv.gz --columns uid=user_id --json out.json
    """
    from pinrec.comparison import ComparisonConfig
    from serving.evaluate import Question
    from serving.evaluate import evaluate as answer_of

    settings = None if deploy is None else settings_of(deploy)
    chosen = {} if settings is None else {name: getattr(settings, name) for name in ("model", "training", "generation")}
    config = ComparisonConfig(epochs=epochs, max_users=max_users, seed=seed, **chosen)
    vocabulary = None if settings is None else settings.vocabulary
    question = Question(path, _mapping(columns), vocabulary, engaging or (), protocol, fold, folds)
    with stoppable():
        answer = answer_of(question, config, Steps())
    console.print(answer.table())
    for line in (answer.legend, *answer.differences, answer.compared.conclusion):
        console.print(line, highlight=False)
    if json_file:
        json_file.write_text(json.dumps(answer.json(), indent=2) + "\n")


@app.command()
def recommend(
    user_id: Annotated[str, typer.Argument(metavar="USER")],
    k: Annotated[int, typer.Option("-k", help="Length of the list.")] = 10,
    outcome: Annotated[
        list[str] | None, typer.Option("--outcome", help="name=share; may be repeated: the budget.")
    ] = None,
    surface: Annotated[str | None, typer.Option(help="Where the list will be shown.")] = None,
    query: Annotated[str | None, typer.Option(help="What the user searches for.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """A list for a user, as a table.

    Example: pinrec recommend ada-0000 -k 5 --outcome save=0.7 --outcome click=0.3
    """
    from serving.client import PinRecClient

    budget = {name: _number(share, f"--outcome {name}") for name, share in _mapping(outcome).items()} or None
    with PinRecClient(url) as client:
        answer = client.recommend(
            user_id, k, outcomes=budget, surface=surface, context={"query": query} if query else None
        )
    staleness = "unknown" if answer.sequence.staleness_ms is None else f"{answer.sequence.staleness_ms:.0f} ms"
    table = Table(
        title=f"{answer.user_id}: {answer.source}, model {answer.model_version}, "
        f"{answer.sequence.length} events known, staleness {staleness}{', DEGRADED' if answer.degraded else ''}",
        title_justify="left",
    )
    for name in ("", "item", "title", "outcome", "offset", "score"):
        table.add_column(name, justify="right" if name in ("", "score", "offset") else "left")
    for place, item in enumerate(answer.items, 1):
        offset = "" if item.offset_s is None else f"{item.offset_s:.0f} s"
        table.add_row(str(place), item.item_id, item.title or "", item.outcome or "", offset, f"{item.score:.3f}")
    console.print(table)


@app.command()
def status(url: Url = DEFAULT_URL) -> None:
    """How the application is, and what is wrong if something is.

    Example: pinrec status
    """
    from serving.client import PinRecClient
    from serving.status_view import table_of

    with PinRecClient(url) as client:
        report = client.status()
    console.print(table_of(report))
    for trouble in report.degraded:
        errors.print(trouble, style="red", highlight=False, soft_wrap=True)


@app.command()
def schema(
    name: Annotated[
        Literal["event", "item", "recommendation", "request", "settings", "all"], typer.Argument(help="Which one.")
    ] = "all",
) -> None:
    """JSON Schemas of the messages and of the settings.

    Example: pinrec schema event > user-event.schema.json
    """
    from pydantic import BaseModel

    from serving.api import RecommendationRequest
    from serving.config import AppSettings
    from streaming.schema import ItemUpdate, Recommendation, UserEvent

    kinds: dict[str, type[BaseModel]] = {
        "event": UserEvent,
        "item": ItemUpdate,
        "recommendation": Recommendation,
        "request": RecommendationRequest,
        "settings": AppSettings,
    }
    schemas = {key: kind.model_json_schema() for key, kind in kinds.items()}
    sys.stdout.write(json.dumps(schemas if name == "all" else schemas[name], indent=2) + "\n")


@app.command()
def train(deploy: DeployFileArgument = DEFAULT_DEPLOY) -> None:
    """Train once on what the archive holds and publish the result; Kafka must answer, Ray is not needed.

    Example: pinrec train deploy/local.yaml
    """
    from serving.training import trainer_of

    settings = settings_of(deploy)
    trainer = trainer_of(settings)
    steps, done = Steps(), threading.Event()

    def show() -> None:
        while not done.wait(0.2):
            now = trainer.status()
            if now.steps:
                steps("training", now.step, now.steps)

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        if not trainer.lead():
            raise UsageError(trainer.rival)
        trainer.resume()
        version = trainer.round()
    finally:
        trainer.resign()
        done.set()
        watcher.join()
        steps.pause()
    if version is None:
        raise UsageError(
            "nothing was trained: the archive has no new engaged events, or fewer than trainer.min_events "
            f"({settings.trainer.min_events})"
        )
    console.print(f"{version} published to {settings.state.registry}", highlight=False)


def _mapping(pairs: list[str] | None) -> dict[str, str]:
    mapping = {}
    for pair in pairs or ():
        theirs, equals, ours = pair.partition("=")
        if not (theirs and equals and ours):
            raise UsageError(f"{pair!r} must have the form name=value")
        mapping[theirs] = ours
    return mapping


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{what}: {text!r} is not a number") from None


def _until_interrupted() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping", highlight=False)


def _mendable() -> tuple[type[BaseException], ...]:
    """Errors whose message tells a user what to do. Imported late: most commands meet none of them."""
    from pydantic import ValidationError

    from pinrec.protocols import ProtocolError
    from pinrec.versions import RegistryError
    from serving.client import ClientError
    from serving.cluster import DeployError
    from serving.problems import Problem
    from streaming.broker_files import BrokerError
    from streaming.log_files import LogError
    from streaming.publisher import PublishError
    from streaming.schema import BadEventError
    from streaming.topics import KafkaUnreachableError, TopicMismatchError

    return (
        UsageError, ClientError, DeployError, BrokerError, LogError, ProtocolError, PublishError, BadEventError,
        Problem, RegistryError, KafkaUnreachableError, TopicMismatchError, ValidationError, FileNotFoundError,
        PermissionError,
    )  # fmt: skip


def main(run: Callable[..., Any] = app) -> None:
    """Entry of `pinrec`: an error is one sentence on stderr and exit code 2; PINREC_DEBUG=1 shows where it arose."""
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("PINREC_DEBUG") or not isinstance(error, _mendable()):
            raise
        from pydantic import ValidationError

        from streaming.schema import first_problem

        text = str(first_problem(error)) if isinstance(error, ValidationError) else str(error)
        errors.print(f"pinrec: {text}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
