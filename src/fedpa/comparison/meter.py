"""How far a long command is: a bar for a terminal, lines for a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fedpa.comparison.estimate import in_words

__all__ = ["Meter"]


class Meter:
    """A context manager that shows what is finished, what runs and the time left.

    Parameters
    ----------
    total : int
        Pieces of work.
    bar : bool
        Draw a bar on standard error; otherwise a line is said for every piece that ends.
    say : callable
        Takes the lines.
    """

    def __init__(self, total: int, bar: bool, say: Callable[[str], None]) -> None:
        self.total, self.say = total, say
        columns = (BarColumn(), TextColumn("{task.fields[done]}/{task.fields[of]} {task.fields[note]}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True) if bar else None
        self._begin = time.perf_counter()

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, done=0, of=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, line: str, done: int, left: float) -> None:
        """Say that a piece has ended."""
        if self._bar is None:
            self.say(f"{done}/{self.total} {line}, about {in_words(left)} left")
        elif ": failed: " in line:
            self._bar.console.print(line, markup=False, highlight=False)

    def show(self, done: int, left: float, running: Sequence[str]) -> None:
        """Draw the bar, whose whole length is the time spent and the time left."""
        if self._bar is not None:
            spent = time.perf_counter() - self._begin
            note = f"{in_words(left)} left: {', '.join(running)}"
            self._bar.update(self._task, completed=spent / max(spent + left, 1e-9), done=done, note=note)
