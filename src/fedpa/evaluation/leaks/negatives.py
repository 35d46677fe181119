"""Negatives that were drawn with knowledge of the test item."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedpa.data.dataset import Dataset
from fedpa.data.split import Part
from fedpa.evaluation.leaks.chance import poisson_tails
from fedpa.evaluation.leaks.leak import ALPHA, Leak, has_drawn_negatives

__all__ = ["sampled_negatives"]


def sampled_negatives(dataset: Dataset) -> list[Leak]:
    """Compare how often users' negatives hold their own test item with how often other users' hold it.

    A sampler that excludes everything a user ever interacted with never draws the test item, so among the
    items without a training click the test item is the one that is never called negative.

    Of all draws of an item, those by users tested on it are a share that is known from the number of
    draws, weighted by ``n / (n - training clicks)`` because a user with more clicks has fewer items to draw from.
    So the count is one of independent draws, whatever the items' chances: the sampler may be uniform or
    follow popularity. Users with a click on the item outside the test part are left out of the comparison.
    """
    if not has_drawn_negatives(dataset):
        return []
    n_items, label, part = dataset.n_items, dataset.label, dataset.part
    pair = dataset.user.astype(np.int64) * n_items + dataset.item
    drawn = pair[(label == 0) & (part == Part.TRAIN)]
    tested = np.unique(pair[(label == 1) & (part == Part.TEST)])
    known = np.unique(pair[(label == 1) & (part != Part.TEST)])
    tested = np.setdiff1d(tested, known, assume_unique=True)
    if not len(drawn) or not len(tested):
        return []
    learned = np.unique(pair[(label == 1) & (part == Part.TRAIN)])
    clicks = np.bincount(learned // n_items, minlength=dataset.n_users)
    weight = np.bincount(drawn // n_items, minlength=dataset.n_users) * n_items / np.maximum(n_items - clicks, 1)

    def total(pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weighted draws of the users of some pairs, per item; shape ``[n_items]``."""
        return np.bincount(pairs % n_items, weights=weight[pairs // n_items], minlength=n_items).astype(np.float64)

    own = drawn[np.isin(drawn, tested)]
    others = drawn[~np.isin(drawn, tested) & ~np.isin(drawn, known)]
    of_tested = total(tested)
    of_others = weight.sum() - of_tested - total(known)
    draws = np.bincount(own % n_items, minlength=n_items) + np.bincount(others % n_items, minlength=n_items)
    share = of_tested / np.maximum(of_tested + np.maximum(of_others, 0.0), 1e-9)
    expected = float((draws * share).sum())
    few, many = poisson_tails(len(own), expected)
    chance = min(1.0, 2 * min(few, many))
    if chance >= ALPHA:
        return []
    missing = len(own) < expected
    return [
        Leak(
            level="leak",
            kind="negatives",
            where="interactions.parquet, training rows without a click",
            found=f"the user's own test item is {len(own):,} times among {len(drawn):,} drawn negatives: the sampler "
            f"{'avoids' if missing else 'prefers'} it",
            expected=f"about {expected:,.1f} times, as often as users draw it who are not tested on it",
            evidence=len(own) / expected if expected else float("inf"),
            p_value=chance,
        )
    ]
