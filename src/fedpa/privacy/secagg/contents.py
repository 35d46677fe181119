"""What nodes sum securely: a round's uploads with the sums for evaluation, and item counts before the first round."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from fedpa.errors import ConfigError
from fedpa.evaluation.sums import BINS, ClickSums
from fedpa.federation.form import Refused
from fedpa.federation.intake import Intake
from fedpa.federation.node import SPLITS
from fedpa.federation.order import Report, Sums
from fedpa.federation.parameters import Layout
from fedpa.federation.robust import check_visibility
from fedpa.federation.tally import Tally
from fedpa.federation.upload import FRACTION_BITS, SUM_LIMIT, Upload, vector_name
from fedpa.federation.wire import pack_report, pack_sums, pack_tally, unpack_sums, unpack_tally
from fedpa.privacy.secagg.slots import Slots
from fedpa.privacy.secagg.terms import ContentError
from fedpa.settings import Settings

__all__ = ["Limits", "RoundVector", "TallyVector"]

Ints = npt.NDArray[np.int64]

_USERS = "users"
_COUNTS = ("participants", "rows", "loss", "weights_up", "weights_down")
_NUMBERS = tuple(field.name for field in fields(ClickSums) if field.name != "histogram")
_NOBODY = ""  # the run in messages that are made to be checked


@dataclass(frozen=True)
class Limits:
    """How large a sum may become, so that 64 bits hold it; nodes refuse what is larger.

    Attributes
    ----------
    change : float
        Largest change of one weight by one user in a round.
    users : int
        Most users in a round, over all nodes; training rows, if users are weighted by rows.
    """

    change: float = 16.0
    users: int = 1_000_000

    def check(self, settings: Settings) -> None:
        """Refuse limits whose sum does not fit.

        Raises
        ------
        ConfigError
            Says by how much.
        """
        if not (self.change > 0 and self.users > 0):
            raise ConfigError(f"secure aggregation: limits of {self.change} and {self.users} users; expected above 0")
        largest = self.bound(self.users, settings)
        if not largest < SUM_LIMIT:
            bits = FRACTION_BITS[settings.torch_dtype]
            raise ConfigError(
                f"secure aggregation: {self.users} users' changes of up to {self.change:g} in units of 2^-{bits} "
                f"({settings.dtype}) sum up to {largest:.3g}, which does not fit 64-bit integers ({SUM_LIMIT:.3g})",
                f"declare changes below {self.change * SUM_LIMIT / largest:.3g} or fewer users"
                + (", or use --set dtype=float32" if settings.dtype == "float64" else ""),
            )

    def bound(self, users: int, settings: Settings) -> float:
        """The largest absolute sum over so many users, with what rounding adds."""
        return users * (self.change * 2.0 ** FRACTION_BITS[settings.torch_dtype] + 1)


class RoundVector:
    """A node's upload and its sums for evaluation, as one vector whose shape says nothing of its users.

    Every uploaded scope has a slot for every group value, zero in all but those of a node's own users.

    Parameters
    ----------
    layout : Layout
    settings : Settings
    limits : Limits
    train : bool
        False: sums for evaluation alone.

    Raises
    ------
    ConfigError
        If the server of the method sees rows, or the limits do not fit.
    """

    def __init__(self, layout: Layout, settings: Settings, limits: Limits, *, train: bool) -> None:
        check_visibility(layout, settings, secure=True)
        limits.check(settings)
        self.layout, self.settings, self.limits, self.train = layout, settings, limits, train
        arrays: dict[str, tuple[int, ...]] = {f"histogram/{split}": (2, BINS) for split in SPLITS}
        integers = [_USERS, *(f"{name}/{split}" for split in SPLITS for name in _NUMBERS)]
        if train:
            empty = Upload.empty(layout, settings)
            for vector, total, weight in zip(layout.uploaded, empty.sums, empty.weights, strict=True):
                name = vector_name(vector)
                arrays |= {f"sum/{name}": tuple(total.shape), f"weight/{name}": tuple(weight.shape)}
            integers += _COUNTS
        self.slots = Slots(arrays, integers)

    def pack(self, upload: Upload | None, sums: Sums, *, users: int) -> Ints:
        """What a node gives, after all checks that a server could make if it saw it.

        Parameters
        ----------
        upload : Upload or None
        sums : mapping of str to ClickSums
        users : int
            Of the node.

        Raises
        ------
        ProtocolError
            If it holds what cannot be true, or larger changes or more users than declared.
        """
        arrays: dict[str, Ints] = {}
        integers: dict[str, int] = {_USERS: users}
        checked = self._checked(upload, sums, users)
        for split, one in checked.items():
            arrays[f"histogram/{split}"] = one.histogram
            integers |= {f"{name}/{split}": int(getattr(one, name)) for name in _NUMBERS}
        if upload is not None:
            for vector, total, weight in zip(self.layout.uploaded, upload.sums, upload.weights, strict=True):
                name = vector_name(vector)
                arrays |= {f"sum/{name}": total.cpu().numpy(), f"weight/{name}": weight.cpu().numpy()}
            integers |= {name: int(getattr(upload, name)) for name in _COUNTS}
        return self.slots.pack(arrays, integers)

    def unpack(self, vector: Ints, nodes: int) -> tuple[Upload | None, Sums, int]:
        """The sums over so many nodes, of their uploads, of their scores and of their users.

        Raises
        ------
        AbortError, ContentError
            If it is no such sum, or more users took part than declared, so that it may have overflowed.
        """
        arrays, integers = self.slots.unpack(vector, nodes)
        sums = {
            split: ClickSums(
                **{name: integers[f"{name}/{split}"] for name in _NUMBERS},
                histogram=arrays[f"histogram/{split}"].copy(),
            )
            for split in SPLITS
        }
        upload = None
        if self.train:
            names = [vector_name(one) for one in self.layout.uploaded]
            upload = Upload(
                [torch.from_numpy(arrays[f"sum/{name}"].copy()) for name in names],
                [torch.from_numpy(arrays[f"weight/{name}"].copy()) for name in names],
            )
            for name in _COUNTS:
                setattr(upload, name, integers[name])
            upload.bound = float(max((int(one.abs().max()) for one in upload.sums if one.numel()), default=0))
        self._checked(upload, sums, integers[_USERS])
        return upload, sums, integers[_USERS]

    def _mass(self, upload: Upload) -> int:
        return upload.rows if self.settings.weighting == "rows" else upload.participants

    def _checked(self, upload: Upload | None, sums: Sums, users: int) -> Sums:
        if (upload is not None) != self.train:
            raise ContentError("training was asked for and is missing, or the other way round")
        try:
            found = unpack_sums(_NOBODY, 0, 0, *pack_sums(_NOBODY, 0, 0, sums))
            if upload is not None:
                self._check_upload(upload, users)
        except Refused as refusal:
            raise ContentError(f"a sum that cannot be true: {refusal.message}") from None
        return found

    def _check_upload(self, upload: Upload, users: int) -> None:
        mass = self._mass(upload)
        if mass > self.limits.users or not upload.bound <= self.limits.bound(mass, self.settings):
            change = upload.bound / max(mass, 1) * 2.0 ** -FRACTION_BITS[self.settings.torch_dtype]
            raise ContentError(
                f"changes of up to {change:.3g} by {mass} users, declared are changes of "
                f"{self.limits.change:g} by {self.limits.users}",
                "lower the learning rate, or declare larger changes or more users if their sum still fits",
            )
        header, arrays = pack_report(self.layout, self.settings, Report(_NOBODY, 0, 0, upload))
        intake = Intake(self.layout, self.settings, _NOBODY, 0, {0: users})
        reason = intake.offer(header, arrays)
        if reason is not None:
            raise ContentError(f"a sum that cannot be true ({reason}); see the log for what was found")


class TallyVector:
    """Users' item counts as one vector.

    Parameters
    ----------
    periods, items : int
        Of the settings (`Settings.item_counts`) and the data set.
    """

    def __init__(self, periods: int, items: int) -> None:
        self.periods, self.items = periods, items
        counts = (periods + 1, items)
        self.slots = Slots({"ends": (periods,), "views": counts, "clicks": counts}, ["check"])

    def pack(self, tally: Tally) -> Ints:
        """What a node gives.

        Raises
        ------
        ProtocolError
            If its counts cannot be those of rows.
        """
        self._check(tally)
        arrays = {"ends": tally.ends, "views": tally.views, "clicks": tally.clicks}
        return self.slots.pack(arrays, {"check": _digest(tally.ends)})

    def unpack(self, vector: Ints, nodes: int) -> Tally:
        """The sum over so many nodes.

        Raises
        ------
        AbortError, ContentError
            If it is no such sum, or the nodes' periods differ.
        """
        arrays, integers = self.slots.unpack(vector, nodes)
        ends = arrays["ends"] // nodes
        if (ends * nodes != arrays["ends"]).any() or _digest(ends) * nodes != integers["check"]:
            raise ContentError(
                "the nodes count items over different periods",
                "give all nodes data sets with the same open users",
            )
        tally = Tally(ends, arrays["views"].copy(), arrays["clicks"].copy())
        self._check(tally)
        return tally

    def _check(self, tally: Tally) -> None:
        try:
            unpack_tally(_NOBODY, 0, self.periods, self.items, *pack_tally(_NOBODY, 0, tally))
        except Refused as refusal:
            raise ContentError(f"a sum that cannot be true: {refusal.message}") from None


def _digest(ends: Ints) -> int:
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(ends, "<i8").data).digest()[:8], "big")
