"""One trial, as a worker runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpa.adaptation import adapt
from fedpa.comparison.measure import best_validation
from fedpa.data.dataset import load_dataset
from fedpa.methods import parse_spec
from fedpa.models.foundation import load_foundation

__all__ = ["run_trial"]


def run_trial(
    dataset: str, foundation: str | None, spec: str, settings: Mapping[str, Any], seed: int, scratch: str
) -> dict[str, Any]:
    """Adapt with some settings over the preset's.

    Returns
    -------
    dict
        ``value``, the best mean of validation AUC and GAUC, None where it is undefined; ``best_round``; ``rounds``.
    """
    name, preset = parse_spec(spec)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        run = adapt(
            None if foundation is None else load_foundation(foundation),
            load_dataset(dataset),
            out=Path(folder) / "run",
            method=name,
            preset=preset,
            seed=seed,
            **{**settings, "select": "mean"},
        )
        return {
            "value": best_validation(run.history),
            "best_round": run.summary["best_round"],
            "rounds": run.summary["rounds"],
        }
