"""Pooled training: the foundation's architecture on open and private rows in one place, a ceiling without privacy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy.typing as npt

from fedpa.data.dataset import Dataset, Part
from fedpa.draws import derive_seed
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.rows import ShardRows
from fedpa.methods.baselines import FrozenFoundation
from fedpa.methods.method import Baseline, register
from fedpa.models.foundation import Foundation, load_foundation
from fedpa.models.inputs import open_examples
from fedpa.models.learned import Learned, inputs_of
from fedpa.models.mlp import MLP
from fedpa.models.pretrain import PretrainSettings, fit_backbone, untrained
from fedpa.settings import Settings

__all__ = ["Pooled", "PooledSettings"]


class PooledSettings(PretrainSettings, Settings):
    """Settings of pooled training: those of pre-training, and where to start. Those of federated methods are not read.

    Attributes
    ----------
    start : {"random", "foundation"}
        Where training starts: as pre-training does, or at the foundation's weights, whose widths then hold.
    """

    start: Literal["random", "foundation"] = "random"


@register
class Pooled(Baseline):
    """The foundation's architecture trained on open and private training rows, stopped by all held-out rows.

    Everything but the rows is as in `fedpa.models.pretrain.pretrain`: with no private row the same seed gives the same
    weights. A reader of users' pasts is that of open rows alone.
    """

    name = "pooled"
    family = "ceiling"
    compared: ClassVar[Mapping[str, str]] = {
        "default": "pooled training",
        "from-foundation": "pooled training from the foundation",
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "from-foundation": {"start": "foundation"}}
    settings_type = PooledSettings
    needs_foundation = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._trained: Foundation | None = None

    @property
    def reads_foundation(self) -> bool:
        """Only where training starts at its weights."""
        return cast(PooledSettings, self.settings).start == "foundation"

    @property
    def inputs(self) -> str:
        """What the foundation reads, and whose rows were trained on."""
        return "features, counters; trained on open and private rows"

    def fit(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows, *, seed: int, folder: Path) -> None:
        """Train and leave a foundation folder ``pooled``.

        Raises
        ------
        ConfigError
            If training is to start at a foundation and there is none.
        DataError
            If there are no open rows to train on or to hold out.
        """
        settings = cast(PooledSettings, self.settings)
        place = rows.items.device
        opened, judged = (open_examples(dataset, part) for part in (Part.FOUNDATION, Part.FOUNDATION_VAL))
        if self.reads_foundation:
            learned = Learned(self.needed(foundation).inputs, {})
        else:
            learned = inputs_of(dataset, opened, judged, settings, seed=seed, device=place)
        inputs = learned.inputs
        own = [inputs.private_rows(dataset, rows, rows.part == part) for part in (Part.TRAIN, Part.VAL)]
        train = inputs.coded(dataset, opened, place, learned.evidence).joined(own[0])
        held_out = inputs.coded(dataset, judged, place).joined(own[1])
        if self.reads_foundation:
            model = _copy(self.needed(foundation).model).to(place)
        else:
            model = untrained(dataset, settings, derive_seed(seed, "pretrain"), inputs).to(place)
        found = fit_backbone(model, train, held_out, settings, seed, start_counts=self.reads_foundation)
        features = {side: dataset.manifest["features"][side] for side in ("user", "item", "context")}
        facts = {
            "settings": settings.model_dump(mode="json", include={*PretrainSettings.model_fields}),
            "seed": seed,
            "dataset": {"name": dataset.manifest["source"], "hash": dataset.hash},
            **learned.facts,
            **found,
        }
        Foundation.of(model.cpu(), features, facts, inputs).save(folder / "pooled")

    def open(self, folder: Path) -> None:
        """Load the trained model.

        Raises
        ------
        ArtifactError
            If it is missing or damaged.
        """
        try:
            self._trained = load_foundation(folder / "pooled")
        except ArtifactError as error:
            raise ArtifactError(error.message, "adapt again") from error

    def scores(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows) -> npt.NDArray[Any]:
        """Click probabilities [rows]."""
        if self._trained is None:
            raise ConfigError("method pooled: nothing was trained or loaded yet", "adapt, or load the run")
        return FrozenFoundation(self.settings).scores(self._trained, dataset, rows)


def _copy(model: MLP) -> MLP:
    """The same weights in single precision, to be trained."""
    copy = MLP.from_spec(model.spec())
    copy.load_state_dict(model.state_dict())
    return copy
