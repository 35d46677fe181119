"""Train the foundation on open users' rows, with early stopping on rows of held-out open users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpa.data.dataset import Dataset, Part
from fedpa.device import open_device
from fedpa.draws import derive_seed, generator
from fedpa.evaluation.metrics import auc
from fedpa.models.foundation import Foundation
from fedpa.models.history import LightHistory
from fedpa.models.inputs import ITEM_ID, CodedRows, Inputs, open_queries
from fedpa.models.mlp import MLP
from fedpa.progress import progress_bar
from fedpa.settings import StrictSettings

__all__ = ["PretrainSettings", "fit_backbone", "inputs_of", "pretrain", "untrained"]


class PretrainSettings(StrictSettings):
    """Settings of pre-training; the defaults are the published ones, but for the epochs and the start.

    Attributes
    ----------
    embedding, hidden : int, sequence of int
        Width of every embedding and of each layer.
    embedding_std : float
        Spread of the embeddings' random start.
    history : {"none", "light"}
        What reads a user's past: nothing but the two counters, or `fedpa.models.history.LightHistory`.
    half_life : float or None
        Of the reader's sums, in rows; None counts all rows alike.
    item_embedding : bool
        Whether items have an embedding of their own beside those of their features. It starts at zero, where that of
        an item without open rows stays.
    lr, batch_size, weight_decay : float, int, float
        Of Adam; the decay is decoupled (Loshchilov & Hutter, 2019).
    epochs, patience : int
        Most epochs, and epochs without a better held-out log-loss before stopping; 0 never stops early.
    """

    embedding: Annotated[int, Field(ge=1)] = 8
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((32, 8), min_length=1)
    embedding_std: Annotated[float, Field(ge=0)] = 0.1
    history: Literal["none", "light"] = "none"
    half_life: Annotated[float, Field(gt=0)] | None = None
    item_embedding: bool = False
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 1024
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    epochs: Annotated[int, Field(ge=1)] = 50
    patience: Annotated[int, Field(ge=0)] = 3


def pretrain(
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = False,
    **settings: Any,
) -> Foundation:
    """Train a foundation on the open users of a data set.

    Parameters
    ----------
    dataset : Dataset
        Only rows of the parts ``foundation`` and ``foundation_val`` and their users are read.
    out : path, optional
        Folder to write; without it the foundation lives in memory.
    seed : int
        For the start and the order of rows.
    overwrite : bool
        Replace `out` if it exists.
    device : str
        For instance ``"cuda"``.
    progress : bool
        Draw a bar on standard error.
    **settings
        Fields of `PretrainSettings`.

    Returns
    -------
    Foundation
        With the weights of the epoch of lowest held-out log-loss.

    Raises
    ------
    ConfigError
        If a setting or the device is unknown or invalid.
    DataError
        If there are no open rows to train on or to hold out.
    """
    chosen = PretrainSettings.checked(settings, "pretraining")
    place = open_device(device)
    inputs = inputs_of(dataset, chosen)
    train, held_out = (inputs.open_rows(dataset, part, place) for part in (Part.FOUNDATION, Part.FOUNDATION_VAL))
    model = untrained(dataset, chosen, derive_seed(seed, "pretrain"), inputs).to(place)
    with progress_bar("pretrain", chosen.epochs, progress) as advance:
        found = fit_backbone(model, train, held_out, chosen, seed, advance=advance)
    features = {s: dataset.manifest["features"][s] for s in ("user", "item", "context")}
    facts = {
        "settings": chosen.model_dump(mode="json"),
        "seed": seed,
        "dataset": {"name": dataset.manifest["source"], "hash": dataset.hash},
        **found,
    }
    foundation = Foundation.of(model.cpu(), features, facts, inputs)
    if out is not None:
        foundation.save(out, overwrite=overwrite)
    return foundation


def inputs_of(dataset: Dataset, settings: PretrainSettings) -> Inputs:
    """The reader and the known items that the settings ask for, made from open users' rows."""
    known = None
    if settings.item_embedding:
        known = dataset.item_ids.gather(np.unique(dataset.item[dataset.rows(Part.FOUNDATION)]))
    if settings.history == "none":
        return Inputs(None, known)
    reader = LightHistory.for_items(dataset, settings.half_life)
    reader.standardise(reader.read(dataset.past, reader.kinds_of(dataset), open_queries(dataset, Part.FOUNDATION)))
    return Inputs(reader, known)


def untrained(dataset: Dataset, settings: PretrainSettings, seed: int, inputs: Inputs | None = None) -> MLP:
    """The backbone at its random start, for a data set's features and, if given, the inputs beside them."""
    inputs = inputs or Inputs()
    features = {side: dataset.manifest["features"][side] for side in ("user", "item", "context")}
    sizes = {side: [(f["name"], f["size"]) for f in found] for side, found in features.items()}
    if inputs.item_ids is not None:
        sizes["item"].append((ITEM_ID, len(inputs.item_ids) + 1))
    dense = 0 if inputs.history is None else inputs.history.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP(sizes, settings.embedding, settings.hidden, dense)
        for table in model.tables.values():
            torch.nn.init.normal_(table.get_parameter("weight"), std=settings.embedding_std)
    _balance(model)
    if inputs.item_ids is not None:
        model.named_table("item", ITEM_ID).zero_()
    if dataset.manifest["settings"]["features"] == "causal":
        _silence_unknown(model)
    return model


def fit_backbone(
    model: MLP,
    train: CodedRows,
    held_out: CodedRows,
    settings: PretrainSettings,
    seed: int,
    *,
    start_counts: bool = False,
    advance: Callable[[str], None] = lambda state: None,
) -> dict[str, Any]:
    """Train a backbone in place; it ends with the weights of the epoch of lowest held-out log-loss.

    Parameters
    ----------
    model : MLP
    train, held_out : CodedRows
        On the model's device.
    settings : PretrainSettings
        The widths and the spread of the start are not read.
    seed : int
        For the order of rows.
    start_counts : bool
        Whether the weights as given are one of the candidates, as epoch 0.
    advance : callable
        Takes a line after every epoch.

    Returns
    -------
    dict
        ``epochs``, ``best_epoch``, ``held_out`` (``logloss``, ``auc``, ``rows``) and ``rows``, the number trained on.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    best_loss, best_auc = _held_out(model, held_out) if start_counts else (float("inf"), None)
    best, best_epoch, stale, epoch = _copy(model), 0, 0, 0
    for epoch in range(1, settings.epochs + 1):
        _epoch(model, optimizer, train, settings.batch_size, generator(seed, "pretrain/shuffle", epoch))
        loss, value = _held_out(model, held_out)
        advance(f"held-out logloss {loss:.4f}")
        if loss < best_loss:
            best, best_loss, best_auc, best_epoch, stale = _copy(model), loss, value, epoch, 0
        else:
            stale += 1
            if settings.patience and stale >= settings.patience:
                break
    model.load_state_dict(best)
    return {
        "epochs": epoch,
        "best_epoch": best_epoch,
        "held_out": {"logloss": best_loss, "auc": best_auc, "rows": len(held_out)},
        "rows": len(train),
    }


def _silence_unknown(model: MLP) -> None:
    """Start code 0, *unknown*, at zero: no open user may train it, and noise helps nobody."""
    for side, features in model.features.items():
        for name, _ in features:
            model.named_table(side, name)[0] = 0.0


def _balance(model: MLP) -> None:
    """Start the head with alternating signs: after a ReLU, units of one sign can only ever raise the logit.

    The published head has eight units; drawn freely, two of eight seeds stayed two points of AUC behind the others.
    """
    with torch.no_grad():
        weight = model.head.weight.abs_()
        weight[:, 1::2] *= -1


def _epoch(model: MLP, optimizer: torch.optim.Optimizer, rows: CodedRows, size: int, draw: torch.Generator) -> None:
    model.train()
    order = torch.randperm(len(rows), generator=draw).to(rows.label.device)
    for chosen in order.split(size):
        *codes, label = rows.at(chosen)
        loss = binary_cross_entropy_with_logits(model(*codes), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _held_out(model: MLP, rows: CodedRows) -> tuple[float, float | None]:
    """Log-loss and AUC of rows."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(*piece[:4]) for piece in rows.pieces()])
        loss = float(binary_cross_entropy_with_logits(logits, rows.label))
    return loss, auc(rows.label.cpu().numpy(), logits.cpu().numpy())


def _copy(model: MLP) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
