"""Make a transformer reader of open users' sequences, and evidence to train a backbone on that does not flatter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpa.data.dataset import Dataset
from fedpa.data.past import Queries
from fedpa.draws import derive_seed, uniform, user_keys
from fedpa.models.history.encoder_fit import Loss, fit_encoder
from fedpa.models.history.light import LightHistory
from fedpa.models.history.transformer import TransformerHistory

if TYPE_CHECKING:
    from fedpa.models.pretrain import PretrainSettings

__all__ = ["learn_transformer", "median_gap"]


def median_gap(dataset: Dataset, users: NDArray[np.integer]) -> float:
    """The median time between consecutive interactions of some users, in the source's unit; 1 where there is none."""
    past = dataset.past
    owner = np.repeat(np.arange(dataset.n_users), np.diff(past.starts))
    gap = np.diff(past.time)[(owner[1:] == owner[:-1]) & np.isin(owner[1:], users)]
    gap = gap[gap > 0]
    return float(np.median(gap)) if len(gap) else 1.0


def learn_transformer(
    dataset: Dataset,
    light: LightHistory,
    known: pl.Series,
    train: tuple[Queries, Tensor],
    held_out: tuple[Queries, Tensor],
    settings: PretrainSettings,
    *,
    loss: Loss,
    seed: int,
    device: torch.device,
    advance: Callable[[str], None] = lambda state: None,
) -> tuple[TransformerHistory, Tensor, dict[str, Any]]:
    """A reader whose encoder is trained on open users' rows, and frozen.

    What an encoder says of rows that it was trained on is better than what it says of others, and a backbone trained on
    that would trust it too much. So users are divided into folds, and the evidence of each fold is read with an encoder
    that was trained on the others (Wolpert, *Stacked Generalization*, 1992).

    Parameters
    ----------
    dataset : Dataset
    light : LightHistory
        Standardised.
    known : Series
        Ids of the items with an embedding of their own, ascending.
    train, held_out, loss, device, advance
        As in `fit_encoder`.
    settings : PretrainSettings
    seed : int
        For the start, the folds, and what `fit_encoder` draws.

    Returns
    -------
    reader : TransformerHistory
    evidence : Tensor
        Of the rows trained on [queries, width].
    facts : dict
        As `fit_encoder` gives them, of the encoder that stays.
    """
    reader = TransformerHistory(
        dataset.item_features,
        known,
        light,
        median_gap(dataset, np.unique(train[0].user)),
        width=settings.encoder_width,
        layers=settings.encoder_layers,
        heads=settings.encoder_heads,
        length=settings.encoder_length,
    )
    past, kinds = dataset.past, reader.kinds_of(dataset)

    def trained(rows: tuple[Queries, Tensor], chosen: PretrainSettings, number: int) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "history/start", number))
            reader.encoder = reader.untrained(settings.encoder_dropout)
        drawn = derive_seed(seed, "history", number)
        return fit_encoder(
            reader, past, kinds, rows, held_out, chosen, loss=loss, seed=drawn, device=device, advance=advance
        )

    facts = trained(train, settings, 0)
    kept = reader.encoder
    shorter = settings.model_copy(update={"epochs": facts["best_epoch"], "patience": 0})
    queries, label = train
    draws = uniform(seed, "history/folds", (), user_keys(dataset.user_ids))
    fold = (draws * settings.encoder_folds).astype(np.int64)[queries.user]
    said = reader.said(past, kinds, queries)
    for number in range(settings.encoder_folds if settings.encoder_folds > 1 else 0):
        others, own = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if len(others) and len(own):
            trained((queries.at(others), label[torch.from_numpy(others)]), shorter, number + 1)
            said[own] = reader.said(past, kinds, queries.at(own))
    reader.encoder = kept
    reader.standardise(said)
    evidence = reader.joined(light.read(past, reader.compared(kinds), queries), said)
    return reader, torch.from_numpy(evidence[:, 0]), facts
