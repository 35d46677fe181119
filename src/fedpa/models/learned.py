"""What a backbone reads beside its features, learnt from open users' rows before the backbone itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpa.data.dataset import Dataset, Part
from fedpa.errors import ConfigError
from fedpa.models.history import LightHistory
from fedpa.models.history.encoder_fit import Loss
from fedpa.models.history.learn import learn_transformer
from fedpa.models.history.taste import Taste
from fedpa.models.history.taste_fit import fit_taste
from fedpa.models.inputs import Examples, Inputs, open_queries

if TYPE_CHECKING:
    from fedpa.models.pretrain import PretrainSettings

__all__ = ["Learned", "inputs_of"]


class Learned(NamedTuple):
    """What a backbone is to read.

    Attributes
    ----------
    inputs : Inputs
    facts : dict
        How the reader was trained, if it was: ``taste``, of the light one, and ``history``, of the transformer.
    evidence : Tensor or None
        What the reader is to say of the rows that it was trained on [rows, width], if that is not what it says of them.
    """

    inputs: Inputs
    facts: dict[str, Any]
    evidence: Tensor | None = None


def inputs_of(
    dataset: Dataset,
    train: Examples,
    held_out: Examples,
    settings: PretrainSettings,
    *,
    loss: Loss = binary_cross_entropy_with_logits,
    seed: int,
    device: torch.device,
    advance: Callable[[str], None] = lambda state: None,
) -> Learned:
    """The reader and the known items that the settings ask for, made from open users' rows.

    Raises
    ------
    ConfigError
        If the transformer's heads do not divide its width.
    """
    known = dataset.item_ids.gather(np.unique(dataset.item[dataset.rows(Part.FOUNDATION)]))
    item_ids = known if settings.item_embedding else None
    if settings.reader == "none":
        return Learned(Inputs(None, item_ids), {})
    light, facts = _light(dataset, settings, seed)
    if settings.reader == "light":
        return Learned(Inputs(light, item_ids), facts)
    if settings.encoder_width % settings.encoder_heads:
        raise ConfigError(
            f"pretraining: setting 'encoder_heads': {settings.encoder_heads} does not divide encoder_width, "
            f"{settings.encoder_width}"
        )
    reader, evidence, found = learn_transformer(
        dataset,
        light,
        known if settings.encoder_items else known.clear(),
        (train.queries, train.label),
        (held_out.queries, held_out.label),
        settings,
        loss=loss,
        seed=seed,
        device=device,
        advance=advance,
    )
    return Learned(Inputs(reader, item_ids), {**facts, "history": found}, evidence)


def _light(dataset: Dataset, settings: PretrainSettings, seed: int) -> tuple[LightHistory, dict[str, Any]]:
    """The light reader and, as ``taste``, how its taste was trained."""
    train, held_out = (
        (open_queries(dataset, part), dataset.label[dataset.rows(part)])
        for part in (Part.FOUNDATION, Part.FOUNDATION_VAL)
    )
    taste: Taste | None = None
    facts: dict[str, Any] = {}
    if settings.taste_width and dataset.item_features:
        sizes = tuple(feature.size for feature in dataset.item_features)
        width, codes = settings.taste_width, dataset.item_codes
        taste, facts["taste"] = fit_taste(sizes, width, dataset.past, codes, train, held_out, seed)
    light = LightHistory.for_items(dataset, taste, settings.half_life)
    light.standardise(light.read(dataset.past, light.kinds_of(dataset), train[0]))
    return light, facts
