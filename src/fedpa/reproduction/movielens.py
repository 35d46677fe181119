"""FedMF, FedNCF, FedRecon and PFedRec on MovieLens as PFedRec's paper compares them, beside its figures.

The protocol is that of the code published with Zhang et al., *Dual Personalization on Federated Recommendation*, IJCAI
2023: all ratings are positives and all users private devices; a user's latest item is for the test, the one before it
for validation; 4 negatives per training positive; both items are ranked among 99 drawn ones (HR@10, NDCG@10), and the
round with the best validation HR@10 counts. See `fedpa.reproduction.negatives` for its leak.
"""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpa.artifacts import publish, write_json
from fedpa.errors import ConfigError
from fedpa.evaluation.bootstrap import interval_of
from fedpa.evaluation.weighted import drawn_users, mean_of_drawn
from fedpa.methods import FederatedMethod, find_method
from fedpa.progress import progress_bar
from fedpa.reproduction.negatives import PROTOCOLS, Protocol
from fedpa.reproduction.published import PUBLISHED, ROUNDS, SOURCE, UNCITED, departures
from fedpa.reproduction.ratings import Ratings, read_ratings
from fedpa.reproduction.rounds import SAMPLED, K, Line, Outcome, Task, drawn_places, run_rounds, whole_catalogue
from fedpa.reproduction.tables import markdown

__all__ = ["METHODS", "METRICS", "popularity", "reproduce"]

METHODS = ("fedmf", "fedncf", "fedrecon", "pfedrec")
METRICS = ("hr", "ndcg", "whole_hr", "whole_ndcg")
"""At 10: among drawn items, as published, and in the whole catalogue."""

Floats = NDArray[np.float64]
Results = dict[str, Any]
_LEVEL = 0.95
_KINDS = ("hr", "ndcg")


def reproduce(
    name: str,
    raw: Path | str,
    *,
    out: Path | str | None = None,
    methods: Sequence[str] = METHODS,
    protocol: Protocol | Literal["both"] = "after-split",
    rounds: int = ROUNDS,
    seeds: int = 1,
    redraw: bool = True,
    draws: int = 1000,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Results:
    """Run the methods and put the published values beside theirs.

    Parameters
    ----------
    name : {"movielens-100k", "movielens-1m"}
    raw : Path
        The folder of the official files.
    out : Path, optional
        Folder to write, with ``results.json`` and ``results.md``; it appears when all runs are done.
    methods : sequence of str
        Some of `METHODS`.
    protocol : {"after-split", "published", "both"}
        When negatives are drawn; see `fedpa.reproduction.negatives`.
    rounds : int
        Published are 100.
    seeds : int
        Runs of every method.
    redraw : bool
        Draw training negatives anew in every round, as published.
    draws : int
        Of users, and of runs within, for 95% intervals.
    settings : mapping, optional
        Changes of preset ``published``.
    overwrite : bool
        Replace `out` if it exists.
    progress : bool
        Draw bars on standard error.
    say : callable
        Told how long each run will take, after its first round.

    Returns
    -------
    dict
        As in ``results.json``; values are shares. `fedpa.reproduction.tables` shows them.

    Raises
    ------
    ConfigError
        If the data set, a method or an option is unknown or out of range.
    DataError
        If a file is missing or is not what it must be.
    ArtifactError
        If `out` exists.
    """
    chosen = _chosen(methods, protocol, rounds, seeds, draws, settings or {})
    ratings = read_ratings(name, Path(raw))
    with contextlib.nullcontext() if out is None else publish(Path(out), overwrite=overwrite) as room:
        rows: list[Results] = []
        values: dict[tuple[str, str], Floats] = {}
        for each in PROTOCOLS if protocol == "both" else (protocol,):
            tasks = [Task.drawn(ratings, each, seed) for seed in range(seeds)]
            found = [popularity(task) for task in tasks]
            rows.append(_row(ratings, "popularity", each, found, draws))
            for title, method in chosen.items():
                found = [_run(title, method, task, redraw, progress, say) for task in tasks]
                row = _row(ratings, title, each, found, draws)
                values[title, each] = _values(found)
                parts = departures(title, each, rounds=rounds, redraw=redraw, settings=settings or {})
                rows.append(row | {"departures": [part._asdict() for part in parts]})
        results = {
            "kind": "reproduction",
            "fedpa": version("fedpa"),
            "data": {
                "name": name,
                "users": ratings.n_users,
                "items": ratings.n_items,
                "ratings": len(ratings.user),
            },
            "source": SOURCE,
            "uncited": UNCITED.get(name),
            "k": K,
            "sampled": SAMPLED,
            "rounds": rounds,
            "seeds": seeds,
            "negatives": "fresh" if redraw else "once",
            "settings": {title: method.settings.model_dump(mode="json") for title, method in chosen.items()},
            "rows": rows,
            "after_split_minus_published": _effects(chosen, values, draws) if protocol == "both" else {},
        }
        if room is not None:
            write_json(room / "results.json", results)
            (room / "results.md").write_text(markdown(results), encoding="utf-8")
    return results


def popularity(task: Task) -> Outcome:
    """The order by number of training positives: no method, but what every method should beat."""
    ratings = task.ratings
    count = np.bincount(ratings.item[ratings.nth > 1], minlength=ratings.n_items)

    def score(users: NDArray[np.int64], items: NDArray[np.int64]) -> Floats:
        return count[items].astype(np.float64)

    return Outcome(drawn_places(score, task)[1], whole_catalogue(score, ratings), best_round=0)


def _chosen(
    methods: Sequence[str], protocol: str, rounds: int, seeds: int, draws: int, settings: Mapping[str, Any]
) -> dict[str, FederatedMethod]:
    for key, value, least in (("rounds", rounds, 1), ("seeds", seeds, 1), ("draws", draws, 2)):
        if value < least:
            raise ConfigError(f"{key}: found {value}, expected {least} or more", "give a larger number")
    if protocol not in (*PROTOCOLS, "both"):
        raise ConfigError(f"protocol: found {protocol!r}, expected {', '.join(PROTOCOLS)} or both")
    if unknown := [method for method in methods if method not in METHODS]:
        near = difflib.get_close_matches(unknown[0], METHODS, 1, cutoff=0.7)
        fix = f"write {near[0]}" if near else "leave it out"
        raise ConfigError(f"methods: found {unknown[0]!r}, expected some of {', '.join(METHODS)}", fix)
    if not methods:
        raise ConfigError("methods: found none", f"name some of {', '.join(METHODS)}")
    if "rounds" in settings:
        raise ConfigError("rounds is an option of its own", "use --rounds")
    found = {}
    for title in dict.fromkeys(methods):
        method = find_method(title).configured("published", {**settings, "rounds": rounds})
        if not isinstance(method, FederatedMethod) or method.reads_foundation:
            raise ConfigError(f"method {title}: with these settings it needs a foundation", "leave them out")
        found[title] = method
    return found


def _run(
    title: str, method: FederatedMethod, task: Task, redraw: bool, progress: bool, say: Callable[[str], None]
) -> Outcome:
    """One run, which says how long it takes."""
    what = f"{title}, {task.protocol}, seed {task.seed}"
    rounds = method.settings.rounds
    with (
        tempfile.TemporaryDirectory(prefix="fedpa-") as folder,
        progress_bar(what, rounds, progress) as advance,
    ):

        def after(line: Line) -> None:
            if line.round == 1:
                minutes = line.seconds * rounds / 60
                say(f"{what}: {line.seconds:.1f} s a round, about {minutes:.0f} minutes for {rounds} rounds")
            advance(f"val HR@{K} {line.val_hr:.4f}")

        return run_rounds(method, task, Path(folder), redraw=redraw, advance=after)


def _values(outcomes: Sequence[Outcome]) -> Floats:
    """Every user's metrics [runs, METRICS, users]."""
    return np.stack(
        [
            [places.hr(K) if kind == "hr" else places.ndcg(K) for places in (one.sampled, one.whole) for kind in _KINDS]
            for one in outcomes
        ]
    )


def _row(ratings: Ratings, title: str, protocol: Protocol, outcomes: Sequence[Outcome], draws: int) -> Results:
    measured = _intervals(_values(outcomes), draws)
    published = PUBLISHED[ratings.name].get(title)
    lines = [line for one in outcomes for line in one.lines]
    return {
        "method": title,
        "protocol": protocol,
        "published": None if published is None else published._asdict(),
        "metrics": measured,
        "gap": None
        if published is None
        else {kind: measured[kind]["value"] - value for kind, value in published._asdict().items()},
        "best_rounds": [one.best_round for one in outcomes],
        "stopped": [one.stopped for one in outcomes],
        "seconds_per_round": sum(line.seconds for line in lines) / len(lines) if lines else None,
        "departures": [],
        "runs": [[asdict(line) for line in one.lines] for one in outcomes],
    }


def _effects(titles: Mapping[str, Any], values: Mapping[tuple[str, str], Floats], draws: int) -> Results:
    """By method how much lower it is when negatives are drawn after the split, on the same draws of users."""
    return {title: _intervals(values[title, "after-split"] - values[title, "published"], draws) for title in titles}


def _intervals(values: Floats, draws: int) -> dict[str, dict[str, float | None]]:
    """Means over users and runs with 95% intervals over draws of users, and of runs within.

    Parameters
    ----------
    values : float64 array [runs, METRICS, users]
    draws : int
    """
    runs, _, users = values.shape
    found = np.concatenate(list(_drawn_means(values, runs, users, draws)), axis=1)
    return {
        name: interval_of(float(values[:, place].mean()), found[place], _LEVEL)._asdict()
        for place, name in enumerate(METRICS)
    }


def _drawn_means(values: Floats, runs: int, users: int, draws: int) -> Iterator[Floats]:
    for drawn in drawn_users(users, [runs], draws, 0, users):
        yield mean_of_drawn(values @ drawn.weights / users, drawn.runs)
