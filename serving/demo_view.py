"""The live view in the terminal."""

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from serving.demo import Demo

_SHOWN = 8
_LINE_EVERY_S = 5.0


class Lines:
    """A line every few seconds, where the output is not a terminal."""

    def __init__(self, demo: Demo, console: Console) -> None:
        self._demo, self._console = demo, console
        self._began = self._said = time.monotonic()

    def show(self) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        if now - self._said < _LINE_EVERY_S:
            return
        self._said = now
        report = self._demo.report
        self._console.print(
            f"{now - self._began:4.0f} s  {report.published:,} events  {report.received:,} lists, "
            f"event -> list {_pair(report.freshness.summary(500))}  {report.http_ok:,} HTTP answers, "
            f"{report.http_failed} failed, {_pair(report.http_latency.summary(500))}  "
            f"model {self._demo.status.get('model_version')}",
            highlight=False,
            soft_wrap=True,
        )


class View:
    """Draws a running demo in a terminal."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._began = self._last_at = time.monotonic()
        self._last_count = 0
        self._rate = 0.0

    def render(self) -> RenderableType:
        """The whole view as it is now."""
        return Group(self._figures(), self._user(), Text("Ctrl-C stops everything this command started.", style="dim"))

    def _figures(self) -> RenderableType:
        demo, report = self._demo, self._demo.report
        now = time.monotonic()
        if now - self._last_at >= 1.0:
            self._rate = (report.published - self._last_count) / (now - self._last_at)
            self._last_at, self._last_count = now, report.published
        freshness, http = report.freshness.summary(500), report.http_latency.summary(500)
        trainer: dict[str, Any] = demo.status.get("trainer") or {}
        metrics = trainer.get("metrics") or {}
        grid = Table.grid(padding=(0, 3))
        for _ in range(4):
            grid.add_column()
        grid.add_row("events/s", f"{self._rate:.0f}", "event -> list, p50 / p99", _pair(freshness))
        grid.add_row("events", f"{report.published:,}", "HTTP answer, p50 / p99", _pair(http))
        grid.add_row(
            "lists made", f"{report.received:,}", "HTTP answered / failed", f"{report.http_ok:,} / {report.http_failed}"
        )
        grid.add_row("model", str(demo.status.get("model_version")), "trainer", _trainer(trainer))
        if "recall@10" in metrics:
            grid.add_row(
                "recall@10", f"{metrics['recall@10']:.3f}", "of popularity", f"{metrics['recall@10_popularity']:.3f}"
            )
        for trouble in demo.status.get("degraded", []):
            grid.add_row("trouble", Text(trouble, style="red"))
        return Panel(grid, title=f"PinRec on {demo.source.name}, {now - self._began:.0f} s", title_align="left")

    def _user(self) -> RenderableType:
        demo = self._demo
        did = Table.grid(padding=(0, 1))
        for event in reversed(demo.recent):
            what = f"“{event.query}”" if event.item_type == "query" else demo.source.title(event.item_id or "")
            did.add_row(Text(event.action, style="cyan"), Text(what, overflow="ellipsis", no_wrap=True))
        answers = Table.grid(padding=(0, 1))
        for item in demo.newest.items[:_SHOWN] if demo.newest else ():
            title = item.title or demo.source.title(item.item_id)
            answers.add_row(
                Text(item.outcome or "popular", style="green"), Text(title, overflow="ellipsis", no_wrap=True)
            )
        both = Table.grid(expand=True, padding=(0, 2))
        both.add_column("What they did", ratio=1)
        both.add_column("The list that answers it", ratio=1)
        both.add_row(Text("what they did, newest first", style="bold"), Text("the list that answers it", style="bold"))
        both.add_row(did, answers)
        taste = f", whose true taste is {demo.taste}" if demo.taste else ""
        return Panel(both, title=f"user {demo.source.followed}{taste}", title_align="left", height=_SHOWN + 3)


def _pair(summary: dict[str, float]) -> str:
    return f"{summary['p50']:.0f} / {summary['p99']:.0f} ms" if summary else "-"


def _trainer(trainer: dict[str, Any]) -> str:
    steps = f" {trainer['step']}/{trainer['steps']}" if trainer.get("phase") == "training" else ""
    return f"{trainer.get('phase', '-')}{steps}"
