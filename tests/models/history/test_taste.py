"""The taste: ridge regression by hand, all prefixes at once, and what it learns of a world with known tastes."""

from __future__ import annotations

import numpy as np
import torch

from fedpa.data.dataset import Part
from fedpa.data.past import Past, Queries
from fedpa.data.statistics import Counted
from fedpa.models.history.taste import Taste
from fedpa.models.history.taste_fit import fit_taste


def test_no_rows_no_taste_and_one_by_hand() -> None:
    taste = Taste((2,), 1)
    with torch.no_grad():
        taste.table.weight.copy_(torch.tensor([[1.0, 0.5], [-2.0, 0.0]]))
        taste.precision.copy_(torch.tensor([2.0, 3.0]).log())
        taste.curvature.copy_(torch.tensor(0.25).log())
    vectors, bases = (each.double().detach().numpy() for each in taste.items(torch.tensor([[0], [1]])))
    assert vectors.tolist() == [[1, 1], [-2, 1]]
    assert bases.tolist() == [0.5, 0.0]
    own = np.array([[0]]), np.array([[True]])
    nothing = taste.read(vectors, bases, *own, np.array([[False]]), np.array([[0, 1]]))
    assert nothing[0].tolist() == [[0, 0]]
    assert nothing[1].tolist() == [0]
    found, lean = taste.read(vectors, bases, *own, np.array([[True]]), np.array([[0, 1]]))
    surprise = 1 - 1 / (1 + np.exp(-0.5))
    weights = np.linalg.solve([[2 + 0.25, 0.25], [0.25, 3 + 0.25]], [surprise, surprise])
    assert np.allclose(found, [[weights[0], -2 * weights[0]]], atol=1e-7)
    assert np.allclose(lean, weights[1], atol=1e-7)


def test_all_prefixes_at_once_are_each_prefix() -> None:
    torch.manual_seed(0)
    taste = Taste((5, 3), 3).double()
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(np.stack([rng.integers(0, 5, 20), rng.integers(0, 3, 20)], 1))
    vectors, bases = taste.items(codes)
    items, clicks = rng.integers(0, 20, (2, 9)), rng.random((2, 9)) < 0.5
    moment, matrix = taste.prefixes(
        vectors[items], bases[items], torch.from_numpy(clicks).double(), torch.ones(2, 9, dtype=torch.float64)
    )
    weights = taste.solve(moment, matrix).detach().numpy()
    candidates = rng.integers(0, 20, (2, 4))
    for length in range(10):
        real = np.broadcast_to(np.arange(9) < length, (2, 9))
        found, lean = taste.read(vectors.detach().numpy(), bases.detach().numpy(), items, clicks, real, candidates)
        expected = (weights[:, length, None, :-1] * vectors.detach().numpy()[candidates][..., :-1]).sum(-1)
        assert np.allclose(found, expected, atol=1e-9)
        assert np.allclose(lean, weights[:, length, -1], atol=1e-9)


def test_it_learns_what_users_differ_in() -> None:
    """Two colours, and users who like one of them: after eight rows the taste tells which."""
    rng = np.random.default_rng(1)
    users, rows, items = 200, 16, 40
    colour = np.arange(items) % 2
    likes = rng.integers(0, 2, users)
    user = np.repeat(np.arange(users), rows)
    item = rng.integers(0, items, len(user))
    click = rng.random(len(user)) < np.where(colour[item] == likes[user], 0.85, 0.15)
    part = np.full(len(user), Part.FOUNDATION, np.uint8)
    past = Past(Counted(user.astype(np.uint32), item.astype(np.uint32), np.arange(len(user)), click, part), users)
    seen = np.tile(np.arange(rows), users)
    half = np.full((len(user), 1), 10), np.full((len(user), 1), 5)
    total = np.full(len(user), 10), np.full(len(user), 5)
    queries = Queries(user, np.arange(len(user)), seen, seen * 0, item[:, None], *half, *total)
    train, held_out = (
        (queries.at(np.flatnonzero(chosen)), click[chosen].astype(int)) for chosen in (user < 150, user >= 150)
    )
    taste, facts = fit_taste((2,), 2, past, colour[:, None], train, held_out, 0)
    assert facts["logloss"] < 0.62  # a coin has 0.693; with the taste known from the start it would be 0.42
    vectors, bases = (each.double().numpy() for each in taste.items(torch.from_numpy(colour[:, None])))
    places, real = past.recent(np.arange(150, users), np.full(50, 8), 8)
    found, _ = taste.read(vectors, bases, past.item[places], past.click[places], real, np.tile([0, 1], (50, 1)))
    assert ((found[:, 1] > found[:, 0]) == (likes[150:] == 1)).mean() > 0.9
