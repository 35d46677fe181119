"""FedRecon: the personal part is rebuilt in every round and before scoring, and never stored.

Singhal et al., *Federated Reconstruction: Partially Local Federated Learning*, NeurIPS 2021, algorithm 1, on matrix
factorisation as in their section 5: a device splits its rows into support and query, rebuilds its user vector on the
support rows with the item vectors fixed, then updates the item vectors on the query rows with the user vector fixed,
and sends that update. Before scoring it rebuilds on all of its training rows. Departures: a logistic loss, and a user
with a single row has it in both halves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, cast

from pydantic import Field

from fedpa.federation.rule import Phase
from fedpa.methods.fedmf import Factors, ItemIdMethod
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
        """The reconstruction has a rate of its own."""
        return cast(FedReconSettings, self.settings).reconstruction_rate if _user(name) else 1.0
