"""Train the foundation on open users' rows, with early stopping on rows of held-out open users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpa.data.dataset import Dataset, Part
from fedpa.device import open_device
from fedpa.draws import derive_seed, generator
from fedpa.evaluation.metrics import auc
from fedpa.models.foundation import Foundation
from fedpa.models.history.encoder_fit import Loss
from fedpa.models.inputs import ITEM_ID, CodedRows, Examples, Inputs, open_examples
from fedpa.models.learned import inputs_of
from fedpa.models.mlp import MLP
from fedpa.models.snapshot import snapshot
from fedpa.progress import progress_bar
from fedpa.settings import StrictSettings

__all__ = ["PretrainSettings", "fit_backbone", "pretrain", "train_foundation", "untrained"]


class PretrainSettings(StrictSettings):
    """Settings of pre-training.

    The published backbone is ``reader=none``, ``item_embedding=false``, ``embedding=8``, ``weight_decay=0``; widths of
    layers, learning rate and batch size are the published ones.

    Attributes
    ----------
    embedding, hidden : int, sequence of int
        Width of every embedding and of each layer.
    embedding_std : float
        Spread of the embeddings' random start.
    reader : {"none", "light", "transformer"}
        What reads a user's past: nothing but the two counters, `fedpa.models.history.LightHistory`, or that and a
        transformer, `fedpa.models.history.TransformerHistory`, which is trained first.
    half_life : float or None
        Of the light reader's counts per kind of item, in rows; None counts all rows alike.
    taste_width : int
        Of the vectors by which the light reader knows a user's taste; 0 leaves it out.
    item_embedding : bool
        Whether items have an embedding of their own beside those of their features. It starts at zero, where that of
        an item without open rows stays.
    encoder_width, encoder_layers, encoder_heads, encoder_length : int
        Of the transformer: width of every vector, layers, heads of attention, and rows of the past that it reads.
    encoder_items : bool
        Whether items have an embedding of their own in the transformer beside those of their features.
    encoder_dropout : float
        Share of its activations that are dropped while it is trained.
    encoder_folds : int
        Folds of users for the evidence that the backbone is trained on; see `fedpa.models.history.learn`. 1: none.
    lr, batch_size, weight_decay : float, int, float
        Of Adam, for the transformer and the backbone alike; the decay is decoupled (Loshchilov & Hutter, 2019).
    epochs, patience : int
        Most epochs, and epochs without a better held-out log-loss before stopping; 0 never stops early.
    """

    embedding: Annotated[int, Field(ge=1)] = 4
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((32, 8), min_length=1)
    embedding_std: Annotated[float, Field(ge=0)] = 0.1
    reader: Literal["none", "light", "transformer"] = "light"
    half_life: Annotated[float, Field(gt=0)] | None = None
    taste_width: Annotated[int, Field(ge=0)] = 4
    item_embedding: bool = True
    encoder_width: Annotated[int, Field(ge=1)] = 32
    encoder_layers: Annotated[int, Field(ge=1)] = 2
    encoder_heads: Annotated[int, Field(ge=1)] = 2
    encoder_length: Annotated[int, Field(ge=2)] = 32
    encoder_items: bool = True
    encoder_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    encoder_folds: Annotated[int, Field(ge=1)] = 4
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 1024
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
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
    opened, judged = (open_examples(dataset, part) for part in (Part.FOUNDATION, Part.FOUNDATION_VAL))
    foundation = train_foundation(dataset, opened, judged, chosen, seed=seed, device=device, progress=progress)
    if out is not None:
        foundation.save(out, overwrite=overwrite)
    return foundation


def train_foundation(
    dataset: Dataset,
    opened: Examples,
    judged: Examples,
    chosen: PretrainSettings,
    *,
    loss: Loss = binary_cross_entropy_with_logits,
    seed: int,
    device: str,
    progress: bool,
) -> Foundation:
    """Train a reader of the past, if there is to be one, and then a backbone.

    Parameters
    ----------
    dataset : Dataset
    opened, judged : Examples
        To train on, with whatever labels `loss` takes, and to stop by, with clicks.
    chosen : PretrainSettings
    loss : callable
        Mean loss of logits [rows] and labels.
    seed, device, progress
        As in `pretrain`.
    """
    place = open_device(device)
    with progress_bar("history", chosen.epochs, progress and chosen.reader == "transformer") as advance:
        learned = inputs_of(dataset, opened, judged, chosen, loss=loss, seed=seed, device=place, advance=advance)
    inputs = learned.inputs
    train = inputs.coded(dataset, opened, place, learned.evidence)
    held_out = inputs.coded(dataset, judged, place)
    model = untrained(dataset, chosen, derive_seed(seed, "pretrain"), inputs).to(place)
    with progress_bar("pretrain", chosen.epochs, progress) as advance:
        found = fit_backbone(model, train, held_out, chosen, seed, loss=loss, advance=advance)
    features = {s: dataset.manifest["features"][s] for s in ("user", "item", "context")}
    facts = {
        "settings": chosen.model_dump(mode="json"),
        "seed": seed,
        "dataset": {"name": dataset.manifest["source"], "hash": dataset.hash},
        **learned.facts,
        **found,
    }
    return Foundation.of(model.cpu(), features, facts, inputs)


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
    loss: Loss = binary_cross_entropy_with_logits,
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
    loss : callable
        Mean loss of logits [rows] and of the labels of `train`, which may be whatever it takes [rows, ...].
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
    best, best_epoch, stale, epoch = snapshot(model), 0, 0, 0
    for epoch in range(1, settings.epochs + 1):
        _epoch(model, optimizer, train, settings.batch_size, loss, generator(seed, "pretrain/shuffle", epoch))
        found, value = _held_out(model, held_out)
        advance(f"held-out logloss {found:.4f}")
        if found < best_loss:
            best, best_loss, best_auc, best_epoch, stale = snapshot(model), found, value, epoch, 0
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


def _epoch(
    model: MLP, optimizer: torch.optim.Optimizer, rows: CodedRows, size: int, loss: Loss, draw: torch.Generator
) -> None:
    model.train()
    order = torch.randperm(len(rows), generator=draw).to(rows.label.device)
    for chosen in order.split(size):
        *codes, label = rows.at(chosen)
        value = loss(model(*codes), label)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def _held_out(model: MLP, rows: CodedRows) -> tuple[float, float | None]:
    """Log-loss and AUC of rows."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(*piece[:4]) for piece in rows.pieces()])
        loss = float(binary_cross_entropy_with_logits(logits, rows.label))
    return loss, auc(rows.label.cpu().numpy(), logits.cpu().numpy())
