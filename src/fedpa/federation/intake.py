"""What a server accepts from its nodes: every upload is untrusted until all of it has been checked.

An `Intake` is one round. What it refuses never touches the sum; what it accepts is summed as integers, so that the sum
of the accepted ones depends neither on their order nor on what came between them. Each node may use an equal share of
the range of exact sums, so that no upload can push another one out of it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from fedpa.federation.form import REASONS, Reason, Refused, check_origin, head_of
from fedpa.federation.order import Report
from fedpa.federation.parameters import Layout, Vector
from fedpa.federation.upload import FRACTION_BITS, SUM_LIMIT, TableRows, Upload, vector_name
from fedpa.federation.wire import unpack_report
from fedpa.settings import Settings

__all__ = ["MOST_ROWS", "REASONS", "Intake", "Refused"]

_log = logging.getLogger(__name__)
MOST_ROWS = 1 << 40
"""No node has more rows, nor users."""

_SLACK = 1e-9  # bounds are sums of floats
Ints = npt.NDArray[np.int64]


class Intake:
    """The uploads of one round.

    Parameters
    ----------
    layout : Layout
    settings : Settings
    run : str
        Id of the run.
    number : int
        The round.
    nodes : mapping of int to int
        Who may take part, and how many users each node has said that it has.

    Attributes
    ----------
    refused : Counter of str
        By reason, one of `REASONS`, how many uploads were refused.
    """

    def __init__(self, layout: Layout, settings: Settings, run: str, number: int, nodes: Mapping[int, int]) -> None:
        self.layout, self.settings = layout, settings
        self.run, self.number, self.nodes = run, number, dict(nodes)
        self.refused: Counter[Reason] = Counter()
        self._share = SUM_LIMIT / max(1, len(self.nodes))
        self._total = Upload.empty(layout, settings)
        self._bounds: dict[int, float] = {}
        self._seen: dict[int, tuple[TableRows, ...]] = {}

    @property
    def accepted(self) -> tuple[int, ...]:
        """Nodes whose uploads are in the sum, ascending."""
        return tuple(sorted(self._bounds))

    def offer(self, header: object, arrays: object, *, sender: int | None = None) -> Reason | None:
        """Add an upload to the sum, or refuse it and count why.

        Parameters
        ----------
        header, arrays : object
            As `fedpa.federation.wire.pack_report` makes them; anything at all may have arrived.
        sender : int, optional
            The node that the transport has authenticated; what claims to be of another one is refused.

        Returns
        -------
        str or None
            The reason of a refusal.
        """
        try:
            report = self._checked(header, arrays, sender)
        except Refused as refusal:
            self.refused[refusal.reason] += 1
            _log.warning("round %d: %s", self.number, refusal.message)
            return refusal.reason
        self._add(report)
        return None

    def total(self) -> Upload:
        """The sum of what was accepted; single users' rows are in order of table, user and row."""
        total = Upload(
            [one.clone() for one in self._total.sums],
            [one.clone() for one in self._total.weights],
            self._total.participants,
            self._total.rows,
            self._total.loss,
            self._total.weights_up,
            self._total.weights_down,
            math.fsum(self._bounds.values()),
            tuple(one for vector in self.layout.uploaded for one in self._merged(vector)),
        )
        total.check()
        return total

    def _merged(self, vector: Vector) -> tuple[TableRows, ...]:
        """All that was seen of a scope, in one piece; nothing where there is nothing."""
        name = vector_name(vector)
        pieces = [one for node in self.accepted for one in self._seen[node] if one.table == name and len(one.ids)]
        if not pieces:
            return ()
        users, ids = (np.concatenate([getattr(one, field) for one in pieces]) for field in ("users", "ids"))
        return (TableRows(name, users, ids, torch.cat([one.values for one in pieces])).sorted(),)

    def _add(self, report: Report) -> None:
        total, upload = self._total, report.upload
        for into, one in zip((*total.sums, *total.weights), (*upload.sums, *upload.weights), strict=True):
            into.add_(one)
        total.participants += upload.participants
        total.rows += upload.rows
        total.loss += upload.loss
        total.weights_up += upload.weights_up
        total.weights_down += upload.weights_down
        self._bounds[report.node], self._seen[report.node] = upload.bound, upload.seen

    def _checked(self, header: object, arrays: object, sender: int | None) -> Report:
        """The report, if all of it can be true."""
        head = head_of(header, "report")
        node = head["node"]
        if node not in self.nodes:
            raise Refused("node", f"node {node} does not take part")
        check_origin(head, self.run, self.number, node if sender is None else sender)
        if node in self._bounds:
            raise Refused("repeated", f"node {node}: its upload is in the sum already")
        report = unpack_report(self.layout, self.settings, header, arrays)
        self._check_counts(report)
        pieces = {one.table: one for one in report.upload.seen}
        for place, vector in enumerate(self.layout.uploaded):
            where = f"node {node}, {vector_name(vector)}"
            sums, weights = report.upload.sums[place].numpy(), report.upload.weights[place].numpy()
            self._check_weights(where, vector, weights, report.upload)
            self._check_sums(where, sums, weights, report.upload)
            if vector.scope.sees == "rows":
                self._check_rows(where, vector, pieces[vector_name(vector)], sums, weights, report.upload)
        users = {int(user) for one in report.upload.seen for user in np.unique(one.users)}
        if len(users) > report.upload.participants:
            raise Refused("rows", f"node {node}: rows of more users than took part")
        return report

    def _mass(self, upload: Upload) -> int:
        """The weight of all participants."""
        return upload.rows if self.settings.weighting == "rows" else upload.participants

    def _check_counts(self, report: Report) -> None:
        upload, known = report.upload, self.nodes[report.node]
        where = f"node {report.node}"
        if not 0 <= upload.participants <= known:
            raise Refused("counts", f"{where}: {upload.participants} participants of {known} users")
        if not upload.participants <= upload.rows < MOST_ROWS or (upload.rows > 0) != (upload.participants > 0):
            raise Refused("counts", f"{where}: {upload.participants} participants with {upload.rows} rows")
        most = sum(v.values * v.size + (v.table.rows if v.table else 0) for v in self.layout.uploaded)
        if not 0 <= upload.weights_down <= upload.weights_up <= upload.participants * most:
            raise Refused("counts", f"{where}: more weights than {upload.participants} participants have")
        if not 0 <= upload.bound < self._share:
            raise Refused("bound", f"{where}: sums up to {upload.bound:.3g}, a node may have {self._share:.3g}")

    def _check_weights(self, where: str, vector: Vector, weights: Ints, upload: Upload) -> None:
        mass = self._mass(upload)
        if len(weights) and not 0 <= int(weights.min()) <= int(weights.max()) <= mass:
            raise Refused("weights", f"{where}: weights outside 0 to {mass}")
        touched = vector.table is not None and self.settings.table_mean == "touched"
        found = int(weights.sum())
        if not touched and (found > mass if vector.scope.kind == "group" else found != mass):
            raise Refused("weights", f"{where}: a weight of {found}, the participants have {mass}")

    def _check_sums(self, where: str, sums: Ints, weights: Ints, upload: Upload) -> None:
        """Within what the message says of them: a change is rounded by half a unit at most, which is not in `bound`."""
        most = upload.bound * (1 + _SLACK) + self._mass(upload)
        if sums.size and not -most <= int(sums.min()) <= int(sums.max()) <= most:
            raise Refused("bound", f"{where}: sums beyond {upload.bound:.3g}")
        if (sums.reshape(len(weights), -1).any(1) & (weights == 0)).any():
            raise Refused("weights", f"{where}: a sum of nobody")

    def _check_rows(
        self, where: str, vector: Vector, piece: TableRows, sums: Ints, weights: Ints, upload: Upload
    ) -> None:
        rows, width = _rows_of(vector)
        users, ids, values = piece.users, piece.ids, piece.values.numpy()
        unit = 2.0 ** FRACTION_BITS[self.settings.torch_dtype]
        if values.size and not float(np.abs(values).max()) * unit <= upload.bound * (1 + _SLACK) + 1:
            raise Refused("value", f"{where}: rows that are not finite, or beyond {upload.bound / unit:.3g}")
        good = not len(ids) or (int(users.min()) >= 0 and 0 <= int(ids.min()) <= int(ids.max()) < rows)
        ahead, same = users[1:] > users[:-1], users[1:] == users[:-1]
        once = vector.table is None  # a user is in one row of what is shared or grouped
        if not good or not (ahead if once else ahead | (same & (ids[1:] > ids[:-1]))).all():
            raise Refused("rows", f"{where}: rows that do not exist, or not in order")
        if self.settings.weighting == "users":
            self._check_rows_make(where, piece, sums.reshape(rows, width), weights, upload)

    def _check_rows_make(self, where: str, piece: TableRows, sums: Ints, weights: Ints, upload: Upload) -> None:
        """Single users' rows add up to the sums, and where a row has a weight of its own, to the weights."""
        units = (piece.values.double() * 2.0 ** FRACTION_BITS[self.settings.torch_dtype]).round_()
        ids, found = torch.from_numpy(piece.ids), torch.zeros(sums.shape, dtype=torch.float64)
        if float(found.index_add_(0, ids, units.abs()).max()) > upload.bound * (1 + _SLACK) + self._mass(upload):
            raise Refused("bound", f"{where}: rows whose sum could be beyond {upload.bound:.3g}")
        added = torch.zeros(sums.shape, dtype=torch.int64).index_add_(0, ids, units.to(torch.int64))
        if not np.array_equal(added.numpy(), sums):
            raise Refused("rows", f"{where}: rows that do not add up to the sums")
        if len(weights) == len(sums) and (np.bincount(piece.ids, minlength=len(sums)) != weights).any():
            raise Refused("rows", f"{where}: rows whose number is not the weight")


def _rows_of(vector: Vector) -> tuple[int, int]:
    """Rows and width of the table that an uploaded scope is: of a group, one row per value."""
    return (vector.values, vector.size) if vector.table is None else (vector.table.rows, vector.table.width)
