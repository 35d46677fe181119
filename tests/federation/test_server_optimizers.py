"""Server optimisers against sequences worked out by hand."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch

from fedpa.federation.parameters import SHARED, Block, Layout, Parameter, Table, group
from fedpa.federation.server import FRACTION_BITS, Server, Upload
from fedpa.settings import Settings

UNIT = 2 ** FRACTION_BITS[torch.float64]


def server(**values: Any) -> Server:
    """One shared weight that starts at 1, and a group of two values that start at 0."""
    blocks = [
        Block("w", (Parameter("w", (1,), torch.ones(1)),)),
        Block("g", (Parameter("g", (1,), torch.zeros(1)),)),
    ]
    layout = Layout(blocks, lambda name: SHARED if name == "w" else group("city"), {"city": 2})
    return Server(layout, torch.float64, Settings.checked({"dtype": "float64", **values}, "settings of a test"))


def step(found: Server, change: float, cities: tuple[float | None, float | None], weight: int = 4) -> None:
    """One round whose mean changes are these; None where nobody of the city took part."""
    upload = Upload.empty(found.layout)
    upload.sums = [
        torch.tensor([[round(change * weight * UNIT)]]),
        torch.tensor([[round((c or 0.0) * weight * UNIT)] for c in cities]),
    ]
    upload.weights = [torch.tensor([weight]), torch.tensor([0 if c is None else weight for c in cities])]
    found.step(upload)


def state(found: Server) -> list[float]:
    return [*found.state[0].flatten().tolist(), *found.state[1].flatten().tolist()]


def test_the_mean_is_added_at_the_servers_rate() -> None:
    found = server(server_lr=0.5)
    step(found, 0.25, (1.0, None))
    step(found, -0.5, (0.0, -2.0))
    assert state(found) == pytest.approx([1 + 0.125 - 0.25, 0.5, -1.0], abs=1e-12)


def test_momentum_adds_to_what_it_had() -> None:
    """FedAvgM: m <- beta m + change, w <- w + lr m; a city without participants keeps its weight and its m."""
    found = server(server_optimizer="momentum", server_momentum=0.5, server_lr=2.0)
    step(found, 0.25, (1.0, None))
    assert state(found) == pytest.approx([1.5, 2.0, 0.0], abs=1e-12)
    step(found, 0.5, (None, 3.0))  # m = 0.125 + 0.5
    assert state(found) == pytest.approx([2.75, 2.0, 6.0], abs=1e-12)
    step(found, 0.0, (1.0, -1.0))  # m = 0.3125; 0.5 + 1; 1.5 - 1
    assert state(found) == pytest.approx([3.375, 5.0, 7.0], abs=1e-12)


def test_adam_divides_by_the_root_of_the_second_moment() -> None:
    """FedAdam: beta 0.99 for the second moment, tau 1e-3 and no correction of the start."""
    found = server(server_optimizer="adam", server_momentum=0.9, server_lr=0.1)
    step(found, 0.25, (None, 0.0))
    m, v = 0.1 * 0.25, 0.01 * 0.25**2
    first = 1 + 0.1 * m / (sqrt(v) + 1e-3)
    assert state(found) == pytest.approx([first, 0.0, 0.0], abs=1e-12)
    step(found, -0.5, (0.5, None))
    m, v = 0.9 * m + 0.1 * -0.5, 0.99 * v + 0.01 * 0.5**2
    other = 0.1 * (0.1 * 0.5) / (sqrt(0.01 * 0.5**2) + 1e-3)
    assert state(found) == pytest.approx([first + 0.1 * m / (sqrt(v) + 1e-3), other, 0.0], abs=1e-12)


@pytest.mark.parametrize("optimizer", ["mean", "momentum", "adam"])
def test_a_round_of_nobody_changes_nothing_and_is_forgotten(optimizer: str) -> None:
    found, other = server(server_optimizer=optimizer), server(server_optimizer=optimizer)
    for one in (found, other):
        step(one, 0.25, (1.0, -1.0))
    before = state(found)
    found.step(Upload.empty(found.layout))
    assert state(found) == before
    for one in (found, other):
        step(one, 0.5, (0.5, 0.5))
    assert state(found) == state(other)


def test_momentum_of_zero_is_the_mean() -> None:
    found, other = server(server_optimizer="momentum", server_momentum=0.0, server_lr=0.7), server(server_lr=0.7)
    for change in (0.25, -1.0, 0.125):
        for one in (found, other):
            step(one, change, (change, None))
    assert state(found) == state(other)


@pytest.mark.parametrize(("prior", "expected"), [(0.0, [1.0, 0.0, 4.0]), (2.0, [0.5, 0.0, 4 / 3])])
def test_rows_of_a_table_are_means_over_those_who_touched_them(prior: float, expected: list[float]) -> None:
    """Sums of 2, 0 and 4 over two, none and one users; a prior counts as so many users without a change."""
    table = Table("t", 3, 2, torch.zeros(3, 2), lambda items, _: items[..., None])
    settings = Settings(dtype="float64", table_mean="touched", table_prior=prior)
    layout = Layout([], lambda _: SHARED, {}, [table])
    found = Server(layout, torch.float64, settings)
    upload = Upload.empty(layout, settings)
    assert upload.weights[0].shape == (3,)
    upload.sums = [torch.tensor([[2, -2, 0, 0, 4, -4]]) * UNIT]
    upload.weights = [torch.tensor([2, 0, 1])]
    found.step(upload)
    assert found.named()["t"][:, 0].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.named()["t"][:, 1].tolist() == pytest.approx([-x for x in expected], abs=1e-12)
