"""Products of rows with weights of each user."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedpa.models.products import gather_rows, rows_times, split_times


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def test_rows_meet_the_weight_of_their_user() -> None:
    rows, weight = draw(3, 5, 4), draw(3, 2, 4)
    found = rows_times(rows, weight)
    for user in range(3):
        torch.testing.assert_close(found[user], rows[user] @ weight[user].T)
    torch.testing.assert_close(rows_times(rows, weight[1]), rows @ weight[1].T)


SHAPES = [(3, 5, 2, 4, 6), (1, 1, 1, 1, 1), (2, 7, 3, 0, 2), (2, 3, 0, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_split_product_is_the_product_of_the_whole(shape: tuple[int, int, int, int, int]) -> None:
    users, rows, user_in, row_in, out = shape
    user, row, weight = draw(users, 1, user_in), draw(users, rows, row_in), draw(users, out, user_in + row_in)
    found = split_times(user, row, weight)
    expected = rows_times(torch.cat([user.expand(-1, rows, -1), row], -1), weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    probe = draw(*found.shape).detach()
    for a, b in zip(
        torch.autograd.grad((found * probe).sum(), (user, row, weight)),
        torch.autograd.grad((expected * probe).sum(), (user, row, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gradients_of_a_split_product() -> None:
    inputs = draw(2, 1, 3), draw(2, 4, 2), draw(2, 3, 5)
    assert torch.autograd.gradcheck(split_times, inputs)
    for wanted in range(3):
        some = tuple(x if place == wanted else x.detach() for place, x in enumerate(inputs))
        assert torch.autograd.gradcheck(split_times, some)


def test_weights_that_are_views_of_a_longer_vector() -> None:
    """As the engine gives them: strided over users."""
    flat = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    view = flat[:, 7:27].view(3, 4, 5).requires_grad_()
    user, row = draw(3, 1, 2), draw(3, 6, 3)
    torch.testing.assert_close(split_times(user, row, view), split_times(user, row, view.detach().clone()))
    assert torch.autograd.gradcheck(split_times, (user, row, view))


def places(users: int, rows: int, ids: int, length: int) -> Tensor:
    """Slots among `length` rows, some of them several times and some never."""
    return torch.randint(0, length, (users, rows, ids), generator=torch.Generator().manual_seed(users + rows))


def indexed(table: Tensor, slots: Tensor) -> Tensor:
    return torch.stack([table[user][slots[user]] for user in range(len(table))])


@pytest.mark.parametrize("shape", [(3, 5, 2, 7, 4), (1, 1, 1, 1, 1), (2, 6, 1, 3, 5), (4, 0, 2, 3, 2), (2, 9, 3, 2, 1)])
def test_rows_of_each_users_own_table(shape: tuple[int, int, int, int, int]) -> None:
    users, rows, ids, length, width = shape
    table, slots = draw(users, length, width), places(users, rows, ids, length)
    found, expected = gather_rows(table, slots), indexed(table, slots)
    assert found.shape == (users, rows, ids, width)
    assert torch.equal(found, expected)
    probe = draw(*found.shape).detach()
    (ours,), (plain,) = (torch.autograd.grad((x * probe).sum(), (table,)) for x in (found, expected))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)


def test_gradients_of_gathered_rows() -> None:
    slots = places(3, 4, 2, 5)
    assert torch.autograd.gradcheck(lambda table: gather_rows(table, slots), (draw(3, 5, 2),))


def test_gathering_from_views_and_from_a_table_that_all_share() -> None:
    """As the engine gives them: the table is a part of each user's flat vector, or one for all."""
    flat = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    view, slots = flat[:, 7:27].unflatten(1, (-1, 4)), places(3, 6, 2, 5)
    assert torch.equal(gather_rows(view, slots), indexed(view, slots))
    assert torch.autograd.gradcheck(lambda table: gather_rows(table, slots), (view.clone().requires_grad_(),))
    shared = flat[0, 3:23].view(5, 4)[None].expand(3, -1, -1)
    assert shared.stride(0) == 0
    assert torch.equal(gather_rows(shared, slots), indexed(shared, slots))


def test_a_slot_counts_as_often_as_it_occurs() -> None:
    table = torch.zeros(1, 3, 2, requires_grad=True)
    gather_rows(table, torch.tensor([[[0, 2], [2, 2]]])).sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[[1, 1], [0, 0], [3, 3]]]
