"""Phases, turns, halves, rates, kept copies and what is done before scoring, with gradients known by hand.

The logit of every row is a + b: the gradient of either is the mean of probability minus label.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arrays import Array, ArrayDataset, ToyEngine, toy, toy_engine
from fedpa.data.dataset import Dataset, Part
from fedpa.draws import uniform
from fedpa.federation.parameters import PERSONAL, SHARED, Block, Layout, Parameter, Scope
from fedpa.federation.rows import Batch
from fedpa.federation.rule import Phase
from fedpa.federation.schedule import QUERY, SUPPORT, halves, local_part
from fedpa.methods.method import FederatedMethod
from fedpa.models.foundation import Foundation
from fedpa.settings import Settings

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
LR = 0.5
LABELS = [[1], [1, 1, 0, 0], [0, 0, 1], [1, 0, 0, 0, 1, 1]]


class Sum:
    """``a + b``, both of which start at a tenth."""

    def __init__(self, method: FederatedMethod) -> None:
        blocks = [Block(n, (Parameter(n, (1,), torch.full((1,), 0.1, dtype=torch.float64)),)) for n in "ab"]
        self.layout = Layout(blocks, method.scope, {})

    def forward(self, blocks: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        return (blocks["a"] + blocks["b"]).expand(batch.items.shape), []


class Toy(FederatedMethod):
    """a is shared, b personal."""

    name = "toy"

    def scope(self, name: str) -> Scope:
        return SHARED if name == "a" else PERSONAL

    def build(self, foundation: Foundation | None, dataset: Dataset, seed: int, device: torch.device) -> Sum:
        return Sum(self)


def is_a(name: str) -> bool:
    return name == "a"


def is_b(name: str) -> bool:
    return name == "b"


def data() -> ArrayDataset:
    found = toy(4, np.array([len(labels) for labels in LABELS]))
    found._rows["part"][:] = Part.TRAIN
    found._rows["label"][:] = np.concatenate(LABELS)
    return found


def engine_of(folder: Path, method: type[Toy], **values: Any) -> ToyEngine:
    settings = {"dtype": "float64", "optimizer": "sgd", "lr": LR, **values}
    return toy_engine(folder, data(), method(Settings.checked(settings, "settings of a test")))


def slope(logit: float, labels: Any) -> float:
    return float(1 / (1 + np.exp(-logit)) - np.mean(labels))


def shared(engine: ToyEngine) -> float:
    return engine.server.named()["a"].item()


def kept(engine: ToyEngine) -> Array:
    """b of every user."""
    found: Array = 0.1 + engine.personal()[:, 0]
    return found


def test_turns_alternate_in_every_step(tmp_path: Path) -> None:
    class Turns(Toy):
        def phases(self, settings: Settings) -> tuple[Phase, ...]:
            return (Phase(settings.epochs, (is_b, is_a)),)

    engine = engine_of(tmp_path, Turns, epochs=2)
    upload = engine.round(1)
    after = []
    for user, labels in enumerate(LABELS):
        a = b = 0.1
        for _ in range(2):
            b -= LR * slope(a + b, labels)
            a -= LR * slope(a + b, labels)
        assert kept(engine)[user] == pytest.approx(b, abs=1e-12)
        after.append(a)
    assert shared(engine) == pytest.approx(np.mean(after), abs=1e-12)
    first = [np.logaddexp(0, -0.2) * np.mean(y) + np.logaddexp(0, 0.2) * (1 - np.mean(y)) for y in LABELS]
    assert upload.loss * 2.0**-44 == pytest.approx(sum(first), abs=1e-11)


def test_phases_follow_each_other_with_epochs_of_their_own(tmp_path: Path) -> None:
    class Phases(Toy):
        def phases(self, settings: Settings) -> tuple[Phase, ...]:
            return Phase(3, (is_b,)), Phase(settings.epochs, (is_a,)), Phase(1)

        def lr_scale(self, name: str) -> float:
            return 0.3 if name == "b" else 2.0

    engine = engine_of(tmp_path, Phases, epochs=2)
    expected_a, expected_b = 0.1, np.full(4, 0.1)
    for number in (1, 2):
        after = []
        for user, labels in enumerate(LABELS):
            a, b = expected_a, expected_b[user]
            for _ in range(3):
                b -= 0.3 * LR * slope(a + b, labels)
            for _ in range(2):
                a -= 2.0 * LR * slope(a + b, labels)
            both = slope(a + b, labels)
            a, expected_b[user] = a - 2.0 * LR * both, b - 0.3 * LR * both
            after.append(a)
        expected_a = float(np.mean(after))
        engine.round(number)
        assert shared(engine) == pytest.approx(expected_a, abs=1e-12)
        np.testing.assert_allclose(kept(engine), expected_b, **EXACT)


def test_every_phase_and_turn_has_a_fresh_adam(tmp_path: Path) -> None:
    """The first step of a fresh Adam is lr g / (|g| + eps), in every phase anew."""

    class Phases(Toy):
        def phases(self, settings: Settings) -> tuple[Phase, ...]:
            return Phase(1, (is_b, is_a)), Phase(1, (is_b,))

    engine = engine_of(tmp_path, Phases, optimizer="adam", adam_eps=0.1)
    engine.round(1)
    after = []
    for user, labels in enumerate(LABELS):
        a = b = 0.1
        for name in "bab":
            g = slope(a + b, labels)
            step = LR * g / (abs(g) + 0.1)
            a, b = (a - step, b) if name == "a" else (a, b - step)
        assert kept(engine)[user] == pytest.approx(b, abs=1e-12)
        after.append(a)
    assert shared(engine) == pytest.approx(np.mean(after), abs=1e-12)


def test_halves_are_disjoint_complete_and_drawn_anew() -> None:
    keys, count = np.arange(50, dtype=np.uint64), np.resize([1, 2, 5, 8], 50)
    draws = [halves(0, number, keys, count) for number in (1, 2)]
    for found in draws:
        for user, rows in enumerate(count):
            mine = found[user, :rows]
            if rows == 1:
                assert mine.tolist() == [SUPPORT | QUERY]
                continue
            assert (mine == SUPPORT).sum() == -(-rows // 2)
            assert (mine == QUERY).sum() == rows // 2
    assert (draws[0] != draws[1]).any()
    assert (halves(0, 1, keys[::-1], count[::-1])[::-1] == draws[0]).all()


def test_weights_of_a_half() -> None:
    """Equal over the wanted rows; zero for a user none of whose rows are wanted, and for padding."""
    half = np.array([[SUPPORT, QUERY, SUPPORT], [QUERY, QUERY, 0], [SUPPORT | QUERY, 0, 0]], np.int8)
    real, offsets = np.array([3, 2, 1]), np.array([[0, 1, 2], [0, 1, 1], [0, 0, 0]])
    assert local_part(real, offsets, half, "support").tolist() == [[0.5, 0, 0.5], [0, 0, 0], [1, 0, 0]]
    assert local_part(real, offsets, half, "query").tolist() == [[0, 1, 0], [0.5, 0.5, 0], [1, 0, 0]]
    assert local_part(real, offsets, None, "all").tolist() == [[1 / 3] * 3, [0.5, 0.5, 0], [1, 0, 0]]


def test_a_phase_may_see_one_half(tmp_path: Path) -> None:
    class Halved(Toy):
        def phases(self, settings: Settings) -> tuple[Phase, ...]:
            return Phase(2, (is_b,), "support"), Phase(1, (is_a,), "query")

    engine = engine_of(tmp_path, Halved)
    half = halves(0, 1, engine.shards[0].rows.keys, engine.shards[0].rows.train)
    engine.round(1)
    after = []
    for user, labels in enumerate(LABELS):
        mine = half[user, : len(labels)]
        support, query = (np.array(labels)[(mine & part) > 0] for part in (SUPPORT, QUERY))
        a = b = 0.1
        for _ in range(2):
            b -= LR * slope(a + b, support)
        after.append(a - LR * slope(a + b, query))
        assert kept(engine)[user] == pytest.approx(b, abs=1e-12)
    assert shared(engine) == pytest.approx(np.mean(after), abs=1e-12)


@pytest.mark.parametrize("keep_optimizer", [False, True])
def test_what_is_forgotten_is_made_again_before_scoring(tmp_path: Path, keep_optimizer: bool) -> None:
    class Rebuilt(Toy):
        forgets_personal = True

        def before_scoring(self, settings: Settings) -> tuple[Phase, ...]:
            return (Phase(3, (is_b,)),)

    engine = engine_of(tmp_path, Rebuilt, keep_optimizer=keep_optimizer)
    for number in (1, 2):
        a = shared(engine)
        engine.round(number)
        mean = np.mean([a - LR * slope(a + 0.1, labels) for labels in LABELS])
        assert shared(engine) == pytest.approx(mean, abs=1e-12)  # b began at its start again
        assert not engine.stored()[0][""][0]
    expected = []
    for labels in LABELS:
        b = 0.1
        for _ in range(3):
            b -= LR * slope(shared(engine) + b, labels)
        expected += [1 / (1 + np.exp(-shared(engine) - b))] * len(labels)
    for _ in range(2):  # scoring leaves nothing behind
        np.testing.assert_allclose(engine.scores(), expected, **EXACT)


@pytest.mark.parametrize("forgets", [False, True])
def test_the_prior_holds_before_scoring_too(tmp_path: Path, forgets: bool) -> None:
    """A step on b, then towards its start by k = lr lambda / rows: d' = (d - lr g) / (1 + k); a feels nothing of it."""

    class Scored(Toy):
        forgets_personal = forgets

        def before_scoring(self, settings: Settings) -> tuple[Phase, ...]:
            return (Phase(2, (is_b,)),)

    decay = 3.0
    engine = engine_of(tmp_path, Scored, personal_decay=decay)

    def stepped(distance: float, a: float, labels: list[int]) -> float:
        moved = distance - LR * slope(a + 0.1 + distance, labels)
        return moved / (1 + LR * decay / len(labels))

    engine.round(1)
    a = shared(engine)
    expected = []
    for labels in LABELS:
        distance = 0.0 if forgets else stepped(0.0, 0.1, labels)
        for _ in range(2):
            distance = stepped(distance, a, labels)
        expected += [1 / (1 + np.exp(-a - 0.1 - distance))] * len(labels)
    for _ in range(2):  # scoring leaves nothing behind
        np.testing.assert_allclose(engine.scores(), expected, **EXACT)


def test_adam_before_scoring_knows_nothing_of_the_rounds(tmp_path: Path) -> None:
    class Rebuilt(Toy):
        forgets_personal = True

        def before_scoring(self, settings: Settings) -> tuple[Phase, ...]:
            return (Phase(1, (is_b,)),)

    engine = engine_of(tmp_path, Rebuilt, keep_optimizer=True, optimizer="adam", adam_eps=0.1, epochs=2)
    engine.round(1)
    expected = []
    for labels in LABELS:
        g = slope(shared(engine) + 0.1, labels)
        logit = shared(engine) + 0.1 - LR * g / (abs(g) + 0.1)
        expected += [1 / (1 + np.exp(-logit))] * len(labels)
    np.testing.assert_allclose(engine.scores(), expected, **EXACT)


def test_kept_copies_score_and_the_mean_trains(tmp_path: Path) -> None:
    """Who took part scores with its own a, who did not with the server's; the server knows the mean alone."""

    class Kept(Toy):
        def scope(self, name: str) -> Scope:
            return Scope("shared", keeps=True) if name == "a" else PERSONAL

    engine = engine_of(tmp_path, Kept, participation=0.5)
    a, own, b = 0.1, np.full(4, np.nan), np.full(4, 0.1)
    shares = set()
    for number in range(1, 5):
        taking = [u for u in range(4) if takes_part(engine, number, u)]
        for user in taking:
            change = -LR * slope(a + b[user], LABELS[user])
            own[user], b[user] = a + change, b[user] + change
        a = a + float(np.mean([own[u] - a for u in taking])) if taking else a
        assert engine.round(number).participants == len(taking)
        shares.add(len(taking))
        assert shared(engine) == pytest.approx(a, abs=1e-12)
        logits = np.where(np.isnan(own), a, own) + b
        expected = np.repeat(1 / (1 + np.exp(-logits)), [len(labels) for labels in LABELS])
        np.testing.assert_allclose(engine.scores(), expected, **EXACT)
        newcomer = engine.shards[0].weights_of_newcomer(0, engine.data, engine.server.state)
        np.testing.assert_allclose(newcomer[0].numpy(), [a, 0.1], **EXACT)
    assert len(shares) > 1


def takes_part(engine: ToyEngine, number: int, user: int) -> bool:
    return bool(uniform(0, "participate", (number,), engine.shards[0].rows.keys[[user]])[0] < 0.5)
