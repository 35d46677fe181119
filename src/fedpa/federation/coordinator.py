"""The loop of every run, whatever its driver: score, decide, train, aggregate, checkpoint."""

from __future__ import annotations

import functools
import json
import logging
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from torch import Tensor

from fedpa.durable import append, replace, write_file
from fedpa.errors import ArtifactError, ConfigError
from fedpa.evaluation.sums import ClickSums
from fedpa.federation.generations import Generations
from fedpa.federation.intake import MOST_ROWS, Intake
from fedpa.federation.node import SPLITS
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.server import FRACTION_BITS, Server, Upload
from fedpa.federation.upload import diverged
from fedpa.federation.wire import pack_report
from fedpa.progress import Advance
from fedpa.settings import Settings
from fedpa.telemetry import logs as telemetry

if TYPE_CHECKING:
    from fedpa.drivers.driver import Driver

__all__ = [
    "Coordinator",
    "Outcome",
    "check_kept",
    "checkpoints",
    "erase_downlink",
    "last_accepted",
    "round_line",
    "saved_round",
    "server_generations",
    "split_values",
]

_log = logging.getLogger(__name__)
_STATE = "state.safetensors"
_LINES = "metrics.jsonl"
_LEAST_KEPT = 2
Accepted = dict[int, int]


def checkpoints(run: Path) -> Path:
    """Where a run keeps the generations of its server and of the nodes that share its disk."""
    return run / "checkpoints"


def check_kept(rounds: int) -> None:
    """Refuse to keep so few rounds that one damaged file loses the run.

    Raises
    ------
    ConfigError
    """
    if rounds < _LEAST_KEPT:
        raise ConfigError(f"keep_rounds: expected {_LEAST_KEPT} or more, found {rounds}")


def server_generations(run: Path, *, sync: bool = True) -> Generations:
    """The generations of a run's server."""
    return Generations(checkpoints(run) / "server", "state of a server", sync=sync)


def saved_round(run: Path, number: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What was noted of a round that can be gone back to, and `Server.saved` after it.

    Raises
    ------
    ArtifactError
        If the round is not kept, or damaged.
    """
    if not (checkpoints(run) / "server").is_dir():
        raise ArtifactError(f"{run}: keeps no rounds")
    generations = server_generations(run)
    about = generations.about(number)
    return about, _read_state(generations, number)


def last_accepted(run: Path) -> dict[int, Accepted]:
    """By round that a run could go back to when it ended, the generation of every node.

    Raises
    ------
    ArtifactError
        If its last round is damaged.
    """
    generations = server_generations(run)
    return _accepted_of(generations.about(max(generations.numbers())))


def erase_downlink(run: Path, user: int) -> None:
    """Take what one user, by number, was to receive out of every round that a run keeps.

    Raises
    ------
    ArtifactError
        If a round is damaged.
    """
    if not (checkpoints(run) / "server").is_dir():
        return
    generations = server_generations(run)
    for number in generations.numbers():
        about, saved = generations.about(number), _read_state(generations, number)
        sent = [name.removesuffix(".users") for name in saved if name.endswith(".users")]
        kept = {name: saved[f"{name}.users"] != user for name in sent}
        if all(bool(here.all()) for here in kept.values()):
            continue
        for name, here in kept.items():
            saved |= {f"{name}.{part}": saved[f"{name}.{part}"][here] for part in ("users", "ids", "values")}
        draft = generations.draft(number)
        write_file(draft.path / _STATE, safetensors.torch.save(saved), sync=False)
        draft.publish(about)


@dataclass
class Outcome:
    """What a run came to.

    Attributes
    ----------
    best_round : int
        By validation.
    state : list of Tensor
        The server's after that round.
    generations : dict of int to int
        Per node, that of what its devices kept by then.
    kept : dict of int to dict
        The same for every round that can be gone back to.
    lines : list of dict
        One per round, from 0.
    interrupted : bool
        Whether it was stopped before its time.
    """

    best_round: int
    state: list[Tensor]
    generations: Accepted
    kept: dict[int, Accepted]
    lines: list[dict[str, Any]]
    interrupted: bool


class Coordinator:
    """Runs the rounds of a run.

    After every round the server's state is a generation in the run's folder, and so is, on each node, what its devices
    keep. A run that was stopped in any way goes on from the last round of which all is there and undamaged.

    Parameters
    ----------
    server : Server
    driver : Driver
    settings : Settings
    folder : Path
        Of the run.
    run : str
        Its id; orders and reports carry it.
    keep_rounds : int
        How many of the last rounds to keep, beside the best.
    sync : bool
        Whether checkpoints outlive a crash of the machine.
    users : mapping of int to int, optional
        How many users each node has said that it has; more of them cannot take part.
    observe : callable, optional
        Called with what was noted of every round.

    Raises
    ------
    ConfigError
        If too few rounds are to be kept.
    """

    def __init__(
        self,
        server: Server,
        driver: Driver,
        settings: Settings,
        folder: Path,
        *,
        run: str,
        keep_rounds: int = _LEAST_KEPT,
        sync: bool = True,
        users: Mapping[int, int] | None = None,
        observe: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        check_kept(keep_rounds)
        self.server, self.driver, self.settings, self.folder, self.run_id = server, driver, settings, folder, run
        self._generations = server_generations(folder, sync=sync)
        self._keep_rounds = keep_rounds
        self._users: Mapping[int, int] = {} if users is None else users  # it may grow
        self._observe = observe
        self.number = 0
        self.lines: list[dict[str, Any]] = []
        self._pending: dict[str, Any] = round_line(0, Upload([], []), settings, 0.0)
        self._accepted: dict[int, Accepted] = {0: {}}  # by round that is kept
        self._best_round, self._best, self._stale = 0, float("-inf"), 0

    def begin_at(self, number: int) -> None:
        """Write the server's state as that after a round of which every node holds what its devices kept.

        A run that goes on from another one begins there.
        """
        self.number = self._best_round = number
        self._pending = round_line(number, Upload([], []), self.settings, 0.0)
        self._accepted = {number: dict.fromkeys(self.driver.nodes, number)}
        self._checkpoint()

    def run(self, advance: Advance) -> Outcome:
        """Start or go on, to the end.

        Parameters
        ----------
        advance : callable
            Called after every round.
        """
        with telemetry.about(run=self.run_id):
            return self._run(advance)

    def _run(self, advance: Advance) -> Outcome:
        held = self.driver.start()
        if not self._resume(held):
            self._checkpoint()
        interrupted = False
        try:
            while True:
                last = self.number >= self.settings.rounds
                order = Order(
                    self.run_id, self.number + 1, tuple(self.server.state), self.server.downlink, train=not last
                )
                bases = {node: self._base(node) for node in self.driver.nodes}
                with telemetry.about(round=self.number):
                    value = self._evaluate(order, bases)
                if self.number:
                    advance(f"val {self.settings.select} {abs(value):.4f}")
                if last or (self.settings.patience and self._stale >= self.settings.patience):
                    break
                with telemetry.about(round=order.number):
                    self._train(order, bases)
        except KeyboardInterrupt:
            if not self.lines:
                raise
            interrupted = True
        return self._outcome(interrupted)

    def _evaluate(self, order: Order, bases: Mapping[int, Base]) -> float:
        """Score the state, note the round that made it, and see whether it is the best."""
        begin = time.perf_counter()
        answers = self.driver.evaluate(order, bases)
        values = split_values({name: _added(answers, name) for name in SPLITS})
        line = {**self._pending, "seconds_eval": round(time.perf_counter() - begin, 4), **values}
        self.lines.append(line)
        _log.info("round completed", extra={"fields": line})
        if self._observe is not None:
            self._observe(line)
        append(self.folder / _LINES, _line(line).encode())
        value = self._selected(values["val"])
        if value > self._best:
            self._best, self._best_round, self._stale = value, self.number, 0
        else:
            self._stale += 1
        return value

    def _train(self, order: Order, bases: Mapping[int, Base]) -> None:
        begin = time.perf_counter()
        reports = self.driver.train(order, bases)
        intake = self._taken(order, bases, reports)
        upload = intake.total()
        alone = {table.table for table in order.downlink}
        apart = sum(v.size for v in self.server.layout.uploaded if v.table is not None and v.table.name in alone)
        upload.weights_down += apart * upload.participants
        self.server.step(upload)
        self.number = order.number
        before = self._accepted[order.number - 1]
        self._accepted[self.number] = before | dict.fromkeys(intake.accepted, order.number)
        self._pending = round_line(self.number, upload, self.settings, time.perf_counter() - begin)
        refusals = self.driver.refusals()
        refused = intake.refused + Counter(reason for _, reason in refusals)
        self._pending |= {
            "nodes": len(intake.accepted),
            "late": len(bases.keys() - reports.keys() - {node for node, _ in refusals}),
            "refused": dict(sorted(refused.items())),
        }
        self._checkpoint()

    def _taken(self, order: Order, asked: Iterable[int], reports: Mapping[int, Report]) -> Intake:
        """What nodes that were asked reported, as far as it can be true; some of them may be gone by now."""
        layout, settings = self.server.layout, self.settings
        known = {node: self._users.get(node, MOST_ROWS) for node in asked}
        intake = Intake(layout, settings, order.run, order.number, known)
        for node, report in reports.items():
            intake.offer(*pack_report(layout, settings, report), sender=node)
        if intake.refused["bound"] == len(reports) > 0:
            raise diverged("of every node")
        return intake

    def _base(self, node: int) -> Base:
        kept = {accepted.get(node, 0) for accepted in self._accepted.values()}
        return Base(self._accepted[self.number].get(node, 0), tuple(sorted(kept)))

    def _checkpoint(self) -> None:
        """Write the generation of this round, then drop those that are not kept."""
        recent = range(self.number, self.number - self._keep_rounds, -1)
        self._accepted = {n: self._accepted[n] for n in {*recent, self._best_round} if n in self._accepted}
        draft = self._generations.draft(self.number)
        write_file(draft.path / _STATE, safetensors.torch.save(self.server.saved()), sync=False)
        draft.publish(
            {
                "run": self.run_id,
                "accepted": {
                    str(n): {str(node): generation for node, generation in accepted.items()}
                    for n, accepted in self._accepted.items()
                },
                "best_round": self._best_round,
                "best": None if self._best == float("-inf") else self._best,
                "stale": self._stale,
                "lines": self.lines,
                "pending": self._pending,
            }
        )
        self._generations.keep(self._accepted)

    def _resume(self, held: Mapping[int, list[int]]) -> bool:
        """Go back to the last round of which all is there; False if there is none.

        Raises
        ------
        ArtifactError
            If there are checkpoints, but none is whole.
        """
        found = self._generations.good()
        if not found and not self._generations.numbers():
            return False
        rounds = {number: _accepted_of(found[number]) for number in sorted(found, reverse=True)}
        if self.driver.apart:  # one node's loss is not the others'
            number = max(rounds, default=None)
        else:
            number = next((n for n, accepted in rounds.items() if self._is_whole(n, accepted[n], held)), None)
        if number is None:
            raise ArtifactError(
                f"{self._generations.folder}: holds no round of which all is there and undamaged",
                "start the run anew with --overwrite",
            )
        newest = max(self._generations.numbers())
        if number < newest:
            _log.warning("round %d: is not whole; going on from round %d", newest, number)
        about = found[number]
        self.server.restore(self._state(number))
        self.number, self.lines, self._pending = number, about["lines"], about["pending"]
        self._accepted = {n: nodes for n, nodes in rounds[number].items() if n in found}
        self._best_round, self._stale = about["best_round"], about["stale"]
        self._best = float("-inf") if about["best"] is None else about["best"]
        best = self._accepted.get(self._best_round)
        if best is None or (not self.driver.apart and any(best.get(n, 0) not in held[n] for n in self.driver.nodes)):
            _log.warning("round %d, the best so far: is not whole; the best one from here on is kept", self._best_round)
            self._accepted.pop(self._best_round, None)
            self._best_round, self._best, self._stale = number, float("-inf"), 0
        write_lines(self.folder, self.lines)
        return True

    def _is_whole(self, number: int, accepted: Accepted, held: Mapping[int, list[int]]) -> bool:
        """Whether all nodes hold what their devices kept of a round."""
        missing = [n for n in self.driver.nodes if accepted.get(n, 0) not in held[n]]
        if missing:
            _log.warning(
                "round %d: node %s does not hold what its devices kept of it; an earlier round is looked for",
                number,
                ", ".join(map(str, missing)),
            )
        return not missing

    def _state(self, number: int) -> dict[str, Tensor]:
        return _read_state(self._generations, number)

    def _outcome(self, interrupted: bool) -> Outcome:
        best = self._best_round
        if interrupted or best != self.number:  # it may have been in the middle of moving
            self._generations.about(best)
            self.server.restore(self._state(best))
        self._generations.keep(self._accepted)  # a crash may have brought others back
        return Outcome(best, list(self.server.state), self._accepted[best], self._accepted, self.lines, interrupted)

    def _selected(self, values: Mapping[str, float | None]) -> float:
        """The validation value that picks the best round; higher is better."""
        select = self.settings.select
        pooled, within = values["auc"], values["gauc"]
        if select == "mean":
            found = None if pooled is None or within is None else (pooled + within) / 2
        else:
            found = values[select]
        sign = -1.0 if select == "logloss" else 1.0
        if found is None:
            found, sign = values["logloss"], -1.0
        return float(self.number) if found is None else sign * found


def _read_state(generations: Generations, number: int) -> dict[str, Tensor]:
    return safetensors.torch.load_file(generations.path(number) / _STATE)


def round_line(number: int, upload: Upload, settings: Settings, seconds: float) -> dict[str, Any]:
    """What is noted of a round's training, of so many seconds; its scores are noted beside it."""
    participants, size = upload.participants, settings.torch_dtype.itemsize
    unit = 2.0 ** -FRACTION_BITS[settings.torch_dtype]
    return {
        "round": number,
        "participants": participants,
        "train_loss": upload.loss * unit / participants if participants else None,
        "seconds_train": round(seconds, 4),
        "bytes_up": upload.weights_up * size,
        "bytes_down": upload.weights_down * size,
    }


def write_lines(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write ``metrics.jsonl`` of a run anew; it is on the disk when the run is finished."""
    replace(folder / _LINES, "".join(map(_line, lines)).encode(), sync=False)


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def write_shared(folder: Path, server: Server, foundation: str | None) -> None:
    """Write the server's state by parameter, with the foundation's hash; on the disk when the run is finished."""
    # One key: safetensors writes several in a random order.
    label = {"foundation": foundation or ""}
    replace(folder / "shared.safetensors", safetensors.torch.save(server.named(), label), sync=False)


def _accepted_of(about: Mapping[str, Any]) -> dict[int, Accepted]:
    """By round that could be gone back to, the generations of the nodes, as noted with a generation."""
    return {int(n): {int(node): generation for node, generation in a.items()} for n, a in about["accepted"].items()}


def _added(answers: Mapping[int, Sums], name: str) -> ClickSums:
    return functools.reduce(operator.add, (sums[name] for sums in answers.values()), ClickSums.zero())


def split_values(sums: Sums) -> dict[str, dict[str, Any]]:
    """AUC, GAUC and log-loss of the three splits; None where a split lacks rows or a class."""
    reports = {name: found.report() for name, found in sums.items()}
    return {name: {value: report[value] for value in ("auc", "gauc", "logloss")} for name, report in reports.items()}
