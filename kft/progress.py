"""How long work tells that it goes on; the library is silent, the command line listens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Progress:
    """Hears what a run does and keeps the seconds of each phase; says nothing itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase; a phase entered twice adds up."""
        self.started(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.finished(name)

    def started(self, name: str) -> None:
        """Called when a phase begins."""

    def finished(self, name: str) -> None:
        """Called when a phase ends, its seconds being in `seconds`."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Called as the present phase moves: `done` of `total` units, with figures worth showing."""

    def note(self, text: str) -> None:
        """Called with one line that a person should read."""
