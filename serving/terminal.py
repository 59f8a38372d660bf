"""What commands share on a terminal: steps with progress bars, and an orderly end by Ctrl-C or SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

console = Console()
errors = Console(stderr=True)


class Steps:
    """One line a step, with a bar where the length is known. Where there is no terminal, a line when a step is done."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: set[str] = set()

    def __call__(self, text: str, done: int, total: int) -> None:
        """Note progress: 0 of 0 where the length is not known, all of it when the step is done."""
        name, _, more = text.partition(":")
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None)
            self._bars.start()
        finished = total > 0 and done >= total
        self._bars.update(
            self._tasks[name], description=name if finished else f"{name}{more and ':' + more}",
            completed=done, total=total or None,
        )  # fmt: skip
        if finished and name not in self._done and not console.is_terminal:
            self._done.add(name)
            console.print(f"{name}: done", highlight=False)

    def pause(self) -> None:
        """Leave the terminal to something else, such as a live view."""
        self._bars.stop()


def stop_on_sigterm() -> None:
    """SIGTERM ends a command as Ctrl-C does: through its `finally` blocks.

    To be called again after `ray.init`, which puts a handler of its own in place.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def stoppable() -> Iterator[None]:
    """While it lasts SIGTERM ends a command as Ctrl-C does."""
    before = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
