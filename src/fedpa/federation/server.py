"""The server: the state that is sent out, and one step from sums of changes to the next state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.errors import ArtifactError, FedpaError
from fedpa.federation.parameters import Layout, Vector
from fedpa.settings import Settings

__all__ = ["FRACTION_BITS", "SUM_LIMIT", "Server", "TableRows", "Upload", "exact_product", "vector_name"]

FRACTION_BITS = {torch.float32: 36, torch.float64: 44}
"""Changes are summed as integer multiples of 2^-bits. At 36 bits a change is rounded by less than 1e-11, far below
float32's own rounding, and sums may reach 6.7e7; at 44 bits by less than 3e-14, and sums may reach 2.6e5."""

SUM_LIMIT = 2.0**62
"""Absolute sums stay below it, so that no sum of integers overflows."""

_HALF_BITS = 24
_BETA_2, _TAU = 0.99, 1e-3  # of the server's Adam, as in Reddi et al., section 5


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

    Attributes
    ----------
    table : str
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
        Single users' changes, of tables whose scope lets the server see them.
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
            raise FedpaError(
                "training diverged: the changes of this round do not fit the range of exact sums "
                f"(bound {self.bound:.3g}, limit {SUM_LIMIT:.3g})",
                "lower the learning rate, for instance --set lr=0.003, or item_rate where the method has it",
            )


class Server:
    """Shared and group parameters, and how they move.

    Parameters
    ----------
    layout : Layout
        The method's parameters and scopes.
    dtype : torch.dtype
        Of the state.
    settings : Settings, optional
        Its optimiser; by default the mean change is added.

    Attributes
    ----------
    state : list of Tensor
        Per uploaded scope, [1, size] or [values, size].
    downlink : tuple of TableRows
        What single users receive beside the state; empty unless a method's server has something for them.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, settings: Settings | None = None) -> None:
        self.layout = layout
        self.dtype = dtype
        self.settings = settings or Settings()
        self.state = [vector.starts(dtype) for vector in layout.uploaded]
        self.downlink: tuple[TableRows, ...] = ()
        self._moments: dict[int, tuple[Tensor, Tensor]] = {}

    def step(self, upload: Upload) -> None:
        """Move by the weighted mean change; a group value that nobody had stays as it is."""
        unit = 2.0 ** -FRACTION_BITS[self.dtype]
        for index, (total, weight) in enumerate(zip(upload.sums, upload.weights, strict=True)):
            prior = self.settings.table_prior if self.layout.uploaded[index].table is not None else 0.0
            mean = total.double().view(len(weight), -1) * unit / (weight + prior).clamp(min=1)[:, None]
            moved = self._optimised(index, mean, (weight > 0)[:, None]).view_as(self.state[index])
            self.state[index] = (self.state[index].double() + moved).to(self.state[index].dtype)

    def _optimised(self, index: int, mean: Tensor, present: Tensor) -> Tensor:
        """The step for a mean change [rows, size]; rows that nobody had do not move (Reddi et al., 2021)."""
        settings = self.settings
        if settings.server_optimizer == "mean":
            return mean * settings.server_lr
        first, second = self._moments.get(index, (torch.zeros_like(mean), torch.zeros_like(mean)))
        beta = settings.server_momentum
        if settings.server_optimizer == "momentum":
            first = torch.where(present, beta * first + mean, first)
            step = first
        else:
            first = torch.where(present, beta * first + (1 - beta) * mean, first)
            second = torch.where(present, _BETA_2 * second + (1 - _BETA_2) * mean * mean, second)
            step = first / (second.sqrt() + _TAU)
        self._moments[index] = first, second
        return torch.where(present, step * settings.server_lr, 0.0)

    def named(self) -> dict[str, Tensor]:
        """The state by parameter: shared ones as [*shape], group ones as [values, *shape]."""
        found = {}
        for vector, rows in zip(self.layout.uploaded, self.state, strict=True):
            for name, value in vector.split(rows).items():
                found[name] = (value[0] if vector.scope.kind == "shared" else value).contiguous().clone()
        return found

    def saved(self) -> dict[str, Tensor]:
        """All that the next round depends on: the state, the optimiser's moments, what single users are to receive."""
        found = {f"state.{index}": rows for index, rows in enumerate(self.state)}
        for index, moments in self._moments.items():
            found |= {f"moments.{index}.{place}": moment for place, moment in enumerate(moments)}
        for table in self.downlink:
            found[f"downlink.{table.table}.users"] = torch.from_numpy(table.users)
            found[f"downlink.{table.table}.ids"] = torch.from_numpy(table.ids)
            found[f"downlink.{table.table}.values"] = table.values
        return {name: value.contiguous() for name, value in found.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to what `saved` gave."""
        self.state = [saved[f"state.{index}"] for index in range(len(self.state))]
        self._moments = {
            index: (saved[f"moments.{index}.0"], saved[f"moments.{index}.1"])
            for index in range(len(self.state))
            if f"moments.{index}.0" in saved
        }
        tables = [name.removeprefix("downlink.").removesuffix(".ids") for name in saved if name.endswith(".ids")]
        self.downlink = tuple(
            TableRows(
                name,
                saved[f"downlink.{name}.users"].numpy(),
                saved[f"downlink.{name}.ids"].numpy(),
                saved[f"downlink.{name}.values"],
            )
            for name in tables
        )

    def load(self, named: Mapping[str, Tensor], where: str) -> None:
        """Replace the state by named parameters, as `named` gives them.

        Raises
        ------
        ArtifactError
            If a name is missing or unknown or a shape differs.
        """
        expected = {name: tuple(value.shape) for name, value in self.named().items()}
        found = {name: tuple(value.shape) for name, value in named.items()}
        if expected != found:
            wrong = sorted(
                f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
                for name in expected.keys() | found.keys()
                if expected.get(name) != found.get(name)
            )
            raise ArtifactError(f"{where}: parameters do not fit the method: " + "; ".join(wrong[:5]))
        for index, vector in enumerate(self.layout.uploaded):
            pieces = [named[p.name].reshape(vector.values, -1).to(self.dtype) for p in vector.parameters]
            self.state[index] = torch.cat(pieces, 1)
