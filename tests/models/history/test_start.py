"""Before its first round every method on a foundation that reads the past scores as that foundation does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpa.adaptation import adapt
from fedpa.methods.method import parse_spec
from prepared import reading, small

SPECS = (
    "fedpa", "fedit", "biases", "head-only", "local-only", "fedavg+foundation", "fedmf+foundation", "fedrep+foundation",
)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_start_is_the_foundation(spec: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data, foundation = small(tmp_path_factory).dataset, reading(tmp_path_factory)
    name, preset = parse_spec(spec)
    run = adapt(foundation, data, out=tmp_path / "run", method=name, preset=preset, rounds=0, item_counts=0)
    frozen = adapt(foundation, data, out=tmp_path / "frozen", method="foundation")
    assert np.allclose(run.scores, frozen.scores, atol=1e-5)
