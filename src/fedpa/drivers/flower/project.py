"""The folder that ``flwr run`` takes: a ``pyproject.toml`` that names the two apps and the options of a run."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpa.artifacts import publish
from fedpa.drivers.flower.options import DEFAULTS, Options
from fedpa.errors import ConfigError
from fedpa.own_code import absolute, is_own_code

__all__ = ["new_project"]

_HEAD = """\
# What `flwr run` takes: which apps run on the server and on the nodes, and what the run is told.
# Any value of [tool.flwr.app.config] can be given at the start: flwr run . -c 'rounds=5 seed=1'

[project]
name = "fedpa-run"
version = "1.0.0"
description = "Adapt a foundation to the users of Flower's nodes"
license = "Apache-2.0"
dependencies = ["fedpa[flower]>={version}"]

[tool.flwr.app]
publisher = "fedpa"

[tool.flwr.app.components]
serverapp = "fedpa.drivers.flower.server:app"
clientapp = "fedpa.drivers.flower.client:app"

[tool.flwr.app.config]
"""
_PATHS = ("dataset", "out", "continue", "metrics-file")


def new_project(
    out: Path, options: Mapping[str, Any], *, superlink: str, ca: Path | None, overwrite: bool = False
) -> Path:
    """Write the folder.

    Beside the ``pyproject.toml`` there is ``.flwr/config.toml``, which tells Flower's commands where the SuperLink is
    if ``FLWR_HOME`` names that folder.

    Parameters
    ----------
    out : Path
        Folder to write.
    options : mapping
        Keys of the run config that differ from `fedpa.drivers.flower.options.DEFAULTS`; paths are made absolute.
    superlink : str
        ``host:port`` of the SuperLink.
    ca : Path or None
        Certificate of the CA that signed the SuperLink's; None for one that the system knows.
    overwrite : bool
        Replace `out` if it exists.

    Raises
    ------
    ConfigError
        If an option is unknown or invalid.
    ArtifactError
        If `out` exists or cannot be written.
    """
    if ca is not None and not ca.is_file():
        raise ConfigError(f"{ca}: no such file, expected the certificate of a CA", "make one with `fedpa flower keys`")
    values = DEFAULTS | dict(options)
    for key in _PATHS:
        if values[key]:
            values[key] = str(Path(str(values[key])).resolve())
    for key in ("foundation", "method"):
        text = str(values[key])
        if text and is_own_code(text):
            values[key] = absolute(text)
        elif text and key == "foundation":
            values[key] = str(Path(text).resolve())
    Options.of(values)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    where = [f"address = {_toml(superlink)}"]
    if ca is not None:
        where.append(f"root-certificates = {_toml(str(ca.resolve()))}")
    with publish(out, overwrite=overwrite) as room:
        head = _HEAD.replace("{version}", version("fedpa"))
        (room / "pyproject.toml").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
        home = room / ".flwr"
        home.mkdir()
        text = "\n".join(["[superlink]", 'default = "fedpa"', "", "[superlink.fedpa]", *where, ""])
        (home / "config.toml").write_text(text, encoding="utf-8")
    return out


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
