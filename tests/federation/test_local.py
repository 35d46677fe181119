"""Local training is PyTorch's, user by user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from arrays import CPU
from fedpa.federation.local import LocalTrainer
from fedpa.federation.parameters import PERSONAL, SHARED, Block, Layout, Parameter
from fedpa.federation.rows import Batch
from fedpa.federation.rule import AdaptedModel, LocalRule, LocalStep, click_loss
from fedpa.settings import Settings

USERS, ROWS, WIDTH = 5, 7, 4


class Net:
    """A tiny network, one block of which the loss does not depend on."""

    def __init__(self) -> None:
        shapes = {"w": (3, WIDTH), "idle": (2,), "v": (1, 3), "c": (1,)}
        blocks = [Block(name, (Parameter(name, shape, torch.zeros(shape)),)) for name, shape in shapes.items()]
        self.layout = Layout(blocks, lambda name: PERSONAL if name == "c" else SHARED, {})
        self.inputs = torch.randn(50, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        x = self.inputs[batch.items].to(blocks["w"].dtype)
        hidden = torch.tanh(torch.bmm(x, blocks["w"].mT))
        return torch.bmm(hidden, blocks["v"].mT).squeeze(-1) + blocks["c"], []


def steps(number: int) -> list[tuple[Batch, Tensor, Tensor]]:
    """Batches of random rows with labels; weights sum to one, the last row of odd users is padding."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(number):
        items = torch.randint(0, 50, (USERS, ROWS), generator=draw)
        labels = torch.randint(0, 2, (USERS, ROWS), generator=draw).double()
        weights = torch.ones(USERS, ROWS, dtype=torch.float64)
        weights[1::2, -1] = 0
        found.append((Batch(torch.arange(USERS), items, items[..., :0]), labels, weights / weights.sum(1, True)))
    return found


@pytest.mark.parametrize("number", [1, 2, 9])
@pytest.mark.parametrize(
    "chosen",
    [
        {"optimizer": "adam", "lr": 0.03},
        {"optimizer": "adam", "lr": 0.1, "adam_betas": (0.5, 0.7), "adam_eps": 0.01},
        {"optimizer": "sgd", "lr": 0.4},
    ],
)
def test_each_user_trains_as_alone_with_pytorch(number: int, chosen: dict[str, Any]) -> None:
    settings = Settings.checked(chosen | {"dtype": "float64"}, "settings of a test")
    net, plan = Net(), steps(number)
    trainer = LocalTrainer(net, LocalRule(), settings, USERS, CPU)
    begin = torch.randn(USERS, net.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for _ in range(2):  # a second round starts afresh
        trainer.weights[:USERS] = begin
        trainer.start()
        losses = [trainer.step(*step, last=index == number - 1) for index, step in enumerate(plan)]
    for user in range(USERS):
        flat = begin[user : user + 1].clone()
        own = {name: view.clone().requires_grad_() for name, view in net.layout.views(flat).items()}
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(own.values(), lr=settings.lr)
            if settings.optimizer == "sgd"
            else torch.optim.Adam(own.values(), lr=settings.lr, betas=settings.adam_betas, eps=settings.adam_eps)
        )
        for index, (batch, labels, weights) in enumerate(plan):
            real = weights[user] > 0
            mine = Batch(batch.users[user : user + 1], batch.items[user, real][None], batch.context[:1])
            logits = net.forward(own, mine)[0][0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[user, real])
            assert losses[index][user].item() == pytest.approx(loss.item(), abs=1e-12)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = torch.cat([value.detach().flatten() for value in own.values()])
        torch.testing.assert_close(trainer.change[user], after - begin[user], rtol=0, atol=1e-12)


def test_one_step_of_adam_with_tiny_gradients() -> None:
    """The first step is lr g / (|g| + eps): of a gradient as small as eps, half of lr."""
    settings = Settings.checked({"lr": 0.1, "adam_eps": 1e-3, "dtype": "float64"}, "settings of a test")
    net = Net()

    class Sum(LocalRule):
        def loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            return logits.sum(1) * 1e-3 / ROWS

    trainer = LocalTrainer(net, Sum(), settings, USERS, CPU)
    trainer.weights.zero_()
    trainer.start()
    trainer.step(*steps(1)[0], last=True)
    c = net.layout.views(trainer.change)["c"]
    torch.testing.assert_close(c, torch.full_like(c, -0.05), rtol=0, atol=1e-12)
    assert not net.layout.views(trainer.change)["idle"].any()


class _Tilted(LocalRule):
    """The same gradient whatever the weights, and twice the rate for what is personal."""

    def lr_scale(self, name: str) -> float:
        return 2.0 if name == "c" else 1.0

    def local_loss(self, model: AdaptedModel, step: LocalStep) -> Tensor:
        return 0.25 * step.blocks["c"].sum(1) + 0.5 * step.blocks["idle"].sum(1)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, [0.15, 0.3, -0.3 / 1.5]),
        (2, [(0.15 - 0.25) / 5, (0.3 - 0.25) / 1.5, (-0.2 - 0.25) / 1.5]),
    ],
)
def test_personal_decay_is_an_implicit_step(number: int, expected: list[float]) -> None:
    """A step of -0.25, then towards the start: d' = d - 0.25 - k d' with k = rate lambda / rows, here 4 / rows."""
    settings = Settings.checked(
        {"optimizer": "sgd", "lr": 0.5, "personal_decay": 4.0, "dtype": "float64"}, "settings of a test"
    )
    net, plan = Net(), steps(number)
    trainer = LocalTrainer(net, _Tilted(), settings, USERS, CPU)
    distance = torch.zeros(USERS, net.layout.size, dtype=torch.float64)
    before = torch.tensor([1.0, 0.7, -0.05, 0.0, 0.0], dtype=torch.float64)
    net.layout.views(distance)["c"][:, 0] = before
    trainer.weights.fill_(3.0)  # where a start is, only the distance says
    rows = torch.tensor([[1.0], [8.0], [8.0], [1.0], [1.0]], dtype=torch.float64)
    trainer.start(distance=distance, rows=rows)
    for index, step in enumerate(plan):
        trainer.step(*step, last=index == number - 1)
    moved = net.layout.views(trainer.change)
    after = (before + moved["c"][:, 0])[:3]
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved["idle"], torch.full_like(moved["idle"], -0.25 * number), rtol=0, atol=1e-12)
    assert not moved["w"].any()
    assert not moved["v"].any()


def test_the_strongest_prior_leaves_everything_at_its_start() -> None:
    """An explicit step would overshoot."""
    settings = Settings.checked(
        {"optimizer": "sgd", "lr": 0.5, "personal_decay": 1e12, "dtype": "float64"}, "settings of a test"
    )
    net = Net()
    trainer = LocalTrainer(net, _Tilted(), settings, USERS, CPU)
    distance = torch.ones(USERS, net.layout.size, dtype=torch.float64)
    trainer.weights.zero_()
    trainer.start(distance=distance, rows=torch.ones(USERS, 1, dtype=torch.float64))
    for index, step in enumerate(steps(3)):
        trainer.step(*step, last=index == 2)
    c = net.layout.views(trainer.change)["c"]
    torch.testing.assert_close(c, torch.full_like(c, -1.0), rtol=0, atol=1e-11)


def test_the_loss_is_the_mean_over_real_rows() -> None:
    logits = torch.tensor([[0.3, -2.0, 50.0], [1.0, 1.0, -80.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.5, 0.0], [1 / 3] * 3], dtype=torch.float64)
    p = 1 / (1 + (-logits).exp())
    by_hand = -(labels * p.log() + (1 - labels) * (-logits - (1 + (-logits).exp()).log()))
    found = click_loss(logits, labels, weights)
    assert found[0].item() == pytest.approx(by_hand[0, :2].mean().item())
    assert found[1].item() == pytest.approx(by_hand[1].mean().item())
