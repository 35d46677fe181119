"""Federated adaptation of foundation-model recommenders.

>>> import fedpa
>>> dataset = fedpa.load_dataset("data/kuairand")  # doctest: +SKIP
>>> foundation = fedpa.pretrain(dataset, out="foundation")  # doctest: +SKIP
>>> run = fedpa.adapt(foundation, dataset, method="fedpa", seed=0)  # doctest: +SKIP
>>> run.evaluate("test")["gauc"]  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpa.adaptation import adapt, resume
    from fedpa.continuing.rollback import rollback
    from fedpa.continuing.run import continue_run
    from fedpa.data.dataset import Dataset, load_dataset
    from fedpa.data.prepare import prepare
    from fedpa.data.sources import open_source
    from fedpa.errors import FedpaError
    from fedpa.exporting.export import export
    from fedpa.methods.method import register
    from fedpa.models.distill import distill
    from fedpa.models.foundation import Foundation, load_foundation
    from fedpa.models.pretrain import pretrain
    from fedpa.models.wrap.weights import load_weights
    from fedpa.models.wrap.wrapping import wrap
    from fedpa.run import Run, load_run

__all__ = [
    "Dataset",
    "FedpaError",
    "Foundation",
    "Run",
    "adapt",
    "continue_run",
    "distill",
    "export",
    "load_dataset",
    "load_foundation",
    "load_run",
    "load_weights",
    "open_source",
    "prepare",
    "pretrain",
    "register",
    "resume",
    "rollback",
    "wrap",
]

# Intel's library otherwise picks the order of a sum by the address of the matrix, so that a user's result would depend
# on who is computed beside it. It reads this at its first product; set by the user, it is left alone.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

_HOMES = {
    "Dataset": "fedpa.data.dataset",
    "FedpaError": "fedpa.errors",
    "Foundation": "fedpa.models.foundation",
    "Run": "fedpa.run",
    "adapt": "fedpa.adaptation",
    "continue_run": "fedpa.continuing.run",
    "distill": "fedpa.models.distill",
    "export": "fedpa.exporting.export",
    "load_dataset": "fedpa.data.dataset",
    "load_foundation": "fedpa.models.foundation",
    "load_run": "fedpa.run",
    "load_weights": "fedpa.models.wrap.weights",
    "open_source": "fedpa.data.sources",
    "prepare": "fedpa.data.prepare",
    "pretrain": "fedpa.models.pretrain",
    "register": "fedpa.methods.method",
    "resume": "fedpa.adaptation",
    "rollback": "fedpa.continuing.rollback",
    "wrap": "fedpa.models.wrap.wrapping",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import fedpa`` and ``fedpa --help`` are quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpa' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
