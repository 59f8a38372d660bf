"""The status as a table on a terminal: what each replica does, and where its time goes."""

from typing import Any

from rich.table import Table

from serving.api import Status


def table_of(report: Status) -> Table:
    """What `pinrec status` prints."""
    table = Table(show_header=False)
    table.add_row("ready", "yes" if report.ready else "no")
    table.add_row("model", report.model_version or "none yet")
    table.add_row("users", f"{report.users or 0:,}")
    for name, replicas, counts in (
        ("Gateway", report.gateways, "{queries_answered:,} queries answered, {queries_refused:,} refused"),
        (
            "Recommender",
            report.recommenders,
            "{lists_generated:,} lists for events, {lists_superseded:,} superseded, {lists_given_up:,} given up",
        ),
    ):
        for replica in replicas:
            table.add_row(f"{name} {replica['replica']}", _engine(replica, counts.format_map(replica)))
    for member in report.ingestors:
        table.add_row(
            f"Ingestor {member['replica']}",
            f"{member['applied']:,} events applied, {member['lag']:,} behind, {member['owed']:,} lists owed, "
            f"{member['duplicates']:,} duplicates, {member['dead_letters']:,} dead letters",
        )
    if report.trainer:
        step = f", step {report.trainer['step']} of {report.trainer['steps']}" if report.trainer["steps"] else ""
        table.add_row("Trainer", f"{report.trainer['phase']}{step}, last version {report.trainer['version']}")
    return table


def _engine(replica: dict[str, Any], done: str) -> str:
    stale, size, states = replica["staleness_ms"], replica["batch_size"], replica["states"]
    text = f"model {replica['model_version']}, {done}, staleness {'unknown' if stale is None else f'{stale:.0f} ms'}"
    if size["count"]:
        stages = ", ".join(f"{name} {s['mean']:.1f}" for name, s in replica["stages_ms"].items() if s["count"])
        found = states["hits"] / max(1, states["hits"] + states["misses"])
        text += f"\nmean ms: {stages}\n{size['mean']:.1f} in a batch, {found:.0%} of histories found encoded"
    return text
