"""Boosted trees on pooled rows: what another kind of model gets out of the same features, without privacy.

Ke et al., *LightGBM: A Highly Efficient Gradient Boosting Decision Tree*, NeurIPS 2017. Needs the extra ``trees``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedpa.artifacts import sha256, write_json
from fedpa.data.dataset import Dataset, Part
from fedpa.data.statistics import ITEM_STRENGTH, USER_STRENGTH, smoothed_rate
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.federation.rows import ShardRows
from fedpa.methods.method import Baseline, register
from fedpa.models.foundation import Foundation
from fedpa.settings import Settings

if TYPE_CHECKING:
    import lightgbm

__all__ = ["Trees", "TreesSettings"]

CATEGORIES = 50
"""A vocabulary of at most this many codes is split into sets of codes, a larger one and bins by order.

Chosen by log-loss on held-out open users of KuaiRand-Pure and KuaiSAR-R: sets of hundreds of codes overfit, and order
alone is no better on the one and worse on the other.
"""

_ROWS = 1 << 16


class TreesSettings(Settings):
    """Settings of boosted trees, chosen like `CATEGORIES`. Those of federated methods are not read.

    Attributes
    ----------
    rows : {"pooled", "open"}
        Whose rows are trained on and stop training: open and private users', or open users' alone.
    trees, patience : int
        Most trees, and trees without a better held-out log-loss before stopping; 0 never stops early.
    learning_rate : float
        What each tree's values are multiplied by.
    leaves : int
        Most leaves of a tree.
    min_rows_per_leaf : int
        Fewest rows of a leaf.
    """

    rows: Literal["pooled", "open"] = "pooled"
    trees: Annotated[int, Field(ge=1)] = 1000
    patience: Annotated[int, Field(ge=0)] = 50
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    leaves: Annotated[int, Field(ge=2)] = 15
    min_rows_per_leaf: Annotated[int, Field(ge=1)] = 100


@register
class Trees(Baseline):
    """LightGBM on user, item and context codes and on the smoothed counters.

    Nothing is drawn, but for the rows by which LightGBM lays its bins where there are more than 200,000; that seed is
    fixed, so the run's seed does not matter.
    """

    name = "trees"
    family = "ceiling"
    compared: ClassVar[Mapping[str, str]] = {
        "default": "boosted trees, pooled rows",
        "open": "boosted trees, open users",
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "open": {"rows": "open"}}
    settings_type = TreesSettings
    needs_foundation = False
    seeds_matter = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._booster: lightgbm.Booster | None = None

    @property
    def inputs(self) -> str:
        """Features and counters, and whose rows were trained on."""
        pooled = cast(TreesSettings, self.settings).rows == "pooled"
        return f"features, counters; trained on {'open and private' if pooled else 'open'} rows"

    def fit(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows, *, seed: int, folder: Path) -> None:
        """Train and leave ``trees.txt`` and its hash and facts, ``trees.json``.

        Raises
        ------
        ConfigError
            If LightGBM is not installed.
        DataError
            If there are no rows to train on or to hold out.
        """
        library = _lightgbm()
        settings = cast(TreesSettings, self.settings)
        train = self._columns(dataset, rows, Part.FOUNDATION, Part.TRAIN)
        held_out = self._columns(dataset, rows, Part.FOUNDATION_VAL, Part.VAL)
        data = library.Dataset(train.matrix(dataset), train.label, categorical_feature=_categorical(dataset))
        booster = library.train(
            {
                "objective": "binary",
                "metric": "binary_logloss",
                "learning_rate": settings.learning_rate,
                "num_leaves": settings.leaves,
                "min_data_in_leaf": settings.min_rows_per_leaf,
                "seed": 0,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": 1,
                "verbosity": -1,
            },
            data,
            settings.trees,
            valid_sets=[library.Dataset(held_out.matrix(dataset), held_out.label, reference=data)],
            # Stopping after as many trees as there are only picks the best number.
            callbacks=[library.early_stopping(settings.patience or settings.trees, verbose=False)],
        )
        file = folder / "trees.txt"
        booster.save_model(file, num_iteration=booster.best_iteration)
        write_json(
            folder / "trees.json",
            {
                "sha256": sha256(file),
                "trees": booster.best_iteration,
                "rows": len(train.label),
                "held_out": {
                    "logloss": float(booster.best_score["valid_0"]["binary_logloss"]),
                    "rows": len(held_out.label),
                },
            },
        )

    def open(self, folder: Path) -> None:
        """Load the trees.

        Raises
        ------
        ArtifactError
            If they are missing or damaged.
        ConfigError
            If LightGBM is not installed.
        """
        library = _lightgbm()
        file, facts = folder / "trees.txt", folder / "trees.json"
        try:
            noted = json.loads(facts.read_text(encoding="utf-8"))["sha256"]
            found = sha256(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{folder}: its trees.txt and trees.json cannot be read ({error})", "adapt again"
            ) from error
        if found != noted:
            raise ArtifactError(f"{file}: its SHA-256 is {found}, {facts.name} says {noted}", "adapt again")
        self._booster = library.Booster(model_file=file)

    def scores(self, foundation: Foundation | None, dataset: Dataset, rows: ShardRows) -> npt.NDArray[Any]:
        """Click probabilities [rows]."""
        if self._booster is None:
            raise ConfigError("method trees: nothing was trained or loaded yet", "adapt, or load the run")
        columns = _Columns.of(rows)
        found = [
            np.asarray(self._booster.predict(columns.at(slice(begin, begin + _ROWS)).matrix(dataset), num_threads=1))
            for begin in range(0, len(columns.user), _ROWS)
        ]
        return np.concatenate(found) if found else np.zeros(0)

    def _columns(self, dataset: Dataset, rows: ShardRows, opened: Part, private: Part) -> _Columns:
        """The rows of a part of the open users, and if so wanted of one of the private users behind them."""
        columns = _Columns.open(dataset, opened)
        if cast(TreesSettings, self.settings).rows == "pooled":
            columns = columns.joined(_Columns.of(rows).at(rows.part == private))
        if not len(columns.user):
            raise DataError(
                f"{dataset.path}: no row in part {opened.name.lower()!r}, so there is nothing to train on",
                "prepare the data set with more open users (--division)",
            )
        return columns


@dataclass(frozen=True)
class _Columns:
    """What is true of rows, wherever they are from: user and item numbers [rows], context codes [rows, features]."""

    user: npt.NDArray[Any]
    item: npt.NDArray[Any]
    context: npt.NDArray[Any]
    label: npt.NDArray[Any]
    item_views: npt.NDArray[Any]
    item_clicks: npt.NDArray[Any]
    own_views: npt.NDArray[Any]
    own_clicks: npt.NDArray[Any]
    open_views: npt.NDArray[Any]
    open_clicks: npt.NDArray[Any]

    @classmethod
    def open(cls, dataset: Dataset, part: Part) -> Self:
        """Open users' rows of one part."""
        rows = dataset.rows(part)
        return cls(
            user=dataset.user[rows],
            item=dataset.item[rows],
            context=dataset.context_codes[rows],
            label=dataset.label[rows],
            item_views=dataset.item_views[rows],
            item_clicks=dataset.item_clicks[rows],
            own_views=dataset.user_views[rows],
            own_clicks=dataset.user_clicks[rows],
            open_views=dataset.open_views[rows],
            open_clicks=dataset.open_clicks[rows],
        )

    @classmethod
    def of(cls, rows: ShardRows) -> Self:
        """All rows of a shard."""
        return cls(
            user=rows.users[rows.user],
            item=rows.items.cpu().numpy(),
            context=rows.context.cpu().numpy(),
            label=rows.labels.cpu().numpy(),
            item_views=rows.item_views,
            item_clicks=rows.item_clicks,
            own_views=rows.own_views,
            own_clicks=rows.own_clicks,
            open_views=rows.open_views,
            open_clicks=rows.open_clicks,
        )

    def at(self, chosen: slice | npt.NDArray[np.bool_]) -> _Columns:
        """Some of the rows."""
        return _Columns(**{name: column[chosen] for name, column in vars(self).items()})

    def joined(self, other: _Columns) -> _Columns:
        """These rows, then the other's."""
        return _Columns(**{name: np.concatenate([column, vars(other)[name]]) for name, column in vars(self).items()})

    def matrix(self, dataset: Dataset) -> npt.NDArray[np.float32]:
        """User, item and context codes, then click rate and views of the item and of the user [rows, columns]."""
        opened = self.open_clicks, self.open_views
        counters = [
            smoothed_rate(self.item_clicks, self.item_views, *opened, ITEM_STRENGTH),
            self.item_views,
            smoothed_rate(self.own_clicks, self.own_views, *opened, USER_STRENGTH),
            self.own_views,
        ]
        codes = [dataset.user_codes[self.user], dataset.item_codes[self.item], self.context]
        blocks = [block.astype(np.float32) for block in (*codes, np.stack(counters, 1))]
        return np.concatenate(blocks, 1)


def _categorical(dataset: Dataset) -> list[int]:
    """Columns of the matrix whose codes have no order worth splitting by."""
    features = [feature for side in ("user", "item", "context") for feature in dataset.manifest["features"][side]]
    return [k for k, feature in enumerate(features) if "vocabulary" in feature and feature["size"] <= CATEGORIES]


def _lightgbm() -> Any:
    """LightGBM, which is an extra."""
    try:
        import lightgbm
    except ImportError:
        raise ConfigError(
            "method trees: needs LightGBM, which is not installed", 'pip install "fedpa[trees]"'
        ) from None
    return lightgbm
