"""Runs the trials that are missing, methods side by side, and keeps what they found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpa.artifacts import replace_file, write_json
from fedpa.comparison.measure import make_foundation, plain
from fedpa.comparison.meter import Meter
from fedpa.comparison.plan import Say
from fedpa.comparison.workers import Outcome, Workers
from fedpa.data.dataset import Dataset
from fedpa.errors import FedpaError
from fedpa.methods import find_method, parse_spec
from fedpa.tuning.chosen import Chosen, write_chosen
from fedpa.tuning.trial import run_trial

if TYPE_CHECKING:
    from fedpa.tuning.study import MethodStudy, Next

__all__ = ["Trials", "best_settings"]


class Trials:
    """Gives workers the next trial of whichever method has the fewest."""

    def __init__(
        self,
        studies: Mapping[str, MethodStudy],
        dataset: Dataset,
        pseudo: Dataset,
        out: Path,
        scratch: Path,
        workers: Workers,
        task: str,
        trials: int,
        seed: int,
        settings: Mapping[str, Mapping[str, Any]],
        say: Say,
    ) -> None:
        self.studies, self.dataset, self.pseudo, self.out, self.scratch = studies, dataset, pseudo, out, scratch
        self.workers, self.task, self.seed, self.settings, self.say = workers, task, seed, settings, say
        self.wanted = {spec: trials if study.ranges else 1 for spec, study in studies.items()}
        self.done = {spec: min(len(study.finished), self.wanted[spec]) for spec, study in studies.items()}
        self.running: dict[str, Next] = {}
        self.seconds: list[float] = []

    def run(self, progress: bool) -> None:
        """Run all trials that are missing."""
        total = sum(self.wanted.values())
        self.say(f"{total} trials, {sum(self.done.values())} of them finished")
        self._write()
        try:
            foundation = self._foundation()
            with Meter(total, progress, self.say) as meter:
                while self._missing() or self.running:
                    while self.workers.free and (
                        ready := [spec for spec in self._missing() if spec not in self.running]
                    ):
                        self._give(min(ready, key=lambda spec: self.done[spec]), foundation)
                    for outcome in self.workers.wait(1.0):
                        line = self._take(outcome)
                        meter.line(line, sum(self.done.values()), self._left())
                    meter.show(sum(self.done.values()), self._left(), list(self.running))
        except KeyboardInterrupt:
            done = sum(self.done.values())
            self.say(f"{done} of {total} trials are finished and kept: the same command goes on from there")
            raise

    def result(self) -> dict[str, Any]:
        """What was chosen."""
        best = best_settings(self._lines())
        return {
            "task": self.task,
            "chosen": {spec: vars(best[self.task, spec]) for spec in self.studies},
            "failed": {
                spec: failed
                for spec, study in self.studies.items()
                if (failed := sum(trial.user_attrs.get("error") is not None for trial in study.finished))
            },
        }

    def _missing(self) -> list[str]:
        return [spec for spec, wanted in self.wanted.items() if self.done[spec] < wanted]

    def _left(self) -> float:
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else 0.0
        left = [self.wanted[spec] - self.done[spec] for spec in self.wanted]
        # Trials of one method follow one another.
        return mean * max(sum(left) / self.workers.jobs, *left)

    def _foundation(self) -> Path | None:
        """Pre-train on the pseudo-open users, once."""
        if not any(map(_reads_foundation, self._missing())):
            return None
        path = self.out / "work" / f"foundation-{self.pseudo.hash[:12]}-{self.seed}"
        if not path.is_dir():
            self.say("pre-training a foundation on the pseudo-open users")
            arguments = (str(self.pseudo.path.resolve()), str(path), self.seed)
            self.workers.submit("foundation", make_foundation, *arguments)
            outcome = self.workers.wait()[0]
            if outcome.error is not None:
                raise FedpaError(f"pre-training on the pseudo-open users failed: {outcome.error}")
        return path

    def _give(self, spec: str, foundation: Path | None) -> None:
        self.running[spec] = one = self.studies[spec].next()
        self.workers.submit(
            spec,
            run_trial,
            str(self.pseudo.path.resolve()),
            str(foundation) if foundation is not None and _reads_foundation(spec) else None,
            spec,
            {**self.settings[spec], **one.settings},
            self.seed,
            str(self.scratch),
        )

    def _take(self, outcome: Outcome) -> str:
        spec = outcome.key
        one = self.running.pop(spec)
        found = outcome.value or {"value": None}
        error = outcome.error
        if error is None and found["value"] is None:
            error = "validation rows lack a class, so that there is no AUC or GAUC"
        value = found.pop("value")
        self.studies[spec].tell(one, value, **found, error=error, seconds=round(outcome.seconds, 3))
        self.done[spec] += 1
        self.seconds.append(outcome.seconds)
        self._write()
        what = f"failed: {error}" if value is None else f"{value:.4f} {one.settings or 'preset'}"
        return f"{spec} trial {one.number}: {what}"

    def _write(self) -> None:
        """Every trial, and the best of each method; what other calls found on the same data set stays."""
        file = self.out / "trials.json"
        kept = []
        if file.is_file():
            kept = [
                line
                for line in json.loads(file.read_text(encoding="utf-8"))
                if line["dataset"] == self.dataset.hash
                and not (line["task"] == self.task and line["spec"] in self.studies)
            ]
        lines = sorted([*kept, *self._lines()], key=lambda line: (line["task"], line["spec"], line["number"]))
        with replace_file(file) as fresh:
            write_json(fresh, plain(lines))
        write_chosen(self.out / "chosen.yaml", best_settings(lines))

    def _lines(self) -> list[dict[str, Any]]:
        return [
            {
                "task": self.task,
                "spec": spec,
                "dataset": self.dataset.hash,
                "number": number,
                "value": trial.value,
                **trial.user_attrs,
            }
            for spec, study in self.studies.items()
            for number, trial in enumerate(study.finished)
        ]


def _reads_foundation(spec: str) -> bool:
    name, preset = parse_spec(spec)
    return find_method(name).configured(preset, {}).reads_foundation


def best_settings(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Chosen]:
    """The best trial of every task and spec; `lines` are those of ``trials.json``, in order."""
    by_spec: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        by_spec.setdefault((line["task"], line["spec"]), []).append(line)
    found = {}
    for key, trials in by_spec.items():
        # Of equal values the first: the preset wins over what is no better.
        top = max(trials, key=lambda line: -float("inf") if line["value"] is None else line["value"])
        found[key] = Chosen(dict(top["settings"]), len(trials), top["value"], trials[0]["value"])
    return found
