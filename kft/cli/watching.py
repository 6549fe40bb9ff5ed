"""Shows on standard error that work goes on: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from kft.progress import Progress

SECONDS_BETWEEN_LINES = 5.0


def watcher() -> Progress:
    """Returns a progress that fits what standard error is."""
    return Bars() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Lines()


class Lines(Progress):
    """Writes a line at the start and end of a phase, and every few seconds in between."""

    def __init__(self) -> None:
        super().__init__()
        self._phases: list[str] = []
        self._said = 0.0

    def started(self, name: str) -> None:
        """Says that a phase begins."""
        self._phases.append(name)
        self._say(f"{name} ...")

    def finished(self, name: str) -> None:
        """Says how long a phase took."""
        self._phases.remove(name)
        self._say(f"{name}: {self.seconds[name]:.1f} s")

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Says how far the phase is, if the last line is some seconds old."""
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            name = self._phases[-1] if self._phases else "working"
            self._say(f"{name}: {done:,} of {total:,}  {note}".rstrip())

    def note(self, text: str) -> None:
        """Says a line."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class Bars(Progress):
    """Draws a bar for the present phase and leaves a line for each one that is done."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console = Console(file=sys.stderr, highlight=False, markup=False)
        self._bars: Any = None
        self._tasks: list[Any] = []

    def started(self, name: str) -> None:
        """Draws a bar that only shows that work goes on."""
        if self._bars is None:
            self._bars = self._drawn()
            self._bars.start()
        self._tasks.append(self._bars.add_task(name, total=None, note=""))

    def finished(self, name: str) -> None:
        """Replaces the bar by a line with the seconds of the phase."""
        self._bars.remove_task(self._tasks.pop())
        if not self._tasks:
            self._bars.stop()
            self._bars = None
        self._console.print(f"{name:<20} {self.seconds[name]:7.1f} s")

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Moves the bar."""
        if self._tasks:
            self._bars.update(self._tasks[-1], completed=done, total=total, note=note)

    def note(self, text: str) -> None:
        """Writes a line above the bar."""
        self._console.print(text)

    def _drawn(self) -> Any:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Drawn

        columns = (
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        return Drawn(*columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False)
