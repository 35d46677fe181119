"""FedAvg of the whole backbone, and FedProx, which adds a proximal term.

McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*, AISTATS 2017, algorithm 1:
every participant trains all weights for some local epochs and the server averages the weights. Li et al., *Federated
Optimization in Heterogeneous Networks*, MLSys 2020, equation 2: the local objective gains
``mu / 2 |w - w_downloaded|^2``.

Departures: a participant counts once by default, not by its rows (``weighting: rows`` is as published), and the local
optimiser may be Adam. Embeddings of features are part of the model; what is uploaded is every row of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fedpa.methods.method import register
from fedpa.methods.whole_model import WholeModelMethod

__all__ = ["FedAvg", "FedProx"]


@register
class FedAvg(WholeModelMethod):
    """The whole model, trained on every device and averaged."""

    name = "fedavg"
    compared: ClassVar[Mapping[str, str]] = {"default": "FedAvg", "foundation": "FedAvg + foundation"}


@register
class FedProx(WholeModelMethod):
    """FedAvg whose local weights are held close to the downloaded ones."""

    name = "fedprox"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"proximal": 0.1, "epochs": 2},
        "foundation": {"proximal": 0.1, "epochs": 2, "on_foundation": True},
    }
    compared: ClassVar[Mapping[str, str]] = {"default": "FedProx", "foundation": "FedProx + foundation"}
