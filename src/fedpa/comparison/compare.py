"""Every method on the same users, rows and seeds, measured side by side."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedpa.artifacts import replace_file, write_json
from fedpa.comparison.cells import Cell, Cells
from fedpa.comparison.estimate import Estimate, in_words, makespan
from fedpa.comparison.folder import claimed
from fedpa.comparison.gather import gather
from fedpa.comparison.measure import Request, make_foundation, measure, time_a_round
from fedpa.comparison.meter import Meter
from fedpa.comparison.plan import Planned, Say, applicable, check_task, compared_methods, plan, task_dataset
from fedpa.comparison.results import Results
from fedpa.comparison.workers import Outcome, Workers
from fedpa.data.dataset import Dataset
from fedpa.errors import ConfigError
from fedpa.models.pretrain import PretrainSettings
from fedpa.tuning.chosen import data_name, read_chosen

__all__ = ["compare"]


def compare(
    dataset: Dataset,
    *,
    out: Path | str,
    methods: Sequence[str] | Literal["all"] = "all",
    tasks: Sequence[str] = ("click",),
    seeds: int = 5,
    jobs: int | None = None,
    draws: int = 4000,
    tuned: Path | str | bool = True,
    settings: Mapping[str, Any] | None = None,
    pretraining: Mapping[str, Any] | None = None,
    progress: bool = False,
    say: Say = lambda line: None,
) -> Results:
    """Measure every method on every task with every seed, and compare them.

    What is finished is kept: called again with the same folder, only what is missing, failed or no longer fits is
    measured. Work is done in processes of their own; a script that calls this guards itself with
    ``if __name__ == "__main__":``.

    Parameters
    ----------
    dataset : Dataset
    out : path
        Folder to make, or to go on with: ``cells``, ``work`` and ``results.json``, ``.csv``, ``.md`` and
        ``index.html``.
    methods : "all" or sequence of str
        ``method`` or ``method+preset``.
    tasks : sequence of {"click", "topk"}
        ``topk`` leaves every user's last click out and ranks it.
    seeds : int
        Runs of every method, with seeds 0, 1, ..., each with its own foundation.
    jobs : int, optional
        Processes side by side; by default one per core.
    draws : int
        Of users, for intervals.
    tuned : bool or path
        Whether to take the settings that were chosen for this data set, or a file of them that `tune` wrote; where
        there are none, and with False, the preset's.
    settings : mapping, optional
        Over all others, for every method that has the setting.
    pretraining : mapping, optional
        Settings of `fedpa.pretrain` for the foundations.
    progress : bool
        Draw a bar on standard error.
    say : callable
        Takes lines for a person: the estimate first.

    Returns
    -------
    Results
        As in ``results.json``; ``failed`` maps each cell that failed to the reason.

    Raises
    ------
    ConfigError
        If a method, task or setting is unknown or invalid.
    ArtifactError
        If `out` is something else or in use.
    KeyboardInterrupt
        Interrupted by Ctrl-C; finished cells are kept.
    """
    out = Path(out)
    specs = compared_methods(methods)
    _check(tasks, seeds, jobs, draws)
    # Before the folder is made; `plan` reads both again.
    applicable(settings or {}, specs)
    PretrainSettings.checked(pretraining or {}, "pretraining")
    if not isinstance(tuned, bool):
        read_chosen(Path(tuned))
    with claimed(out, "comparison") as scratch:
        datasets = {task: task_dataset(dataset, task, out / "work", say) for task in tasks}
        planned = plan(specs, datasets, seeds, data_name(dataset), tuned, settings or {}, pretraining)
        with Workers(jobs or len(os.sched_getaffinity(0))) as workers:
            work = _Work(planned, datasets, pretraining or {}, out, scratch, workers, say)
            failed = work.run(progress)
        say(f"comparing {len(specs)} methods")
        named = "all" if methods == "all" else ",".join(specs)
        command = ["fedpa", "compare", str(dataset.path), "--methods", named, "--tasks", ",".join(tasks)]
        command += ["--seeds", str(seeds), "--draws", str(draws), "--out", str(out)]
        command += [] if tuned is True else ["--presets"] if tuned is False else ["--chosen", str(tuned)]
        for name, value in (settings or {}).items():
            command += ["--set", f"{name}={json.dumps(value)}"]
        for name, value in (pretraining or {}).items():
            command += ["--pretrain", f"{name}={json.dumps(value)}"]
        return gather(out, planned, datasets, draws=draws, failed=failed, command=shlex.join(command))


def _check(tasks: Sequence[str], seeds: int, jobs: int | None, draws: int) -> None:
    for task in tasks:
        check_task(task)
    if not tasks:
        raise ConfigError("tasks: none was named", "name click, topk or both")
    for name, number, least in (("seeds", seeds, 1), ("jobs", jobs, 1), ("draws", draws, 2)):
        if number is not None and number < least:
            raise ConfigError(f"{name}: found {number}, expected at least {least}", "give a larger number")


class _Work:
    """Gives workers what is missing, foundations first and then the longest cells."""

    def __init__(
        self,
        planned: Sequence[Planned],
        datasets: Mapping[str, Dataset],
        pretraining: Mapping[str, Any],
        out: Path,
        scratch: Path,
        workers: Workers,
        say: Say,
    ) -> None:
        self.planned, self.datasets, self.out, self.scratch = planned, datasets, out, scratch
        self.workers, self.say, self.pretraining = workers, say, dict(pretraining)
        self.cells = Cells(out / "cells")
        self.waiting = [one for one in planned if not self.cells.is_finished(one.cell, one.fingerprint)]
        self.foundations = sorted({(one.cell.task, one.cell.seed) for one in self.waiting if one.needs_foundation})
        self.foundations = [key for key in self.foundations if not self.foundation(*key).is_dir()]
        self.running: dict[tuple[str, int] | Cell, Planned | None] = {}
        self.failed: dict[str, str] = {}

    def foundation(self, task: str, seed: int) -> Path:
        """Where the foundation of a task and seed is, or is to be."""
        name = f"foundation-{task}-{seed}"
        if self.pretraining:
            name += "-" + hashlib.sha256(json.dumps(self.pretraining, sort_keys=True).encode()).hexdigest()[:8]
        return self.out / "work" / self.datasets[task].hash[:12] / name

    def run(self, progress: bool) -> dict[str, str]:
        """Measure what is missing; return what failed and why."""
        total, finished = len(self.planned), len(self.planned) - len(self.waiting)
        if not self.waiting:
            self.say(f"all {total} cells are finished: nothing is left to measure")
            return {}
        try:
            self.estimate = Estimate(self._timed())
            self.say(
                f"{total} cells, {finished} of them finished: the rest takes about {in_words(self._left())} "
                f"with {self.workers.jobs} workers"
            )
            with Meter(total, progress, self.say) as meter:
                while self.waiting or self.running:
                    self._give()
                    for outcome in self.workers.wait(1.0):
                        line = self._take(outcome)
                        meter.line(line, self._done(), self._left())
                    meter.show(self._done(), self._left(), [str(key) for key in self.running])
        except KeyboardInterrupt:
            self.say(f"{self._done()} of {total} cells are finished and kept: the same command goes on from there")
            raise
        return self.failed

    def _timed(self) -> dict[str, dict[str, float]]:
        """A round of each task's data set, timed once and noted."""
        found = {}
        for task in {one.cell.task: None for one in self.waiting}:
            dataset = self.datasets[task]
            note = self.out / "work" / dataset.hash[:12] / f"timed-{task}.json"
            if not note.is_file():
                note.parent.mkdir(parents=True, exist_ok=True)
                self.workers.submit(task, time_a_round, str(dataset.path.resolve()), str(self.scratch))
                outcome = self.workers.wait()[0]
                # The cells will say what is wrong; here it is only about time.
                timed = outcome.value or {"epoch": 1.0, "train": 1.0, "score": 1.0}
                with replace_file(note) as fresh:
                    write_json(fresh, timed)
            found[task] = json.loads(note.read_text(encoding="utf-8"))
        return found

    def _give(self) -> None:
        """Start whatever can start."""
        while self.workers.free and self.foundations:
            task, seed = key = self.foundations.pop(0)
            self.running[key] = None
            data = str(self.datasets[task].path.resolve())
            self.workers.submit(key, make_foundation, data, str(self.foundation(task, seed)), seed, self.pretraining)
        self.waiting.sort(key=self._seconds, reverse=True)
        for one in list(self.waiting):
            if not self.workers.free:
                return
            path = self.foundation(one.cell.task, one.cell.seed)
            if one.needs_foundation and not path.is_dir():
                continue
            self.waiting.remove(one)
            self.running[one.cell] = one
            request = Request(
                cell=one.cell,
                dataset=str(self.datasets[one.cell.task].path.resolve()),
                foundation=str(path) if one.needs_foundation else None,
                settings=one.settings,
                note=one.note,
                folder=str(self.cells.folder),
                scratch=str(self.scratch),
            )
            self.workers.submit(one.cell, measure, request)

    def _take(self, outcome: Outcome) -> str:
        """Note what a worker has finished, and say it."""
        one = self.running.pop(outcome.key)
        if one is not None:
            if outcome.error is None:
                self.estimate.learn(one.cell, one.fingerprint["settings"], outcome.value)
                return f"{one.cell}: {in_words(outcome.value)}"
            return self._fail(one, outcome)
        task, seed = outcome.key
        name = f"{task} pre-training seed {seed}"
        if outcome.error is None:
            return f"{name}: {in_words(outcome.seconds)}"
        without = [
            one for one in self.waiting if one.needs_foundation and (one.cell.task, one.cell.seed) == (task, seed)
        ]
        for one in without:
            self.waiting.remove(one)
            self._fail(one, outcome._replace(error=f"no foundation: {outcome.error}"))
        return f"{name}: failed: {outcome.error}"

    def _fail(self, one: Planned, outcome: Outcome) -> str:
        self.failed[str(one.cell)] = str(outcome.error)
        failure = {"error": outcome.error, "details": outcome.details, "seconds": outcome.seconds}
        self.cells.write_error(one.cell, {**one.cell._asdict(), **one.note, **failure})
        return f"{one.cell}: failed: {outcome.error}"

    def _seconds(self, one: Planned) -> float:
        return self.estimate.cell(one.cell, one.fingerprint["settings"])

    def _done(self) -> int:
        return len(self.planned) - len(self.waiting) - sum(one is not None for one in self.running.values())

    def _left(self) -> float:
        """Seconds until everything is measured."""
        elapsed = self.workers.running
        seconds = [self._seconds(one) for one in self.waiting]
        seconds += [self.estimate.foundation(task) for task, _ in self.foundations]
        for key, running in self.running.items():
            expected = self.estimate.foundation(key[0]) if running is None else self._seconds(running)
            seconds.append(max(0.0, expected - elapsed.get(key, 0.0)))
        return makespan(seconds, self.workers.jobs)
