"""Distil a foundation into a smaller one: it learns from clicks and from what the larger one says.

Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015. Nothing of private users is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpa.data.dataset import Dataset, Part
from fedpa.data.past import Queries
from fedpa.draws import derive_seed
from fedpa.models.foundation import Foundation
from fedpa.models.history.encoder_fit import Loss
from fedpa.models.inputs import Examples, open_examples
from fedpa.models.pretrain import PretrainSettings, train_foundation

__all__ = ["DistillSettings", "distill", "soft_loss", "unlabelled_pairs"]


class DistillSettings(PretrainSettings):
    """Settings of distillation: those of pre-training, for the student, and these.

    Attributes
    ----------
    item_embedding : bool
        As there, but off unless asked for: it made students that looked better on held-out open users and were worse on
        private ones. The teacher's word follows the counts of a row's item, which contain clicks of held-out users.
    temperature : float
        What the logits of both are divided by before they are compared.
    mixing : float
        Weight of the teacher's word; the clicks have the rest. 0 is pre-training.
    pairs : float
        Pairs of a user's moment and another item, on which there is the teacher's word alone, per open row.
    """

    item_embedding: bool = False
    temperature: Annotated[float, Field(gt=0)] = 2.0
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.5
    pairs: Annotated[float, Field(ge=0)] = 1.0


def distill(
    teacher: Foundation,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool = False,
    **settings: Any,
) -> Foundation:
    """Train a foundation on the open users of a data set and on what another says of them.

    Parameters
    ----------
    teacher : Foundation
        It is not changed.
    dataset : Dataset
        With the encoders that the teacher was trained on; the rows may be others. Only open users are read.
    out : path, optional
        Folder to write; without it the foundation lives in memory.
    seed : int
        For the start, the pairs and the order of rows.
    overwrite : bool
        Replace `out` if it exists.
    device : str
        For instance ``"cuda"``.
    progress : bool
        Draw bars on standard error.
    **settings
        Fields of `DistillSettings`.

    Returns
    -------
    Foundation
        Its facts say under ``distilled`` from whom, with the teacher's hash, and how many weights both have.

    Raises
    ------
    ConfigError
        If a setting or the device is unknown or invalid.
    ArtifactError
        If the data set is encoded otherwise than the teacher's.
    DataError
        If there are no open rows to train on or to hold out.
    """
    chosen = DistillSettings.checked(settings, "distilling")
    teacher.check(dataset)
    opened, judged = (open_examples(dataset, part) for part in (Part.FOUNDATION, Part.FOUNDATION_VAL))
    number = round(chosen.pairs * len(opened.queries)) if chosen.mixing else 0
    pairs = unlabelled_pairs(dataset, opened, number, seed)
    loss: Loss = binary_cross_entropy_with_logits
    train = opened
    if chosen.mixing:
        train = opened.joined(pairs)
        train = train._replace(label=torch.stack([train.label, _logits(teacher, dataset, train)], 1))
        loss = soft_loss(chosen.temperature, chosen.mixing)
    student = train_foundation(dataset, train, judged, chosen, loss=loss, seed=seed, device=device, progress=progress)
    student.facts["distilled"] = {
        "teacher": teacher.hash,
        "unlabelled": number,
        "weights": {"teacher": teacher.n_weights, "student": student.n_weights},
    }
    if out is not None:
        student.save(out, overwrite=overwrite)
    return student


def soft_loss(temperature: float, mixing: float) -> Loss:
    """The loss of logits z [rows] against clicks y and the teacher's logits t, side by side [rows, 2].

    With temperature T and mixing weight w it is ``(1 - w) BCE(y, z)``, averaged over rows whose y is not NaN, plus
    ``w T^2 BCE(sigmoid(t / T), z / T)``, averaged over all: the square keeps gradients of one size whatever T is.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        label, said = targets.unbind(1)
        soft = binary_cross_entropy_with_logits(logits / temperature, (said / temperature).sigmoid())
        known = ~label.isnan()
        hard = binary_cross_entropy_with_logits(logits[known], label[known], reduction="sum") / known.sum().clamp(min=1)
        return (1 - mixing) * hard + mixing * temperature**2 * soft

    return loss


def unlabelled_pairs(dataset: Dataset, opened: Examples, number: int, seed: int) -> Examples:
    """Moments of open users with items of other open rows; the labels are NaN.

    A moment brings its user, time, own rows and row features; the other row brings its item with everybody's counts as
    they were then. So items come as often as users were shown them, every count is one that was true of its item at
    some time, and no table of counts of all items at all moments is needed.
    """
    draw = np.random.default_rng(derive_seed(seed, "distill/pairs"))
    rows = len(opened.queries)
    moment = np.resize(draw.permutation(rows), number)
    other = draw.integers(rows, size=number)
    own, drawn = vars(opened.queries.at(moment)), vars(opened.queries.at(other))
    shown = ("items", "item_views", "item_clicks", "all_views", "all_clicks")
    context = opened.context[torch.from_numpy(moment)].clone()
    width = dataset.n_item_context
    context[:, :width] = opened.context[torch.from_numpy(other)][:, :width]
    queries = Queries(**{name: (drawn if name in shown else own)[name] for name in own})
    return Examples(queries, context, torch.full((number,), float("nan")))


def _logits(teacher: Foundation, dataset: Dataset, examples: Examples) -> Tensor:
    """What the teacher says [rows]."""
    dtype = next(teacher.model.parameters()).dtype
    coded = teacher.inputs.coded(dataset, examples, torch.device("cpu"))
    with torch.inference_mode():
        found = [
            teacher.model(*piece[:3], None if piece.dense is None else piece.dense.to(dtype))
            for piece in coded.pieces()
        ]
    return torch.cat(found).float().clone()
