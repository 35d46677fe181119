"""Logs: every line says of which run, round and node it is."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from fedpa.telemetry.logs import about, log_to

_LOG = logging.getLogger("fedpa.somewhere")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("fedpa")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_of_what_it_is() -> None:
    stream = io.StringIO()
    log_to(stream, form="json")
    with about(run="ab", round=3):
        with about(node=1):
            _LOG.info("trained %d", 7, extra={"fields": {"seconds": 0.5}})
        _LOG.warning("late")
    _LOG.info("over")
    first, second, third = lines(stream)
    assert {key: first[key] for key in ("run", "round", "node", "seconds", "message", "level", "logger")} == {
        "run": "ab",
        "round": 3,
        "node": 1,
        "seconds": 0.5,
        "message": "trained 7",
        "level": "info",
        "logger": "fedpa.somewhere",
    }
    assert first["time"].endswith("+00:00")
    assert "node" not in second
    assert second["round"] == 3
    assert not {"run", "round", "node"} & third.keys()


def test_an_error_carries_its_traceback() -> None:
    stream = io.StringIO()
    log_to(stream, form="json")
    try:
        raise ValueError("of no use")
    except ValueError:
        _LOG.exception("failed")
    (line,) = lines(stream)
    assert "ValueError: of no use" in line["traceback"]


def test_text_is_for_people() -> None:
    stream = io.StringIO()
    log_to(stream)
    with about(run="ab", round=3, node=0):
        _LOG.info("not shown")
        _LOG.warning("damaged")
    assert stream.getvalue() == "warning: round 3 node 0: damaged\n"


def test_called_again_it_replaces_what_was_set() -> None:
    old, new = io.StringIO(), io.StringIO()
    log_to(old, form="json")
    log_to(new, form="json")
    _LOG.info("once")
    assert old.getvalue() == ""
    assert len(lines(new)) == 1
