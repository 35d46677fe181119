"""Runs on Ray for tests: in this process, or in one of their own, and what a driver could change of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from fedpa.adaptation import adapt
from prepared import Small
from processes import last_round

SETTINGS: dict[str, Any] = {"patience": 0, "lr": 0.1, "participation": 0.6, "item_counts": 5}
ROUNDS = 6


def found(out: Path) -> dict[str, Any]:
    """Everything that a driver could change."""
    assert json.loads((out / "summary.json").read_text())["best_round"] > 0, "users of these tests are to have trained"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds_train"], line["seconds_eval"]
        line.pop("nodes", None)
    files = ("shared.safetensors", "personal.safetensors")
    return {"lines": lines} | {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files}


def run(made: Small, out: Path, driver: str = "ray", **options: Any) -> dict[str, Any]:
    """Adapt in this process."""
    chosen: dict[str, Any] = {"rounds": ROUNDS, **SETTINGS, **options}
    adapt(made.foundation, made.dataset, out=out, foundation_path=made.foundation_path, driver=driver, **chosen)
    return found(out)


def actors(parent: int | None = None) -> list[psutil.Process]:
    """Processes of actors below a process, by default this one, the oldest first."""
    return below("ray::ShardActor", parent)


def below(word: str, parent: int | None = None) -> list[psutil.Process]:
    """Processes below one, by default this one, with a word in their command line, the oldest first."""
    named = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(child.cmdline()):
                named.append(child)
    return sorted(named, key=lambda child: child.pid)


def wait_for_round(out: Path, number: int, alive: Callable[[], bool], within: float = math.inf) -> None:
    """Until an unfinished run has come to a round, or some seconds are over, or whoever works on it is gone."""
    end = time.monotonic() + within
    while alive() and last_round(out) < number and time.monotonic() < end:
        time.sleep(0.005)


_ADAPT = """
import sys
from pathlib import Path
from fedpa import load_dataset, load_foundation
from fedpa.adaptation import adapt, resume
dataset, foundation, out, address, options = sys.argv[1:]
if Path(out + ".unfinished").exists():
    resume(out)
else:
    adapt(load_foundation(foundation), load_dataset(dataset), out=out, foundation_path=foundation, driver="ray",
          shards=2, address=address or None, **eval(options))
print("finished")
"""


def started(made: Small, out: Path, address: str = "", **options: Any) -> subprocess.Popen[str]:
    """Adapt or go on in a process of its own; `settings` are the run's, other options those of the process."""
    chosen = {"rounds": ROUNDS, **SETTINGS, **options.pop("settings", {})}
    command = [sys.executable, "-c", _ADAPT, made.dataset.path, made.foundation_path, out, address, repr(chosen)]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, **options)


def remove_room_of(pid: int) -> None:
    """Remove what Ray left behind that a killed process had started."""
    for left in Path(tempfile.gettempdir()).glob(f"fedpa-ray-{pid}-*"):
        shutil.rmtree(left, ignore_errors=True)
