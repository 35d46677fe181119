"""Aggregates that a few poisoned uploads cannot move far, for scopes of which the server sees single uploads.

*Coordinate-wise trimmed mean and median* (Yin, Chen, Ramchandran & Bartlett, *Byzantine-Robust Distributed Learning:
Towards Optimal Statistical Rates*, ICML 2018, definitions 1 and 2): of the participants' changes of every single
weight the lowest and the highest are left out, or the middle one is taken. *Norm bound* (Sun, Kairouz, Suresh &
McMahan, *Can You Really Backdoor Federated Learning?*, 2019, section 3): a participant's whole change is scaled down to
a length of at most M, then averaged.

Within a group, over those who have the value; in a table, over all participants (zeros of those who do not touch a row
among them) or over those who touch the row, as ``table_mean`` says. All is computed on the same integers that exact
sums are made of (`fedpa.federation.upload.FRACTION_BITS`), so the order of uploads and the division into shards change
no bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.errors import ConfigError
from fedpa.federation.parameters import Layout, Vector
from fedpa.federation.upload import FRACTION_BITS, TableRows, Upload, vector_name
from fedpa.settings import Settings

__all__ = ["check_visibility", "robust_sums"]

_AT_ONCE = 1 << 22
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def check_visibility(layout: Layout, settings: Settings, *, secure: bool = False) -> None:
    """Refuse what cannot be computed from what the server sees.

    Parameters
    ----------
    layout : Layout
    settings : Settings
    secure : bool
        Whether sums are masked, so that nobody sees a single upload.

    Raises
    ------
    ConfigError
        If rows are to be seen under secure sums, if a robust aggregate is asked of scopes whose sums alone are seen, or
        if participants weigh as much as they say they do.
    """
    hidden = [vector_name(vector) for vector in layout.uploaded if vector.scope.sees != "rows"]
    if secure and len(hidden) < len(layout.uploaded):
        seen = sorted({vector_name(vector) for vector in layout.uploaded} - set(hidden))
        raise ConfigError(
            f"secure sums hide single uploads, but the server is to see the rows of: {', '.join(seen)}",
            "leave secure sums out, or take a method of sums alone with --set visible=sum aggregation=mean",
        )
    if settings.aggregation == "mean":
        return
    if hidden:
        raise ConfigError(
            f"aggregation={settings.aggregation} compares single uploads, but the server sees the sums alone of: "
            f"{', '.join(hidden)}",
            "let it see them with --set visible=rows, or take --set aggregation=mean",
        )
    if settings.weighting != "users":
        raise ConfigError(
            f"aggregation={settings.aggregation} counts every participant once, but weighting={settings.weighting} "
            "counts it by the rows that it says it has",
            "take --set weighting=users",
        )


def robust_sums(upload: Upload, layout: Layout, settings: Settings) -> list[Tensor]:
    """Sums whose mean over the participants is the robust aggregate, so that all that follows a mean stays as it is.

    Parameters
    ----------
    upload : Upload
        With the rows that were seen.
    layout : Layout
    settings : Settings

    Returns
    -------
    list of Tensor
        Per uploaded scope what stands in for ``upload.sums``, in the same units, float64 [values, size].
    """
    pieces = [_seen(upload, vector, settings) for vector in layout.uploaded]
    if settings.aggregation == "norm_bound":
        pieces = _bounded(pieces, settings)
    return [
        _aggregated(vector, piece, weights.numpy(), settings).view(total.shape)
        for vector, piece, weights, total in zip(layout.uploaded, pieces, upload.weights, upload.sums, strict=True)
    ]


def _seen(upload: Upload, vector: Vector, settings: Settings) -> TableRows:
    """All entries of a scope, by user, then row."""
    name = vector_name(vector)
    pieces = [one for one in upload.seen if one.table == name]
    if not pieces:
        none, width = np.zeros(0, np.int64), vector.size if vector.table is None else vector.table.width
        return TableRows(name, none, none, torch.zeros(0, width, dtype=settings.torch_dtype))
    users, ids = (np.concatenate([getattr(one, field) for one in pieces]) for field in ("users", "ids"))
    return TableRows(name, users, ids, torch.cat([one.values for one in pieces])).sorted()


def _bounded(pieces: list[TableRows], settings: Settings) -> list[TableRows]:
    """Every user's change, over all scopes, scaled to the bound where it is longer."""
    users = np.unique(np.concatenate([one.users for one in pieces]))
    square = np.zeros(len(users))
    for one in pieces:
        values = one.values.double().numpy()
        square += np.bincount(np.searchsorted(users, one.users), (values * values).sum(1), minlength=len(users))
    with np.errstate(divide="ignore"):
        scale = np.minimum(1.0, settings.norm_bound / np.sqrt(square))
    return [
        TableRows(
            one.table,
            one.users,
            one.ids,
            one.values.double() * torch.from_numpy(scale[np.searchsorted(users, one.users)])[:, None],
        )
        for one in pieces
    ]


def _aggregated(vector: Vector, piece: TableRows, weights: Ints, settings: Settings) -> Tensor:
    """Sums of one scope as a table [rows, width]."""
    rows, width = (vector.values, vector.size) if vector.table is None else (vector.table.rows, vector.table.width)
    units = (piece.values.double() * 2.0 ** FRACTION_BITS[settings.torch_dtype]).round_().to(torch.int64).numpy()
    if settings.aggregation == "norm_bound":
        total = torch.zeros(rows, width, dtype=torch.int64)
        return total.index_add_(0, torch.from_numpy(piece.ids), torch.from_numpy(units)).double()
    found = np.zeros((rows, width))
    number = np.broadcast_to(weights, rows)
    middle = _median if settings.aggregation == "median" else _trimmed
    for here, columns, values in _blocks(piece.ids, units, rows):
        zeros = number[here] - values.shape[1]
        found[here[:, None], columns] = middle(np.sort(values, axis=1), zeros, settings)
    return torch.from_numpy(found)


def _blocks(ids: Ints, units: Ints, rows: int) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Dense blocks of rows that equally many users have.

    Yields
    ------
    here : ndarray
        Rows of the table [some].
    columns : ndarray
        Of those rows [few].
    values : ndarray
        [some, users of each, few].
    """
    order = np.argsort(ids, kind="stable")
    count = np.bincount(ids, minlength=rows)
    begin, every = np.cumsum(count) - count, np.arange(units.shape[1])
    for users in np.unique(count[count > 0]).tolist():
        alike = np.flatnonzero(count == users)
        wide = max(1, min(len(every), _AT_ONCE // users))
        many = max(1, _AT_ONCE // (users * wide))
        for first in range(0, len(alike), many):
            here = alike[first : first + many]
            entries = order[begin[here][:, None] + np.arange(users)]
            for left in range(0, len(every), wide):
                columns = every[left : left + wide]
                yield here, columns, units[entries[:, :, None], columns]


def _trimmed(values: Ints, zeros: Ints, settings: Settings) -> Floats:
    """Sums without the lowest and the highest share, scaled to all.

    Parameters
    ----------
    values : ndarray
        Ascending along the users [rows, users, columns].
    zeros : ndarray
        How many zeros there are beside them in each row [rows].
    settings : Settings
        The share that goes at each end.

    Returns
    -------
    ndarray
        [rows, columns].
    """
    here = values.shape[1]
    number = (here + zeros)[:, None]
    cut = (settings.trim * number).astype(np.int64)
    # Of the `cut` lowest those that are zeros cost nothing; likewise of the highest.
    low = np.maximum(np.minimum(cut, (values < 0).sum(1)), cut - zeros[:, None])
    high = np.maximum(np.minimum(cut, (values > 0).sum(1)), cut - zeros[:, None])
    until = np.concatenate([np.zeros_like(values[:, :1]), values.cumsum(1)], axis=1)
    kept = np.take_along_axis(until, (here - high)[:, None], 1) - np.take_along_axis(until, low[:, None], 1)
    scaled: Floats = kept[:, 0] * (number / (number - 2 * cut))
    return scaled


def _median(values: Ints, zeros: Ints, _: Settings) -> Floats:
    """The middle value, or the mean of the two in the middle, times the number of users; as `_trimmed`."""
    number = (values.shape[1] + zeros)[:, None]
    below = (values < 0).sum(1)

    def at(place: Ints) -> Ints:
        own = np.where(place < below, place, place - zeros[:, None])
        found = np.take_along_axis(values, np.clip(own, 0, values.shape[1] - 1)[:, None], 1)[:, 0]
        return np.where((place >= below) & (place < below + zeros[:, None]), 0, found)

    middle: Floats = (at((number - 1) // 2) / 2 + at(number // 2) / 2) * number
    return middle
