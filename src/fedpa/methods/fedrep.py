"""FedRep: a shared representation and a personal head.

Collins et al., *Exploiting Shared Representations for Personalized Federated Learning*, ICML 2021, algorithm 1: every
round the device takes some epochs on its head alone, the representation fixed, then one on the representation alone,
and uploads the representation. Departure: the local optimiser may be Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, cast

from pydantic import Field

from fedpa.federation.parameters import PERSONAL, SHARED, Scope
from fedpa.federation.rule import Phase
from fedpa.methods.method import register
from fedpa.methods.whole_model import WholeModelMethod
from fedpa.models.whole import WholeSettings
from fedpa.settings import Settings

__all__ = ["FedRep", "FedRepSettings"]


class FedRepSettings(WholeSettings):
    """Settings of FedRep; ``epochs`` are those on the representation.

    Attributes
    ----------
    head_epochs : int
        Passes over the rows that train the head, before those that train the rest.
    """

    head_epochs: Annotated[int, Field(ge=1)] = 2


def _head(name: str) -> bool:
    return name.startswith("head.")


def _representation(name: str) -> bool:
    return not _head(name)


@register
class FedRep(WholeModelMethod):
    """A shared representation and a personal head, trained in turn."""

    name = "fedrep"
    settings_type = FedRepSettings
    compared: ClassVar[Mapping[str, str]] = {"default": "FedRep", "foundation": "FedRep + foundation"}

    def scope(self, name: str) -> Scope:
        """The head is personal."""
        return PERSONAL if _head(name) else SHARED

    def phases(self, settings: Settings) -> tuple[Phase, ...]:
        """First the head, then the representation."""
        head = cast(FedRepSettings, settings).head_epochs
        return Phase(head, (_head,)), Phase(settings.epochs, (_representation,))
