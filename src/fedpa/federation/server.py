"""The server: the state that is sent out, and one step from sums of changes to the next state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedpa.errors import ArtifactError
from fedpa.federation.parameters import Layout
from fedpa.federation.robust import check_visibility, robust_sums
from fedpa.federation.upload import FRACTION_BITS, SUM_LIMIT, TableRows, Upload, exact_product, vector_name
from fedpa.settings import Settings

__all__ = ["FRACTION_BITS", "SUM_LIMIT", "Server", "TableRows", "Upload", "exact_product", "vector_name"]

_BETA_2, _TAU = 0.99, 1e-3  # of the server's Adam, as in Reddi et al., section 5


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
        check_visibility(layout, self.settings)

    def step(self, upload: Upload) -> None:
        """Move by the weighted mean change, or what stands in for it; a group value that nobody had stays as it is."""
        unit = 2.0 ** -FRACTION_BITS[self.dtype]
        sums = upload.sums if self.settings.aggregation == "mean" else robust_sums(upload, self.layout, self.settings)
        for index, (total, weight) in enumerate(zip(sums, upload.weights, strict=True)):
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
