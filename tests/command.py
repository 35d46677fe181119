"""The command line in this process, and a small synthetic world to run it on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from fedpa.cli import app


def fedpa(*arguments: object, code: int = 0) -> Result:
    """Run a command line; it must end with the exit code and without a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}"
    return result


def answer(*arguments: object, code: int = 0) -> dict[str, Any]:
    """The one JSON object that a command line prints."""
    result = fedpa(*arguments, "--json", code=code)
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True)
class World:
    """Folders of 200 synthetic users, made with the command line."""

    raw: Path
    dataset: Path
    foundation: Path
    run: Path


ROUNDS = ("--set", "rounds=2", "--set", "patience=0", "--set", "select=auc")


def make_world(folder: Path) -> World:
    """Synthesise, prepare, pre-train and adapt."""
    world = World(*(folder / name for name in ("raw", "dataset", "foundation", "run")))
    fedpa("data", "synth", world.raw, "--users", 200, "--items", 60, "--rows-per-user", 15)
    fedpa("prepare", "kuairand-pure", "--raw", world.raw, "--out", world.dataset, "--cold-users")
    fedpa("pretrain", world.dataset, "--out", world.foundation, "--set", "epochs=2")
    fedpa("adapt", world.foundation, world.dataset, "--out", world.run, *ROUNDS)
    return world
