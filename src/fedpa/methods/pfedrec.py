"""PFedRec: a personal score function over item embeddings, both of them personalised.

Zhang et al., *Dual Personalization on Federated Recommendation*, IJCAI 2023, algorithm 1: there is no user vector; a
device keeps a score function, one linear layer over an item's embedding, and for every batch updates first the score
function, then the embeddings, which are averaged. It scores with its own finetuned embeddings. As published the
embeddings' rate is the number of items times a factor of 80 (``item_rate=None``, preset ``published``).

Departures: rows of the table that a device never trained are scored from the server's newest table, not from the one it
downloaded last, and likewise all rows of a user who never took part, who as published scores with the start; the bias
of the score function is not uploaded (the published code averages it, but no device reads the average).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fedpa.federation.parameters import PERSONAL, Parameter, Scope, Table
from fedpa.federation.rule import Phase
from fedpa.methods.item_ids import ItemIdMethod, item_presets
from fedpa.methods.method import register
from fedpa.models.items import ItemIdModel
from fedpa.models.products import rows_times
from fedpa.settings import Settings

__all__ = ["PFedRec", "ScoreFunction"]


class ScoreFunction(ItemIdModel):
    """One linear layer over an item's embedding."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """Item embeddings and the score function, which starts at zero above a foundation."""
        score = self.linear("score", self.settings.width, 1, zero=self.settings.on_foundation)
        return [self.item_table("items")], score

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """``w_u . e_i + b_u`` [users, rows]."""
        return (rows_times(rows["items"], blocks["score.weight"]) + blocks["score.bias"][:, None, :]).squeeze(-1)


def _score(name: str) -> bool:
    return not _items(name)


def _items(name: str) -> bool:
    return name == "items"


@register
class PFedRec(ItemIdMethod):
    """A personal score function over item embeddings that are averaged and kept."""

    name = "pfedrec"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets({}, optimizer="sgd", lr=0.1, item_rate=2.0)
    compared: ClassVar[Mapping[str, str]] = {"default": "PFedRec", "foundation": "PFedRec + foundation"}
    model_type = ScoreFunction

    def scope(self, name: str) -> Scope:
        """Item embeddings are averaged, and every device keeps its own copy to score with."""
        return Scope("shared", keeps=True) if name == "items" else PERSONAL

    def phases(self, settings: Settings) -> tuple[Phase, ...]:
        """For every batch first the score function, then the embeddings."""
        return (Phase(settings.epochs, (_score, _items)),)
