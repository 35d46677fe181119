"""Choose every method's settings by the same number of trials on pseudo-private users."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedpa.comparison.folder import claimed
from fedpa.comparison.measure import plain
from fedpa.comparison.plan import Say, applicable, check_task, compared_methods, task_dataset
from fedpa.comparison.workers import Workers
from fedpa.data.dataset import Dataset, load_dataset
from fedpa.errors import ConfigError
from fedpa.methods import find_method, parse_spec
from fedpa.tuning.ranges import Ranges, load_ranges
from fedpa.tuning.trials import Trials

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from fedpa.tuning.study import MethodStudy

__all__ = ["tune"]


def tune(
    dataset: Dataset,
    *,
    out: Path | str,
    methods: Sequence[str] | Literal["all"],
    task: str = "click",
    trials: int = 20,
    seed: int = 0,
    jobs: int | None = None,
    ranges: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run trials of every method and keep the best settings of each.

    Trials never see a private user: part of the open users play their role, around a foundation that was pre-trained on
    the rest. Trial 0 of a method is its preset, trial 1 what the file of ranges has every method try, and
    the others draw from the ranges of that file.
    Finished trials are kept: called again with the same folder, only what is missing is run. Work is done in processes
    of their own; a script that calls this guards itself with ``if __name__ == "__main__":``.

    Parameters
    ----------
    dataset : Dataset
    out : path
        Folder to make, or to go on with: ``trials.json`` holds every trial, ``chosen.yaml`` the best of each method.
    methods : "all" or sequence of str
        ``method`` or ``method+preset``.
    task : {"click", "topk"}
    trials : int
        Of every method; a method with nothing to choose gets one.
    seed : int
        Of the division into pseudo-open and pseudo-private users, the foundation, all draws and all trials.
    jobs : int, optional
        Methods side by side; by default one per core. Trials of one method run one after another.
    ranges : path, optional
        Another file of ranges.
    settings : mapping, optional
        Over the preset's in every trial of every method that has them; no longer drawn.
    progress : bool
        Draw a bar on standard error.
    say : callable
        Takes lines for a person.

    Returns
    -------
    dict
        ``chosen`` by spec, and ``failed``, the number of trials that raised an error, by spec.

    Raises
    ------
    ConfigError
        If Optuna is missing, or a method, task, setting or range is unknown or invalid.
    ArtifactError
        If `out` is something else or in use.
    """
    out = Path(out)
    specs = compared_methods(methods)
    check_task(task)
    for name, number, least in (("trials", trials, 1), ("jobs", jobs, 1), ("seed", seed, 0)):
        if number is not None and number < least:
            raise ConfigError(f"{name}: found {number}, expected at least {least}", "give a larger number")
    given = load_ranges(ranges)
    mine = applicable(settings or {}, specs)
    with claimed(out, "tuning") as scratch, _storage(out) as storage:
        pseudo = _pseudo(dataset, task, seed, out / "work", say)
        studies = {spec: _study(storage, spec, given, mine[spec], task, pseudo, seed) for spec in specs}
        with Workers(jobs or len(os.sched_getaffinity(0))) as workers:
            work = Trials(studies, dataset, pseudo, out, scratch, workers, task, trials, seed, mine, say)
            work.run(progress)
        return work.result()


@contextlib.contextmanager
def _storage(out: Path) -> Iterator[BaseStorage]:
    try:
        import optuna
    except ImportError:
        raise ConfigError("tuning needs Optuna, which is not installed", 'pip install "fedpa[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # One process reads and writes it, so SQLite's own journal is all that a killed run needs to be whole.
    storage = optuna.storages.RDBStorage(f"sqlite:///{(out / 'studies.db').resolve()}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _pseudo(dataset: Dataset, task: str, seed: int, work: Path, say: Say) -> Dataset:
    """The open users of a data set, divided anew."""
    from fedpa.data.pseudo import pseudo_private

    path = work / f"pseudo-{dataset.hash[:12]}-{seed}"
    if path.is_dir():
        divided = load_dataset(path)
    else:
        say("dividing the open users into pseudo-open and pseudo-private ones")
        divided = pseudo_private(dataset, path, seed=seed)
    return task_dataset(divided, task, work, say)


def _study(
    storage: BaseStorage,
    spec: str,
    ranges: Ranges,
    settings: Mapping[str, Any],
    task: str,
    pseudo: Dataset,
    seed: int,
) -> MethodStudy:
    """A method's study, named after all that its trials depend on."""
    from fedpa.tuning.study import MethodStudy

    name, preset = parse_spec(spec)
    full = find_method(name).configured(preset, settings).settings.model_dump()
    offered = {key: found for key, found in ranges.of(spec).items() if key not in settings}
    drawn = {key: found.model_dump(mode="json") for key, found in offered.items()}
    tried = {key: value for key, value in ranges.tried(spec).items() if key not in settings}
    depends = [task, spec, pseudo.hash, seed, version("fedpa"), plain(full), drawn, tried]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return MethodStudy(storage, f"{task} {spec} {digest}", offered, full, seed, tried)
