"""Go on with a finished run on later data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedpa.adaptation import Job, place_of
from fedpa.artifacts import sha256
from fedpa.continuing.handover import Handover
from fedpa.continuing.start import write_start
from fedpa.data.dataset import Dataset
from fedpa.errors import ArtifactError, ConfigError
from fedpa.methods import FederatedMethod
from fedpa.models.foundation import Foundation
from fedpa.origin import noted_path, run_id
from fedpa.run import Run
from fedpa.unfinished import claimed, new_room

__all__ = ["continue_run", "continued"]


def continue_run(
    run: Run,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    foundation: Foundation | None = None,
    foundation_path: Path | str | None = None,
    migrate: bool = False,
    driver: str | None = None,
    shards: int | None = None,
    address: str | None = None,
    deadline: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    keep_rounds: int | None = None,
    metrics_file: Path | None = None,
    metrics_port: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Run:
    """Go on from a run's best round with later data.

    Users and items are those of before by their ids, values of groups by their names. Known users keep what their
    devices kept, in a changed group too, whose parameters they then receive; new users and items begin where everybody
    did; what was kept of users who left is not taken over. Rounds are numbered on from the run's last one, so that no
    draw is made twice; what the new run starts from is noted as that round, and stays the best if no later one is.

    Parameters
    ----------
    run : Run
        Finished, with its data set and foundation where it can find them.
    dataset : Dataset
        Prepared ``like`` the run's; see `fedpa.prepare`.
    out : path, optional
        Folder to write; without it the run lives in a temporary folder for as long as the object does.
    foundation : Foundation, optional
        By default the run's. Another one is refused, unless it is to `migrate`.
    foundation_path : path, optional
        Where `foundation` is; as for `fedpa.adapt`.
    migrate : bool
        Take over what still fits another foundation or other settings, and note the rest as ``dropped``. What is taken
        over is each parameter's change from where it began; moments of optimisers are not, with another foundation.
    driver, shards, address, deadline, threads, device, keep_rounds : optional
        As for `fedpa.adapt`; by default those of the run.
    metrics_file, metrics_port : optional
        As for `fedpa.adapt`.
    overwrite : bool
        Replace `out` if it exists.
    progress : bool
        Draw a bar on standard error.
    **settings
        Fields of the method's settings, over the run's. ``rounds`` counts the new ones alone.

    Returns
    -------
    Run
        Its ``summary["continues"]`` says what became of users, items and parameters.

    Raises
    ------
    ConfigError
        If the method is no federated one, the label another one, or a setting invalid.
    DataError
        If ids are of another type.
    ArtifactError
        If the foundation is another one, parameters do not fit, or `out` exists.
    """
    method, foundation, config = continued(run, dataset, foundation, foundation_path, settings, migrate=migrate)
    given = {
        "driver": driver,
        "shards": shards,
        "address": address,
        "deadline": deadline,
        "threads": threads,
        "device": device,
        "keep_rounds": keep_rounds,
    }
    config["engine"] = _engine(run, {name: value for name, value in given.items() if value is not None})
    job = Job(Path(), config, method, foundation, dataset, sync=out is not None)
    job.check()
    handover = Handover(run, method, dataset, foundation, migrate=migrate)
    target, keep = place_of(out)
    job.room = new_room(target, overwrite=overwrite)
    with claimed(job.room):
        write_start(job, handover)
        job.watch(metrics_file, metrics_port)
        return job.run(target, progress, keep)


def continued(
    run: Run,
    dataset: Dataset,
    foundation: Foundation | None,
    foundation_path: Path | str | None,
    settings: Mapping[str, Any],
    *,
    migrate: bool,
) -> tuple[FederatedMethod, Foundation | None, dict[str, Any]]:
    """Method, foundation and config of a run that goes on from another one; the config's engine is still the old one.

    Raises
    ------
    ConfigError
        If the method is no federated one, the label another one, or a setting invalid.
    ArtifactError
        If the foundation is another one and is not to be migrated to, or does not fit the data set.
    """
    if not isinstance(run.method, FederatedMethod):
        raise ConfigError(
            f"{run.path}: method {run.method.name} has no federation to go on with", "adapt anew to today's data"
        )
    if dataset.label_name != run.config.get("label", dataset.label_name):
        raise ConfigError(
            f"{dataset.path}: its label is {dataset.label_name!r}, the run's {run.config['label']!r}",
            "prepare today's data --like the run's data set",
        )
    found = _foundation(run, foundation, migrate)
    if found is not None:
        found.check(dataset)
    config = _config(run, dataset, found, foundation_path, settings, migrate=migrate)
    checked = run.method.settings_type.checked(config["settings"], f"method {run.method.name}")
    return type(run.method)(checked), found, config


def _foundation(run: Run, given: Foundation | None, migrate: bool) -> Foundation | None:
    """What the run goes on with."""
    noted = run.config["foundation"]
    if given is None:
        return run.foundation
    found = None if noted is None else noted["hash"]
    if given.hash != found and not migrate:
        raise ArtifactError(
            f"{run.path}: its adapters belong to foundation {str(found)[:12]}, found {given.hash[:12]}",
            "give the foundation that the run was made with, or --migrate to take over what still fits",
        )
    return given


def _config(
    run: Run,
    dataset: Dataset,
    foundation: Foundation | None,
    foundation_path: Path | str | None,
    settings: Mapping[str, Any],
    *,
    migrate: bool,
) -> dict[str, Any]:
    """The new run's ``config.yaml``, but for its engine and what became of everything."""
    before, first = run.config, int(run.history[-1]["round"])
    earlier = before.get("continues", {}).get("first_round", 0)
    changed = before["settings"] | dict(settings)
    rounds = changed["rounds"] - (earlier if "rounds" not in settings else 0)
    if isinstance(rounds, int) and rounds >= 0:
        changed["rounds"] = first + rounds
    path = noted_path(foundation_path)
    if path is None and foundation is not None:
        path = before["foundation"]["path"] if foundation is run.foundation else noted_path(foundation.path)
    return before | {
        "settings": changed,
        "label": dataset.label_name,
        "dataset": {"path": str(dataset.path.resolve()), "hash": dataset.hash},
        "foundation": None if foundation is None else {"path": path, "hash": foundation.hash},
        "fedpa": version("fedpa"),
        "continues": {
            "run": str(run.path.resolve()),
            "id": run_id(before),
            "migrate": migrate,
            "best_round": run.summary["best_round"],
            "hash": sha256(run.path / "shared.safetensors"),
            "first_round": first,
        },
    }


def _engine(run: Run, given: dict[str, Any]) -> dict[str, Any]:
    """How rounds are run: as given, else as before."""
    elsewhere = {"address": None, "deadline": None, "threads": None}
    engine = {"driver": "local", "shards": 1, **elsewhere, "device": "cpu", "keep_rounds": 2}
    engine |= {name: value for name, value in run.config.get("engine", {}).items() if name in engine}
    if "driver" in given and given["driver"] != engine["driver"]:
        engine |= elsewhere
    return engine | given
