"""Adapt a foundation to the private users of a data set, round by round."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from fedpa.artifacts import FORMAT_VERSION, to_json
from fedpa.data.dataset import Dataset
from fedpa.device import open_device
from fedpa.drivers.driver import Driver, Plan
from fedpa.drivers.local import LocalDriver
from fedpa.durable import replace
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.coordinator import (
    Coordinator,
    Outcome,
    check_kept,
    checkpoints,
    round_line,
    split_values,
    write_lines,
    write_shared,
)
from fedpa.federation.device import gather, node_generations
from fedpa.federation.node import SPLITS, divided, split_sums
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.server import Server, Upload
from fedpa.methods import Baseline, FederatedMethod, Method, find_method
from fedpa.models.foundation import Foundation
from fedpa.origin import dataset_of, foundation_of, method_of, noted, run_id
from fedpa.progress import Advance, progress_bar
from fedpa.run import Run
from fedpa.telemetry.metrics import Metrics
from fedpa.unfinished import claimed, finish, new_room, read_config, room_of, write_config

__all__ = ["Job", "adapt", "place_of", "resume"]

DRIVERS = ("local", "ray")


def adapt(
    foundation: Foundation | None,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    method: str = "fedpa",
    preset: str = "default",
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
    foundation_path: Path | str | None = None,
    driver: str = "local",
    shards: int = 1,
    address: str | None = None,
    deadline: float | None = None,
    threads: int | None = None,
    keep_rounds: int = 2,
    metrics_file: Path | None = None,
    metrics_port: int | None = None,
    **settings: Any,
) -> Run:
    """Adapt a foundation to private users.

    Parameters
    ----------
    foundation : Foundation or None
        What `fedpa.wrap` returns is one too; None for methods that need none, such as ``"two-counters"``.
    dataset : Dataset
        Prepared with the features that the foundation was trained on.
    out : path, optional
        Folder to write; without it the run lives in a temporary folder for as long as the object does.
    method : str
        A name (`fedpa.methods.method_names`) or ``my_file.py:MyMethod``.
    preset : str
        Named settings of the method.
    seed : int
        Of every draw. The same seed on the same machine gives the same bytes.
    device : str
        For instance ``"cpu"`` or ``"cuda"``.
    overwrite : bool
        Replace `out` if it exists.
    progress : bool
        Draw a bar on standard error.
    foundation_path : path, optional
        Where `foundation` is, noted in the run so that it can be found again: by default the folder that it was saved
        to or loaded from; ``my_file.py:build`` for a wrapped module.
    driver : {"local", "ray"}
        Where shards are: in this process, or in actors of Ray (extra ``fedpa[ray]``); the result is equal to the bit.
    shards : int
        Into how many shards the users are divided.
    address : str, optional
        Of a Ray cluster that is there already; by default Ray is started on this machine.
    deadline : float, optional
        Seconds that a shard on Ray has for its part of a round, after which the round goes on without it.
    threads : int, optional
        That each shard on Ray computes on; by default one.
    keep_rounds : int
        How many of the last rounds can be gone back to, beside the best one; at least 2.
    metrics_file, metrics_port : path, int, optional
        Where metrics in Prometheus' format are written after every round, or served on this machine (extra
        ``fedpa[metrics]``); see `fedpa.telemetry.metrics`.
    **settings
        Fields of the method's settings, over the preset.

    Returns
    -------
    Run
        The best round by validation. Interrupted by Ctrl-C, the best round so far, marked ``interrupted``.

    Raises
    ------
    ConfigError
        If the method, preset, device or a setting is unknown or invalid.
    ArtifactError
        If the foundation does not fit the data set, `out` exists, or an unfinished run of its name does.
    """
    chosen = find_method(method).configured(preset, settings, foundation)
    if foundation is None and chosen.reads_foundation:
        raise ConfigError(f"method {chosen.name}: needs a foundation", "pretrain one or load one with load_foundation")
    if foundation is not None:
        foundation.check(dataset)
    open_device(device)
    target, keep = place_of(out)
    config = noted(method, preset, seed, chosen, dataset, foundation, foundation_path) | {
        "engine": {
            "driver": driver,
            "shards": shards,
            "address": address,
            "deadline": deadline,
            "threads": threads,
            "device": device,
            "keep_rounds": keep_rounds,
        },
    }
    job = Job(room_of(target), config, chosen, foundation, dataset, sync=keep is None)
    job.check()
    room = new_room(target, overwrite=overwrite)
    with claimed(room):
        write_config(room, config)
        job.watch(metrics_file, metrics_port)
        return job.run(target, progress, keep)


def resume(
    out: Path | str,
    *,
    foundation: Foundation | None = None,
    dataset: Dataset | None = None,
    progress: bool = False,
    metrics_file: Path | None = None,
    metrics_port: int | None = None,
) -> Run:
    """Go on with a run that was stopped, from its last completed round.

    Parameters
    ----------
    out : path
        The folder that the run was to become.
    foundation, dataset : optional
        Used instead of the ones whose paths the run noted; their hashes must be the run's.
    progress : bool
        Draw a bar on standard error.
    metrics_file, metrics_port : path, int, optional
        As of `adapt`.

    Returns
    -------
    Run
        To the bit the one that an uninterrupted run would have become.

    Raises
    ------
    ArtifactError
        If there is no unfinished run, or another process works on it, or no round of it is whole.
    """
    target = Path(out)
    room = room_of(target)
    if not room.is_dir():
        found = "the run is finished" if target.is_dir() else "there is no such run"
        raise ArtifactError(f"{target}: nothing to resume, {found}", f"an unfinished run is a folder {room.name}")
    config = read_config(room)
    if config.get("engine", {}).get("driver") == "flower":
        raise ArtifactError(f"{room}: is a run on Flower", "start it with `flwr run` again, and it goes on")
    method, data = method_of(config, room), dataset_of(config, dataset)
    foundation = foundation_of(config, room, foundation, "resume")
    job = Job(room, config, method, foundation, data)
    with claimed(room):
        job.watch(metrics_file, metrics_port)
        return job.run(target, progress)


def place_of(out: Path | str | None) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """The folder that a run is to become; by default one that is removed with the object beside it."""
    if out is not None:
        return Path(out), None
    keep = tempfile.TemporaryDirectory(prefix="fedpa-")
    return Path(keep.name) / "run", keep


@dataclass
class Job:
    """What is adapted to what, how, and where.

    Attributes
    ----------
    room : Path
        Folder of the unfinished run.
    config : dict
        Its ``config.yaml``.
    method : Method
    foundation : Foundation or None
    dataset : Dataset
    sync : bool
        Whether what is written outlives a crash of the machine.
    metrics : Metrics, optional
        Told of every round.
    """

    room: Path
    config: dict[str, Any]
    method: Method
    foundation: Foundation | None
    dataset: Dataset
    sync: bool = True
    metrics: Metrics | None = None

    def watch(self, file: Path | None, port: int | None) -> None:
        """Write or serve metrics of the run, if asked to."""
        if file is not None or port is not None:
            self.metrics = Metrics(self.run_id, file=file, port=port)

    @property
    def run_id(self) -> str:
        """What orders and reports of this run carry."""
        return run_id(self.config)

    def check(self) -> None:
        """Refuse what the drivers cannot do.

        Raises
        ------
        ConfigError
        """
        engine = self.config["engine"]
        driver, shards = engine["driver"], engine["shards"]
        if driver not in DRIVERS:
            raise ConfigError(
                f"driver {driver!r}: expected one of {', '.join(DRIVERS)}",
                "nodes on Flower are run with `fedpa flower` and `flwr run`",
            )
        private = len(divided(self.dataset, 1)[0])
        if not 1 <= shards <= max(1, private):
            raise ConfigError(f"shards: expected 1 to {private}, the number of private users, found {shards}")
        check_kept(engine["keep_rounds"])
        if isinstance(self.method, Baseline) and (driver != "local" or shards != 1):
            raise ConfigError(f"method {self.method.name}: has no federation, so there is nothing to divide")
        given = [name for name in ("address", "deadline", "threads") if engine[name] is not None]
        if driver == "local" and given:
            raise ConfigError(f"{', '.join(given)}: for shards on Ray alone", "leave it out or choose driver ray")
        if driver == "ray":
            from fedpa.drivers.ray import check_options

            check_options(engine["deadline"], engine["threads"])
        if driver != "local" and self.foundation is not None and self.config["foundation"]["path"] is None:
            raise ConfigError("the foundation was never saved, and other processes have to load it", "save it first")

    def run(self, target: Path, progress: bool, keep: tempfile.TemporaryDirectory[str] | None = None) -> Run:
        """Run to the end and give the folder its name."""
        if isinstance(self.method, Baseline):
            summary = self._baseline(self.method)
        else:
            summary = self._federated(cast(FederatedMethod, self.method), progress)
        content = {
            "kind": "run",
            "format_version": FORMAT_VERSION,
            "dataset": self.dataset.manifest["source"],
            "method": self.method.name,
            "preset": self.config["preset"],
            "seed": self.config["seed"],
            "private_users": len(divided(self.dataset, 1)[0]),
            **({"continues": self.config["continues"]} if "continues" in self.config else {}),
            **summary,
        }
        replace(self.room / "summary.json", to_json(content).encode(), sync=False)
        finish(self.room, target, sync=self.sync)
        run = Run(target, foundation=self.foundation, dataset=self.dataset)
        run.temporary = keep
        return run

    def _baseline(self, method: Baseline) -> dict[str, Any]:
        device = open_device(self.config["engine"]["device"])
        plain = ShardRows.of(self.dataset, dtype=method.settings.torch_dtype, device=device)
        rows = method.rows(self.foundation, self.dataset, plain, method.tally(self.dataset, plain))
        begin = time.perf_counter()
        method.fit(self.foundation, self.dataset, rows, seed=self.config["seed"], folder=self.room)
        method.open(self.room)
        fitted = time.perf_counter()
        values = split_values(split_sums(rows, method.scores(self.foundation, self.dataset, rows)))
        line = round_line(0, Upload([], []), method.settings, fitted - begin) | {
            "seconds_eval": round(time.perf_counter() - fitted, 4),
            **values,
        }
        return self._summary(Outcome(0, [], {}, {}, [line], interrupted=False), {})

    def _federated(self, method: FederatedMethod, progress: bool) -> dict[str, Any]:
        engine = self.config["engine"]
        model = method.model(self.foundation, self.dataset, self.config["seed"], open_device(engine["device"]))
        server = method.server(model.layout)
        driver = self._driver(model)
        users = {node: len(part) for node, part in enumerate(divided(self.dataset, engine["shards"]))}
        try:
            with progress_bar(f"adapt ({method.name})", method.settings.rounds, progress) as advance:
                outcome = self.rounds(server, driver, users, advance)
        finally:
            driver.close()
        best = []
        for node in sorted(driver.nodes):
            generations = node_generations(self.plan.node_folder(node), sync=self.sync)
            best.append(generations.path(outcome.generations.get(node, 0)))
            generations.keep(accepted.get(node, 0) for accepted in outcome.kept.values())
        gather(best, self.room)
        return self._summary(outcome, model.layout.sizes_by_scope())

    def rounds(self, server: Server, driver: Driver, users: Mapping[int, int], advance: Advance) -> Outcome:
        """Run the rounds and write what all have of the best one; the nodes have so many users each."""
        try:
            outcome = Coordinator(
                server,
                driver,
                self.method.settings,
                self.room,
                run=self.run_id,
                keep_rounds=self.config["engine"]["keep_rounds"],
                sync=self.sync,
                users=users,
                observe=None if self.metrics is None else self.metrics.observe,
            ).run(advance)
        finally:
            if self.metrics is not None:
                self.metrics.close()
        server.state = outcome.state
        write_shared(self.room, server, self.foundation.hash if self.foundation else None)
        return outcome

    def _driver(self, model: AdaptedModel) -> Driver:
        plan = self.plan
        if self.config["engine"]["driver"] == "ray":
            from fedpa.drivers.ray import RayDriver

            engine = self.config["engine"]
            chosen = {name: engine[name] for name in ("address", "deadline", "threads") if engine[name] is not None}
            return RayDriver(plan, **chosen)
        known: dict[str, Any] = {"dataset": self.dataset, "foundation": self.foundation, "model": model}
        known["method"] = self.method
        return LocalDriver([plan.node(index, **known) for index in range(plan.shards)])

    @cached_property
    def plan(self) -> Plan:
        """All that another process needs to make a node of this run."""
        noted = self.config["foundation"]
        return Plan(
            method=self.config["method"],
            settings=self.config["settings"],
            dataset=self.config["dataset"]["path"],
            foundation=None if noted is None else noted["path"],
            seed=self.config["seed"],
            shards=self.config["engine"]["shards"],
            folder=str(checkpoints(self.room).resolve()),
            device=self.config["engine"]["device"],
            sync=self.sync,
        )

    def _summary(self, outcome: Outcome, scopes: dict[str, int]) -> dict[str, Any]:
        write_lines(self.room, outcome.lines)
        best = next(line for line in outcome.lines if line["round"] == outcome.best_round)
        rounds = [line for line in outcome.lines if line["participants"]]
        took_part = sum(line["participants"] for line in rounds)
        return {
            "best_round": outcome.best_round,
            "rounds": len(outcome.lines) - 1,
            "splits": {name: best[name] for name in SPLITS},
            "seconds_per_round": sum(r["seconds_train"] + r["seconds_eval"] for r in rounds) / max(1, len(rounds)),
            "bytes_up_per_user_round": sum(r["bytes_up"] for r in rounds) / max(1, took_part),
            "bytes_down_per_user_round": sum(r["bytes_down"] for r in rounds) / max(1, took_part),
            "bytes_item_counts_per_user": 8 * self.method.settings.item_counts * self.dataset.n_items,
            "parameters": scopes | {"frozen": self._frozen() + scopes.get("frozen", 0)},
            "interrupted": outcome.interrupted,
        }

    def _frozen(self) -> int:
        if self.foundation is None:
            return 0
        return sum(p.numel() for p in self.foundation.model.parameters())
