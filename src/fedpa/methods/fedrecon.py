"""FedRecon: the personal part is rebuilt in every round and before scoring, and never stored.

Singhal et al., *Federated Reconstruction: Partially Local Federated Learning*, NeurIPS 2021, algorithm 1, on matrix
factorisation as in their experiments on MovieLens: a device splits its rows into support and query, rebuilds its user
vector on the support rows with the item vectors fixed, then updates the item vectors on the query rows with the user
vector fixed, and sends that update, which the server weights by the device's rows (``weighting``). Before scoring a
device rebuilds on all of its training rows. Nothing personal is stored.

Departures: a logistic loss; halves are drawn anew in every round, the larger one is support, and a user with a single
row has it in both; batches are cut from all rows and then halved, so that a batch has about half of ``batch_size``
rows; every rebuilding starts from the same vector for everybody (see `ItemIdModel.user_vector`).

Preset ``published`` rebuilds in five passes at a rate of 0.1, as the published code's command for MovieLens does, and
otherwise has the settings of PFedRec's code (see `fedpa.methods.fedmf`): of FedRecon's own, 100 devices per round with
batches of 5 rows and an item rate of 0.5, items that are averaged over all devices would hardly move in 100 rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field

from fedpa.federation.rule import Phase
from fedpa.methods.fedmf import Factors
from fedpa.methods.item_ids import ItemIdMethod, item_presets
from fedpa.methods.method import register
from fedpa.models.items import ItemSettings
from fedpa.settings import Settings

__all__ = ["FedRecon", "FedReconSettings"]


class FedReconSettings(ItemSettings):
    """Settings of FedRecon; ``epochs`` are those of the item vectors.

    Attributes
    ----------
    reconstruction_epochs : int
        Passes that rebuild the user's vector.
    reconstruction_rate : float
        Its learning rate, as a factor on ``lr``.
    """

    reconstruction_epochs: Annotated[int, Field(ge=1)] = 5
    reconstruction_rate: Annotated[float, Field(gt=0)] = 1.0


def _user(name: str) -> bool:
    return name.startswith("user")


def _items(name: str) -> bool:
    return not _user(name)


@register
class FedRecon(ItemIdMethod):
    """Matrix factorisation whose user vectors are rebuilt instead of kept."""

    name = "fedrecon"
    settings_type = FedReconSettings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets(
        {"std": 0.1, "reconstruction_rate": 1.0, "reconstruction_epochs": 5},
        optimizer="sgd",
        lr=0.1,
        item_rate=2.0,
        reconstruction_rate=5.0,
        weighting="rows",
    )
    compared: ClassVar[Mapping[str, str]] = {"default": "FedRecon", "foundation": "FedRecon + foundation"}
    model_type = Factors
    forgets_personal = True

    def phases(self, settings: Settings) -> tuple[Phase, ...]:
        """Rebuild on support rows, then update the items on query rows."""
        rebuild = cast(FedReconSettings, settings).reconstruction_epochs
        return Phase(rebuild, (_user,), "support"), Phase(settings.epochs, (_items,), "query")

    def before_scoring(self, settings: Settings) -> tuple[Phase, ...]:
        """Rebuild on all training rows."""
        return (Phase(cast(FedReconSettings, settings).reconstruction_epochs, (_user,)),)

    def lr_scale(self, name: str) -> float:
        """The reconstruction has a rate of its own, and so have the items."""
        return cast(FedReconSettings, self.settings).reconstruction_rate if _user(name) else super().lr_scale(name)
