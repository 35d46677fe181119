"""Products of rows with per-user weights.

A weight may carry a tensor ``main_grad`` of its own shape: then its gradient through `split_times` is that tensor,
filled in place, which spares a copy of what is by far the largest part of a user's parameters. Such a weight must be
used once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["gather_rows", "rows_times", "split_times"]


def rows_times(rows: Tensor, weight: Tensor) -> Tensor:
    """Each user's rows times that user's weight, ``y = x W^T``.

    Parameters
    ----------
    rows : Tensor
        [users, rows, in].
    weight : Tensor
        [users, out, in], or [out, in] for a weight that all users share.

    Returns
    -------
    Tensor
        [users, rows, out].
    """
    if weight.dim() == 2:
        return torch.nn.functional.linear(rows, weight)
    return torch.bmm(rows, weight.transpose(1, 2))


def split_times(user: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """`rows_times` for an input whose first part is the same in all of a user's rows.

    Equal to ``rows_times(cat([user.expand(...), rows], -1), weight)`` up to rounding, but the user's part is
    multiplied once per user instead of once per row, forward and backward.

    Parameters
    ----------
    user : Tensor
        [users, 1, user_in].
    rows : Tensor
        [users, rows, row_in].
    weight : Tensor
        [users, out, user_in + row_in].
    """
    product: Tensor = _SplitTimes.apply(user, rows, weight)  # type: ignore[no-untyped-call]
    return product


class _SplitTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, user: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(user, rows, weight)
        ctx.main_grad = getattr(weight, "main_grad", None)
        cut = user.shape[-1]
        product = torch.bmm(rows, weight[:, :, cut:].transpose(1, 2))
        return product.add_(torch.bmm(user, weight[:, :, :cut].transpose(1, 2)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,) = gradients
        user, rows, weight = ctx.saved_tensors
        cut = user.shape[-1]
        by_user = gradient.sum(1, keepdim=True)
        of_user = of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_user = torch.bmm(by_user, weight[:, :, :cut])
        if ctx.needs_input_grad[1]:
            of_rows = torch.bmm(gradient, weight[:, :, cut:])
        if ctx.needs_input_grad[2]:
            of_weight = weight.new_empty(weight.shape) if ctx.main_grad is None else ctx.main_grad
            torch.mul(by_user.transpose(1, 2), user, out=of_weight[:, :, :cut])
            of_weight[:, :, cut:] = torch.bmm(gradient.transpose(1, 2), rows)
        return of_user, of_rows, of_weight


def gather_rows(table: Tensor, slots: Tensor) -> Tensor:
    """Rows of each user's own table.

    Parameters
    ----------
    table : Tensor
        [users, touched rows, width]; the first stride may be anything, 0 for a table that all users share.
    slots : Tensor
        Places in it [users, rows, ids], int64.

    Returns
    -------
    Tensor
        [users, rows, ids, width].
    """
    found: Tensor = _GatherRows.apply(table, slots)  # type: ignore[no-untyped-call]
    return found


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.shape = table.shape
        users, length, width = table.shape
        step = table.stride(0)
        # Every row of every user as a window over the memory, so that one selection serves them all.
        windows = table.as_strided(((users - 1) * step + (length - 1) * width + 1, width), (1, 1))
        first = torch.arange(users, device=table.device)[:, None, None] * step
        return windows.index_select(0, (first + slots * width).flatten()).view(*slots.shape, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        users, length, width = ctx.shape
        (gradient,) = gradients
        place = slots + torch.arange(users, device=slots.device)[:, None, None] * length
        total = gradient.new_zeros(users * length, width)
        # In the order of rows, whoever else is in the chunk.
        total.index_add_(0, place.flatten(), gradient.reshape(-1, width))
        return total.view(users, length, width), None
