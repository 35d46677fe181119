"""What a check found, and the rows that all checks agree to look at."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpa.data.dataset import Dataset
from fedpa.data.split import Part

__all__ = ["ALPHA", "Leak", "has_drawn_negatives", "shown"]

ALPHA = 1e-3
"""Chance that a check speaks up on sound data, over all the columns it looks at."""

_FEWEST_USERS = 20


class Leak(NamedTuple):
    """Something by which the test rows can be known beforehand.

    Attributes
    ----------
    level : {"leak", "warning"}
        A warning needs a person's judgement: sound data can look like this too.
    kind : {"negatives", "counts", "running-counts", "own-labels", "item-column", "item-numbering"}
    where : str
        File and column, or part.
    found, expected : str
        What there is, and what a sound data set has.
    evidence : float
        The figure that the judgement rests on; `found` says which.
    p_value : float
        Chance of such a figure in sound data, corrected for the number of tests, or a bound on it; 0 where the
        comparison is exact.
    """

    level: Literal["leak", "warning"]
    kind: str
    where: str
    found: str
    expected: str
    evidence: float
    p_value: float

    def __str__(self) -> str:
        chance = "exact" if self.p_value == 0 else f"p = {self.p_value:.1g}"
        return f"{self.level}: {self.kind} in {self.where}: {self.found}; expected {self.expected} ({chance})"


def has_drawn_negatives(dataset: Dataset) -> bool:
    """Whether the training rows without a click were drawn, as in leave-one-out data.

    The settings say so, or every user who is tested has exactly one clicked test row.
    """
    if str(dataset.manifest["settings"].get("split", "")).replace("_", "-") == "leave-one-out":
        return True
    rows = dataset.rows(Part.TEST)
    tested = np.bincount(dataset.user[rows], minlength=dataset.n_users)
    clicked = np.bincount(dataset.user[rows], weights=dataset.label[rows], minlength=dataset.n_users)
    users = tested > 0
    return int(users.sum()) >= _FEWEST_USERS and bool((clicked[users] == 1).all())


def shown(dataset: Dataset) -> NDArray[np.int64]:
    """Rows that say how popular an item is: neither randomly exposed nor drawn; shape ``[rows]``."""
    chosen = dataset.part < Part.UNBIASED
    if has_drawn_negatives(dataset):
        chosen &= dataset.label == 1
    return np.flatnonzero(chosen).astype(np.int64)
