"""What a shard returns from a round: exact sums, and single users' rows where a scope lets the server see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.errors import FedpaError
from fedpa.federation.parameters import Layout, Vector
from fedpa.settings import Settings

__all__ = ["FRACTION_BITS", "SUM_LIMIT", "TableRows", "Upload", "diverged", "exact_product", "vector_name"]

FRACTION_BITS = {torch.float32: 36, torch.float64: 44}
"""Changes are summed as integer multiples of 2^-bits. At 36 bits a change is rounded by less than 1e-11, far below
float32's own rounding, and sums may reach 6.7e7; at 44 bits by less than 3e-14, and sums may reach 2.6e5."""

SUM_LIMIT = 2.0**62
"""Absolute sums stay below it, so that no sum of integers overflows."""

_HALF_BITS = 24


def exact_product(member: Tensor, units: Tensor, bound: float) -> Tensor:
    """Sums of integers in floating point, exactly.

    Float64 adds integers exactly while no sum passes 2^53; where one might, the upper bits are summed apart.

    Parameters
    ----------
    member : Tensor
        Weights [values, users], int64.
    units : Tensor
        Integers [users, size] in floating point.
    bound : float
        Upper bound of every absolute sum; below 2^62.

    Returns
    -------
    Tensor
        ``member @ units`` [values, size], int64.
    """
    weight, units = member.double(), units.double()
    if bound < 2.0**53:
        return (weight @ units).to(torch.int64)
    high = (units * 2.0**-_HALF_BITS).floor_()
    low = torch.sub(units, high, alpha=2.0**_HALF_BITS)
    return ((weight @ high).to(torch.int64) << _HALF_BITS) + (weight @ low).to(torch.int64)


def vector_name(vector: Vector) -> str:
    """What an uploaded scope is called in messages: a table's name, or the scope and whether its rows are seen."""
    if vector.table is not None:
        return vector.table.name
    return str(vector.scope) + (", rows" if vector.scope.sees == "rows" else "")


@dataclass(frozen=True)
class TableRows:
    """Rows of a table that belong to single users: what a server with ``rows`` visibility sees, or sends back.

    What is shared is a table of one row, and a group one of a row per value.

    Attributes
    ----------
    table : str
        As `vector_name` says.
    users, ids : ndarray
        User number and row of the table of each entry [entries], int64.
    values : Tensor
        Differences to the shared table [entries, width].
    """

    table: str
    users: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    values: Tensor

    def sorted(self) -> TableRows:
        """By user, then row, so that nothing depends on shards and chunks."""
        order = np.lexsort((self.ids, self.users))
        return TableRows(self.table, self.users[order], self.ids[order], self.values[torch.from_numpy(order)])


@dataclass
class Upload:
    """What a shard returns from a round: sums, never one user's values.

    Attributes
    ----------
    sums : list of Tensor
        Per uploaded scope, the weighted sum of changes (after minus before) as integers (see `FRACTION_BITS`), int64,
        [1, size] or [values, size].
    weights : list of Tensor
        Per uploaded scope, the sum of the participants' weights, int64, [1] or [values]; for a table whose mean is over
        those who touched a row, [rows].
    participants : int
        Users who trained.
    rows : int
        Their training rows.
    loss : int
        Sum over participants of the mean training loss before the round, likewise.
    weights_up : int
        Number of weights that the participants uploaded together.
    weights_down : int
        Number of weights that they had been sent: as many, but for counts of those who touched a row, which only go up.
    bound : float
        An upper bound of every absolute sum, against integer overflow.
    seen : tuple of TableRows
        Single users' changes, of scopes that let the server see them.
    """

    sums: list[Tensor]
    weights: list[Tensor]
    participants: int = 0
    rows: int = 0
    loss: int = 0
    weights_up: int = 0
    weights_down: int = 0
    bound: float = 0.0
    seen: tuple[TableRows, ...] = ()

    @classmethod
    def empty(cls, layout: Layout, settings: Settings | None = None) -> Upload:
        """The upload of nobody."""
        touched = settings is not None and settings.table_mean == "touched"
        return cls(
            [torch.zeros(vector.values, vector.size, dtype=torch.int64) for vector in layout.uploaded],
            [
                torch.zeros(v.table.rows if touched and v.table is not None else v.values, dtype=torch.int64)
                for v in layout.uploaded
            ],
        )

    def __add__(self, other: Upload) -> Upload:
        """The upload of both; exact, so order does not matter.

        Raises
        ------
        FedpaError
            If the sums could overflow 64-bit integers.
        """
        total = Upload(
            [a + b for a, b in zip(self.sums, other.sums, strict=True)],
            [a + b for a, b in zip(self.weights, other.weights, strict=True)],
            self.participants + other.participants,
            self.rows + other.rows,
            self.loss + other.loss,
            self.weights_up + other.weights_up,
            self.weights_down + other.weights_down,
            self.bound + other.bound,
            self.seen + other.seen,
        )
        total.check()
        return total

    def limit(self, bound: float) -> None:
        """Note a bound of some of the sums, and refuse it where it could overflow."""
        self.bound = max(self.bound, bound)
        self.check()

    def check(self) -> None:
        """Refuse sums that could have overflowed."""
        if not self.bound < SUM_LIMIT:
            raise diverged(f"bound {self.bound:.3g}, limit {SUM_LIMIT:.3g}")


def diverged(what: str) -> FedpaError:
    """The error that changes do not fit the range of exact sums."""
    return FedpaError(
        f"training diverged: the changes of this round do not fit the range of exact sums ({what})",
        "lower the learning rate, for instance --set lr=0.003, or item_rate where the method has it",
    )
