"""The trials of one method: which settings come next, and which were best. Needs the extra ``tune``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from fedpa.draws import derive_seed
from fedpa.tuning.ranges import Range

__all__ = ["MethodStudy", "Next"]

_RANDOM_TRIALS = 8
"""Trials before the sampler learns from those that went before."""


class Next(NamedTuple):
    """A trial to run.

    Attributes
    ----------
    number : int
        0 is the preset itself, 1 what every method tries, if that is anything else.
    settings : dict
        Over the preset's.
    handle : optuna.Trial or None
        None for what was not drawn.
    """

    number: int
    settings: dict[str, Any]
    handle: Trial | None


class MethodStudy:
    """Trials of one method, kept in a storage; one at a time.

    What is drawn for a trial depends on the seed, its number and the finished trials before it, so a study that was
    interrupted goes on as if it had not been.

    Parameters
    ----------
    storage : optuna.storages.BaseStorage
    name : str
        Names the study in the storage: all that its trials depend on.
    ranges : mapping
        What may be drawn, in this order.
    preset : mapping
        Settings of the preset, whose value is trial 0.
    seed : int
    tried : mapping
        Settings over the preset's, whose value is trial 1; none of them: there is no such trial.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        ranges: Mapping[str, Range],
        preset: Mapping[str, Any],
        seed: int,
        tried: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.ranges, self.preset, self.seed = name, ranges, preset, seed
        self.tried = dict(tried or {})
        self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        # Nobody else is at work in this storage: what is said to run was cut off.
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    @property
    def finished(self) -> list[FrozenTrial]:
        """Trials that ran to their end, well or not, in order."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if "settings" in trial.user_attrs]

    def next(self) -> Next:
        """Draw the settings of the next trial."""
        number = len(self.finished)
        if not number:
            return Next(0, {}, None)
        if number == 1 and self.tried:
            return Next(1, self.tried, None)
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_RANDOM_TRIALS, seed=derive_seed(self.seed, f"{self.name}/{number}") % 2**32
        )
        trial = self._study.ask()
        drawn: dict[str, Any] = {}
        for setting, found in self.ranges.items():
            if all(drawn.get(other, self.preset.get(other)) in values for other, values in found.when.items()):
                drawn[setting] = _draw(trial, setting, found)
        return Next(number, {key: value for key, value in drawn.items() if value != self.preset[key]}, trial)

    def tell(self, one: Next, value: float | None, **facts: Any) -> None:
        """Note a trial that ended; without a value it counts as run and is learnt nothing from."""
        facts = {"settings": one.settings, **facts}
        if one.handle is not None:
            for key, fact in facts.items():
                one.handle.set_user_attr(key, fact)
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self._study.tell(one.handle, value, state=state)
            return
        # These may lie outside of the ranges, which a trial that is asked for may not.
        full = {**self.preset, **one.settings}
        offered = {
            key: found
            for key, found in self.ranges.items()
            if found.contains(full[key]) and all(full[other] in found.when[other] for other in found.when)
        }
        self._study.add_trial(
            create_trial(
                state=TrialState.FAIL if value is None else TrialState.COMPLETE,
                value=value,
                params={key: full[key] for key in offered},
                distributions={key: _distribution(found) for key, found in offered.items()},
                user_attrs=facts,
            )
        )


def _distribution(found: Range) -> BaseDistribution:
    if found.choices is not None:
        choices: tuple[CategoricalChoiceType, ...] = found.choices
        return CategoricalDistribution(choices)
    if isinstance(found.low, int) and isinstance(found.high, int):
        return IntDistribution(found.low, found.high, log=found.log)
    return FloatDistribution(float(found.low or 0.0), float(found.high or 0.0), log=found.log)


def _draw(trial: Trial, setting: str, found: Range) -> Any:
    if found.choices is not None:
        return trial.suggest_categorical(setting, found.choices)
    if isinstance(found.low, int) and isinstance(found.high, int):
        return trial.suggest_int(setting, found.low, found.high, log=found.log)
    return trial.suggest_float(setting, float(found.low or 0.0), float(found.high or 0.0), log=found.log)
