"""FedMF: matrix factorisation whose item vectors are averaged and whose user vectors stay.

Chai et al., *Secure Federated Matrix Factorization*, IEEE Intelligent Systems 36(5), 2021, algorithm 1: the score is
``p_u . q_i``; a device takes gradient steps on its p_u and sends what they say of Q, to which the server applies it.
Departures: clicks are labels of a logistic loss instead of ratings of a squared one with a penalty; the server adds the
mean of what devices send and not their sum, which is the same with an ``item_rate`` of 1; several local steps and Adam
are possible; there is no homomorphic encryption: the server receives exact sums; all users start from the same vector
(see `ItemIdModel.user_vector`).

Preset ``published`` has the optimiser, rates, width, batches and rounds of the code published with PFedRec (Zhang et
al., IJCAI 2023), which takes FedMF, FedNCF and FedRecon for baselines but does not hold them; products of 32 factors
start small here, since standard normal ones start saturated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fedpa.federation.parameters import Parameter, Table
from fedpa.methods.item_ids import ItemIdMethod, item_presets
from fedpa.methods.method import register
from fedpa.models.items import ItemIdModel

__all__ = ["Factors", "FedMF"]


class Factors(ItemIdModel):
    """The score is the product of the user's and the item's vector."""

    def parts(self) -> tuple[list[Table], list[Parameter]]:
        """Item vectors, which start at zero above a foundation, and the user's vector."""
        spread = 0.0 if self.settings.on_foundation else None
        return [self.item_table("items", std=spread)], [self.user_vector("user", self.settings.width)]

    def logits(self, blocks: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Tensor:
        """``p_u . q_i`` [users, rows]."""
        return (rows["items"] * blocks["user"]).sum(-1)


@register
class FedMF(ItemIdMethod):
    """Matrix factorisation: shared item vectors, personal user vectors."""

    name = "fedmf"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = item_presets(
        {"std": 0.1}, optimizer="sgd", lr=0.1, item_rate=2.0
    )
    compared: ClassVar[Mapping[str, str]] = {"default": "FedMF", "foundation": "FedMF + foundation"}
    model_type = Factors
