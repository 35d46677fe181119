"""What a run on Flower is told by the run config of ``flwr run``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedpa.errors import ConfigError

__all__ = ["DEFAULTS", "Options"]

DEFAULTS: dict[str, str | int | float | bool] = {
    "dataset": "",
    "foundation": "",
    "out": "",
    "continue": "",
    "migrate": False,
    "method": "fedpa",
    "preset": "default",
    "settings": "",
    "rounds": 0,
    "seed": 0,
    "device": "cpu",
    "min-nodes": 1,
    "deadline": 600.0,
    "keep-rounds": 2,
    "secure": False,
    "secure-change": 16.0,
    "secure-users": 1_000_000,
    "secure-threshold": 0,
    "overwrite": False,
    "log": "text",
    "metrics-file": "",
    "metrics-port": -1,
}
"""Every key of the run config. ``settings``: as ``--set``, divided by spaces; ``rounds`` 0: the preset's;
``secure-threshold`` 0: more than two thirds of the nodes."""

_FEWEST_SECURE = 5


@dataclass(frozen=True)
class Options:
    """The run config, checked.

    Attributes
    ----------
    dataset, out : Path
        The server's data set, and the folder of the run to write.
    foundation : str or None
        Folder, or ``my_file.py:build``.
    earlier : Path or None
        A finished run to go on from, whose method, preset and seed this one has.
    migrate : bool
        Take over what fits another foundation or other settings.
    method, preset : str
    settings : dict
        Over the preset.
    seed : int
    device : str
    least : int
        Nodes without which no round begins.
    deadline : float
        Seconds that a node has for its part of a round.
    keep_rounds : int
    secure : bool
        The server sees sums alone (`fedpa.privacy.secagg`).
    secure_change, secure_users : float, int
        Largest change of one weight by one user, and most users in a round; see `fedpa.privacy.secagg.contents.Limits`.
    secure_threshold : int or None
        How many nodes must stay.
    overwrite : bool
        Start anew even if there is a run of this name, finished or not.
    log : {"text", "json"}
    metrics_file : Path or None
    metrics_port : int or None
    """

    dataset: Path
    out: Path
    foundation: str | None
    earlier: Path | None
    migrate: bool
    method: str
    preset: str
    settings: dict[str, Any]
    seed: int
    device: str
    least: int
    deadline: float
    keep_rounds: int
    secure: bool
    secure_change: float
    secure_users: int
    secure_threshold: int | None
    overwrite: bool
    log: Literal["text", "json"]
    metrics_file: Path | None
    metrics_port: int | None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Options:
        """The options of a run config.

        Raises
        ------
        ConfigError
            If a key is unknown or missing, or a value has another type or is out of range.
        """
        from fedpa.settings import parse_assignments

        unknown = sorted(config.keys() - DEFAULTS.keys())
        if unknown:
            raise ConfigError(f"run config: unknown keys {', '.join(unknown)}", f"known: {', '.join(DEFAULTS)}")
        found = {key: _typed(key, config.get(key, default), default) for key, default in DEFAULTS.items()}
        for key in ("dataset", "out"):
            if not found[key]:
                raise ConfigError(f"run config: {key} is empty", f"flwr run APP -c '{key}=\"FOLDER\"'")
        for key, least in (("min-nodes", 1), ("keep-rounds", 2), ("rounds", 0), ("seed", 0)):
            if found[key] < least:
                raise ConfigError(f"run config: {key} is {found[key]}, expected {least} or more")
        if not found["deadline"] > 0:
            raise ConfigError(f"run config: deadline is {found['deadline']}, expected seconds above 0")
        if found["secure"] and found["min-nodes"] < _FEWEST_SECURE:
            raise ConfigError(
                f"run config: secure=true with min-nodes={found['min-nodes']}, expected {_FEWEST_SECURE} or more, "
                "since with few nodes a sum says too much of each"
            )
        for key in ("method", "preset", "seed"):
            if found["continue"] and found[key] != DEFAULTS[key]:
                raise ConfigError(
                    f"run config: {key} is {found[key]!r}, but a run goes on with its own", "leave it out"
                )
        if found["migrate"] and not found["continue"]:
            raise ConfigError("run config: migrate is for runs that go on", 'add continue="RUN"')
        if found["log"] not in ("text", "json"):
            raise ConfigError(f"run config: log is {found['log']!r}, expected text or json")
        try:
            words = shlex.split(found["settings"])
        except ValueError as error:
            raise ConfigError(f"run config: settings cannot be read ({error})", 'settings="lr=0.1 rank=4"') from error
        settings = parse_assignments(words)
        return cls(
            dataset=Path(found["dataset"]),
            out=Path(found["out"]),
            foundation=found["foundation"] or None,
            earlier=Path(found["continue"]) if found["continue"] else None,
            migrate=found["migrate"],
            method=found["method"],
            preset=found["preset"],
            settings=settings | ({"rounds": found["rounds"]} if found["rounds"] else {}),
            seed=found["seed"],
            device=found["device"],
            least=found["min-nodes"],
            deadline=found["deadline"],
            keep_rounds=found["keep-rounds"],
            secure=found["secure"],
            secure_change=found["secure-change"],
            secure_users=found["secure-users"],
            secure_threshold=found["secure-threshold"] or None,
            overwrite=found["overwrite"],
            log=found["log"],
            metrics_file=Path(found["metrics-file"]) if found["metrics-file"] else None,
            metrics_port=found["metrics-port"] if found["metrics-port"] >= 0 else None,
        )


def _typed(key: str, value: object, default: object) -> Any:
    """A value of the type that the key has; whole numbers may stand for others."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ConfigError(f"run config: {key} is {value!r}, expected {type(default).__name__}")
    return value
