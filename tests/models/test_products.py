"""Products of rows with weights of each user."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedpa.models.products import rows_times, split_times


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
