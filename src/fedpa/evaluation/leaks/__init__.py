"""Whether a prepared data set, or a function that builds inputs from labels, lets the test rows be known beforehand."""

from __future__ import annotations

from fedpa.data.dataset import Dataset
from fedpa.evaluation.leaks.columns import item_columns
from fedpa.evaluation.leaks.counters import future_counts, own_labels, running_counts
from fedpa.evaluation.leaks.leak import ALPHA, Leak
from fedpa.evaluation.leaks.negatives import sampled_negatives
from fedpa.evaluation.leaks.numbering import item_numbering
from fedpa.evaluation.leaks.perturbation import moves_with_the_future

__all__ = ["ALPHA", "Leak", "check_leaks", "moves_with_the_future"]


def check_leaks(dataset: Dataset) -> list[Leak]:
    """Look for the known faults of evaluation in a prepared data set.

    Counts are compared exactly. What can only be judged by chance is tested, and every one of the checks stays
    silent on sound data with a probability of at least ``1 - ALPHA``, however many columns it looks at.

    Parameters
    ----------
    dataset : Dataset
        Only its folder is read; the raw tables are not.

    Returns
    -------
    list of Leak
        What was found, leaks before warnings; empty for a sound data set.
    """
    found = [
        *sampled_negatives(dataset),
        *future_counts(dataset),
        *running_counts(dataset),
        *own_labels(dataset),
        *item_columns(dataset),
        *item_numbering(dataset),
    ]
    return sorted(found, key=lambda leak: leak.level)
