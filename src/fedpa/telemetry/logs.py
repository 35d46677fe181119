"""Logs in which every line says of which run, round and node it is."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

__all__ = ["JsonLines", "about", "log_to"]

_FIELDS = ("run", "round", "node")
_about: ContextVar[dict[str, str | int]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


@contextlib.contextmanager
def about(**fields: str | int) -> Iterator[None]:
    """Say of what the lines logged within are.

    Parameters
    ----------
    **fields
        Of ``run``, ``round`` and ``node``; they join those of an outer one.
    """
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class _Context(logging.Filter):
    """Puts onto a record of what it is, where it is made."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.about = dict(_about.get())
        return True


class JsonLines(logging.Formatter):
    """One JSON object per line: ``time`` (UTC), ``level``, ``logger``, ``run``, ``round``, ``node``, ``message``.

    What is passed as ``extra={"fields": {...}}`` joins them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **getattr(record, "about", {}),
            **getattr(record, "fields", {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Plain(logging.Formatter):
    """Text for people: of what the line is, then the message."""

    def format(self, record: logging.LogRecord) -> str:
        of = getattr(record, "about", {})
        where = " ".join(f"{field} {of[field]}" for field in _FIELDS if field in of and field != "run")
        return f"{record.levelname.lower()}: {where + ': ' if where else ''}{record.getMessage()}"


def log_to(stream: TextIO | None = None, *, form: Literal["text", "json"] = "text", level: int | None = None) -> None:
    """Send the package's log to a stream; called again, it replaces what was set before.

    Parameters
    ----------
    stream : text file, optional
        By default standard error.
    form : {"text", "json"}
    level : int, optional
        By default warnings for text, and for JSON also one line per round.
    """
    logger = logging.getLogger("fedpa")
    for handler in [handler for handler in logger.handlers if handler.get_name() == __name__]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name(__name__)
    handler.addFilter(_Context())
    handler.setFormatter(JsonLines() if form == "json" else _Plain())
    logger.addHandler(handler)
    logger.setLevel(level if level is not None else logging.INFO if form == "json" else logging.WARNING)
    logger.propagate = False
