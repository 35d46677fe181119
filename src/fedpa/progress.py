"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Advance", "progress_bar"]

Advance = Callable[[str], None]
"""Called once per finished step with a word on how it went."""


@contextmanager
def progress_bar(title: str, steps: int, show: bool) -> Iterator[Advance]:
    """A bar over a known number of steps, or silence."""
    if not show:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, note="")
        yield lambda note: bar.update(task, advance=1, note=note)
