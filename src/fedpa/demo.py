"""The whole path in one call: synthetic users, a foundation, an adaptation and what it is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedpa.adaptation import adapt
from fedpa.artifacts import FORMAT_VERSION, write_json
from fedpa.data.prepare import prepare
from fedpa.data.sources import open_source
from fedpa.data.synthetic import synthesise
from fedpa.errors import ArtifactError
from fedpa.models.pretrain import pretrain

__all__ = ["demo"]

_NOTE = "demo.json"
_ROWS_PER_USER = 80.0
_SETTINGS: dict[str, Any] = {"batch_size": 16, "epochs": 2}  # users with many rows: several local steps a round
_SHOWN = ("gauc", "auc", "logloss")


def demo(
    out: Path | str,
    *,
    users: int = 2500,
    items: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Synthesise, prepare, pre-train, adapt, evaluate and recommend.

    Writes ``raw``, ``dataset``, ``foundation`` and ``run``, each ready for the other commands, and ``demo.json``.

    Parameters
    ----------
    out : path
        A new or empty folder, or that of an earlier demo, which is overwritten.
    users, items : int
        Size of the synthetic data set.
    seed : int
        Of every draw.
    progress : callable, optional
        Told one line after every step.

    Returns
    -------
    dict
        ``yardsticks``: GAUC, AUC and log-loss on the test rows by the name of the method, oracle included;
        ``bytes_up_per_user_round``; ``recommendation`` for one private user; ``seconds`` per step; the folders.

    Raises
    ------
    ArtifactError
        If `out` holds anything but an earlier demo, or cannot be written.
    ConfigError
        If a size or the seed is out of range.
    """
    folder = Path(out)
    _claim(folder)
    steps = _Steps(progress)

    counts = synthesise(
        folder / "raw", users=users, items=items, seed=seed, rows_per_user=_ROWS_PER_USER, overwrite=True
    )
    steps.done("synthesise", "{users:,} users, {items:,} items, {interactions:,} interactions".format(**counts))

    source = open_source("kuairand-pure", folder / "raw")
    dataset = prepare(source, folder / "dataset", seed=seed, overwrite=True)
    sides = dataset.manifest["counts"]["sides"]
    steps.done("prepare", f"{sides['open']:,} open and {sides['private']:,} private users")

    foundation = pretrain(dataset, out=folder / "foundation", seed=seed, overwrite=True)
    steps.done("pretrain", f"{foundation.facts['epochs']} epochs on the open users' rows")

    run = adapt(
        foundation,
        dataset,
        out=folder / "run",
        seed=seed,
        overwrite=True,
        foundation_path=folder / "foundation",
        **_SETTINGS,
    )
    steps.done("adapt", f"{run.summary['rounds']} rounds, the best is round {run.summary['best_round']}")

    yardsticks = run.yardsticks("test")
    steps.done("evaluate", f"{yardsticks['FedPA']['rows']:,} test rows of private users")

    user = dataset.user_ids[int(run.rows.users[np.argmax(run.rows.train > 0)])]
    recommendation = run.recommender.recommend(user).as_dict()
    steps.done("recommend", f"ten items for private user {user}")

    result = {
        "dir": str(folder),
        **{name: str(folder / name) for name in ("raw", "dataset", "foundation", "run")},
        "yardsticks": {name: {key: report[key] for key in _SHOWN} for name, report in yardsticks.items()},
        **{f"bytes_{way}_per_user_round": run.summary[f"bytes_{way}_per_user_round"] for way in ("up", "down")},
        "recommendation": recommendation,
        "seconds": steps.seconds,
    }
    write_json(folder / _NOTE, _mark() | result)
    return result


class _Steps:
    """The seconds that every step took."""

    def __init__(self, progress: Callable[[str], None] | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._begin = time.perf_counter()

    def done(self, name: str, what: str) -> None:
        """Note a step as done and tell of it."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._begin, 2)
        self._begin = now
        if self._progress is not None:
            self._progress(f"{name:<10} {self.seconds[name]:5.1f} s  {what}")


def _claim(folder: Path) -> None:
    """Make the folder a demo's, unless something else is in it."""
    note = folder / _NOTE
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or _is_demo(note))):
        raise ArtifactError(f"{folder}: exists and is not an earlier demo", "choose another folder with --dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, _mark())
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror})", "choose another with --dir") from error


def _is_demo(note: Path) -> bool:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == "demo"


def _mark() -> dict[str, Any]:
    return {"kind": "demo", "format_version": FORMAT_VERSION}
