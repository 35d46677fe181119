"""What a run is made from, as its ``config.yaml`` notes it and finds it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpa.data.dataset import Dataset, load_dataset
from fedpa.errors import ArtifactError
from fedpa.methods import Method, find_method
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.source import open_foundation
from fedpa.own_code import absolute, is_own_code

__all__ = ["dataset_of", "foundation_of", "method_of", "noted", "noted_path", "run_id"]


def run_id(config: Mapping[str, Any]) -> str:
    """What orders and reports of a run carry: a hash of its ``config.yaml``."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def noted(
    name: str,
    preset: str,
    seed: int,
    method: Method,
    dataset: Dataset,
    foundation: Foundation | None,
    foundation_path: Path | str | None,
) -> dict[str, Any]:
    """What ``config.yaml`` of a new run says, but for its engine.

    Parameters
    ----------
    name : str
        Of the method, or ``my_file.py:MyMethod``.
    preset : str
    seed : int
    method : Method
    dataset : Dataset
    foundation : Foundation or None
    foundation_path : path, optional
        Where it was loaded from; by default what it says itself.
    """
    if foundation is not None and foundation_path is None:
        foundation_path = foundation.path
    return {
        "method": absolute(name) if is_own_code(name) else name,
        "preset": preset,
        "seed": seed,
        "settings": method.settings.model_dump(mode="json"),
        "label": dataset.label_name,
        "dataset": {"path": str(dataset.path.resolve()), "hash": dataset.hash},
        "foundation": None if foundation is None else {"path": noted_path(foundation_path), "hash": foundation.hash},
        "fedpa": version("fedpa"),
    }


def noted_path(path: Path | str | None) -> str | None:
    """The name of a folder, or of code of one's own, that is found from anywhere on this machine."""
    if path is None:
        return None
    return absolute(str(path)) if is_own_code(str(path)) else str(Path(path).resolve())


def method_of(config: Mapping[str, Any], folder: Path) -> Method:
    """The method of a run, with its settings."""
    found = find_method(config["method"])
    return found(found.settings_type.checked(config["settings"], str(folder / "config.yaml")))


def dataset_of(config: Mapping[str, Any], given: Dataset | None) -> Dataset:
    """The data set of a run, or the given one in its place.

    Raises
    ------
    ArtifactError
        If it is another one.
    """
    expected = config["dataset"]
    found = given or load_dataset(Path(expected["path"]))
    if found.hash != expected["hash"]:
        raise ArtifactError(
            f"{found.path}: is not the data set of this run (hash {found.hash[:12]}, the run has "
            f"{expected['hash'][:12]})",
            "give the data set that the run was made with, or adapt again",
        )
    return found


def foundation_of(config: Mapping[str, Any], folder: Path, given: Foundation | None, call: str) -> Foundation | None:
    """The foundation of a run, or the given one in its place; None where the run has none.

    Parameters
    ----------
    config : mapping
    folder : Path
        Of the run.
    given : Foundation or None
    call : str
        How one is given, for the message.

    Raises
    ------
    ArtifactError
        If it is another one, or was never saved.
    """
    expected = config["foundation"]
    if expected is None:
        return None
    if given is None and expected["path"] is None:
        raise ArtifactError(f"{folder}: the foundation was never saved", f"give it: {call}(path, foundation=...)")
    found = given or open_foundation(expected["path"])
    if found.hash != expected["hash"]:
        raise ArtifactError(
            f"{folder}: its adapters belong to foundation {expected['hash'][:12]}, found {found.hash[:12]}",
            "give the foundation that the run was made with, or adapt again",
        )
    return found
