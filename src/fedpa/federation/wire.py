"""Orders, reports and sums as messages: a flat JSON header beside named arrays.

What arrives is untrusted: every ``unpack`` checks the header, the names, the types and the shapes before it reads a
value, and raises `Refused`. Whether the values can be true is asked by `fedpa.federation.intake`. Only what a scope
uploads has a name here, so that nothing personal can be in a message. Arrays share the memory of the tensors that
they are made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpa.errors import FedpaError
from fedpa.evaluation.sums import BINS, ClickSums
from fedpa.federation.form import PROTOCOL, Arrays, Header, Message, Refused, arrays_of, check_origin, head_of
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.parameters import Layout, Vector
from fedpa.federation.tally import Tally
from fedpa.federation.upload import TableRows, Upload, vector_name
from fedpa.settings import Settings

__all__ = [
    "pack_order",
    "pack_report",
    "pack_sums",
    "pack_tally",
    "unpack_order",
    "unpack_report",
    "unpack_sums",
    "unpack_tally",
]

_SPLITS = ("train", "val", "test")
_NUMBERS = ("rows", "clicks", "users", "gauc_sum", "gauc_users", "gauc_rows", "log_loss_sum", "predicted_sum")
_PIECES = ("users", "ids", "values")
_HALF = 1 << 62
_Array = tuple[type, tuple[int | None, ...]]


def _names(layout: Layout) -> dict[str, Vector]:
    """What may be in a message: the uploaded scopes, by name."""
    found = {vector_name(vector): vector for vector in layout.uploaded}
    if len(found) < len(layout.uploaded):
        raise FedpaError(f"two of the method's uploaded scopes have one name: {sorted(found)}", "rename the table")
    return found


def _width(vector: Vector) -> int:
    return vector.size if vector.table is None else vector.table.width


def _float(settings: Settings) -> type:
    return np.float64 if settings.dtype == "float64" else np.float32


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = tensor.detach().cpu().contiguous().numpy()
    return found


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over an array; memory that may not be written to is copied, since a tensor cannot say so."""
    found = np.ascontiguousarray(array)
    return torch.from_numpy(found if found.flags.writeable else found.copy())


def _pack_rows(prefix: str, name: str, pieces: Sequence[TableRows], width: int, dtype: type = np.float32) -> Arrays:
    """Entries of one table in one piece, sorted by user, then row, so that nothing depends on chunks."""
    if not pieces:
        return dict(
            zip(
                (f"{prefix}.{piece}/{name}" for piece in _PIECES),
                (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, width), dtype)),
                strict=True,
            )
        )
    users, ids = (np.concatenate([getattr(one, field) for one in pieces]) for field in ("users", "ids"))
    whole = TableRows(name, users, ids, torch.cat([one.values for one in pieces])).sorted()
    content = (whole.users, whole.ids, _array(whole.values))
    return dict(zip((f"{prefix}.{piece}/{name}" for piece in _PIECES), content, strict=True))


def _rows_form(prefix: str, name: str, vector: Vector, dtype: type) -> dict[str, _Array]:
    shapes: tuple[_Array, ...] = (
        (np.int64, (None,)),
        (np.int64, (None,)),
        (dtype, (None, _width(vector))),
    )
    return dict(zip((f"{prefix}.{piece}/{name}" for piece in _PIECES), shapes, strict=True))


def _unpack_rows(prefix: str, name: str, arrays: Arrays) -> TableRows:
    users, ids, values = (arrays[f"{prefix}.{piece}/{name}"] for piece in _PIECES)
    if not len(users) == len(ids) == len(values):
        raise Refused("shape", f"{prefix} of {name}: {len(users)} users, {len(ids)} rows, {len(values)} values")
    return TableRows(name, users, ids, _tensor(values))


def pack_order(layout: Layout, order: Order, base: Base | None = None) -> Message:
    """An order, with where the node starts from.

    Parameters
    ----------
    layout : Layout
    order : Order
    base : Base, optional
        Of the node; by default it has nothing yet.
    """
    base = base or Base(0, ())
    header: Header = {
        "protocol": PROTOCOL,
        "kind": "order",
        "run": order.run,
        "round": order.number,
        "train": order.train,
        "generation": base.generation,
        "keep": list(base.keep),
    }
    names = _names(layout)
    arrays = {f"state/{name}": _array(rows) for name, rows in zip(names, order.state, strict=True)}
    for name in sorted({one.table for one in order.downlink}):
        pieces = [one for one in order.downlink if one.table == name]
        arrays |= _pack_rows("downlink", name, pieces, _width(names[name]))
    return header, arrays


def unpack_order(layout: Layout, settings: Settings, header: object, arrays: object) -> tuple[Order, Base]:
    """What `pack_order` packed.

    Raises
    ------
    Refused
        If it is not of this form, or a value is not finite.
    """
    head = head_of(header, "order")
    dtype, names = _float(settings), _names(layout)
    form: dict[str, _Array] = {f"state/{name}": (dtype, (vector.values, vector.size)) for name, vector in names.items()}
    sent = [n for n in names if isinstance(arrays, Mapping) and f"downlink.values/{n}" in arrays]
    for name in sent:
        form |= _rows_form("downlink", name, names[name], dtype)
    found = arrays_of(arrays, form)
    for name, (kind, _) in form.items():
        if kind is dtype and not np.isfinite(found[name]).all():
            raise Refused("value", f"{name}: holds what is not finite")
    state = tuple(_tensor(found[f"state/{name}"]) for name in names)
    downlink = tuple(_unpack_rows("downlink", name, found) for name in sent)
    order = Order(head["run"], head["round"], state, downlink, head["train"])
    return order, Base(head["generation"], tuple(head["keep"]))


def pack_report(layout: Layout, settings: Settings, report: Report) -> Message:
    """A report: sums and weights by scope, and single users' rows where the scope lets the server see them."""
    upload = report.upload
    header: Header = {
        "protocol": PROTOCOL,
        "kind": "report",
        "run": report.run,
        "round": report.number,
        "node": report.node,
        "participants": upload.participants,
        "rows": upload.rows,
        "loss": upload.loss,
        "weights_up": upload.weights_up,
        "weights_down": upload.weights_down,
        "bound": upload.bound,
    }
    arrays: Arrays = {}
    for (name, vector), total, weight in zip(_names(layout).items(), upload.sums, upload.weights, strict=True):
        arrays[f"sum/{name}"], arrays[f"weight/{name}"] = _array(total), _array(weight)
        if vector.scope.sees == "rows":
            pieces = [one for one in upload.seen if one.table == name]
            arrays |= _pack_rows("seen", name, pieces, _width(vector), _float(settings))
    return header, arrays


def unpack_report(layout: Layout, settings: Settings, header: object, arrays: object) -> Report:
    """What `pack_report` packed, in the memory of the arrays; whether its values can be true is not asked.

    Raises
    ------
    Refused
        If it is not of this form.
    """
    head = head_of(header, "report")
    dtype, names = _float(settings), _names(layout)
    form: dict[str, _Array] = {}
    for name, vector in names.items():
        touched = vector.table is not None and settings.table_mean == "touched"
        form[f"sum/{name}"] = np.int64, (vector.values, vector.size)
        form[f"weight/{name}"] = np.int64, (vector.table.rows if touched and vector.table else vector.values,)
        if vector.scope.sees == "rows":
            form |= _rows_form("seen", name, vector, dtype)
    found = arrays_of(arrays, form)
    upload = Upload(
        [_tensor(found[f"sum/{name}"]) for name in names],
        [_tensor(found[f"weight/{name}"]) for name in names],
        head["participants"],
        head["rows"],
        head["loss"],
        head["weights_up"],
        head["weights_down"],
        float(head["bound"]),
        tuple(_unpack_rows("seen", name, found) for name, vector in names.items() if vector.scope.sees == "rows"),
    )
    return Report(head["run"], head["round"], head["node"], upload)


def pack_sums(run: str, number: int, node: int, sums: Sums) -> Message:
    """A node's sums for evaluation, by split.

    Parameters
    ----------
    run : str
    number : int
        The round of the order that was scored.
    node : int
    sums : mapping of str to ClickSums
        Of ``train``, ``val`` and ``test``; a split that is missing has no rows.
    """
    header: Header = {"protocol": PROTOCOL, "kind": "sums", "run": run, "round": number, "node": node}
    arrays: Arrays = {}
    for split in _SPLITS:
        one = sums.get(split, ClickSums.zero())
        # Sums in units of 2^-40 pass 2^63 at a few million rows.
        arrays[f"numbers/{split}"] = np.array([divmod(getattr(one, key), _HALF) for key in _NUMBERS], np.int64)
        arrays[f"histogram/{split}"] = one.histogram
    return header, arrays


def unpack_sums(run: str, number: int, node: int, header: object, arrays: object) -> Sums:
    """What `pack_sums` packed.

    Parameters
    ----------
    run, number, node : str, int, int
        From where it must be.
    header, arrays : object

    Raises
    ------
    Refused
        If it is not of this form or origin, or its counts cannot be those of rows.
    """
    check_origin(head_of(header, "sums"), run, number, node)
    form: dict[str, _Array] = {}
    for split in _SPLITS:
        form |= {
            f"numbers/{split}": (np.int64, (len(_NUMBERS), 2)),
            f"histogram/{split}": (np.int64, (2, BINS)),
        }
    found, sums = arrays_of(arrays, form), {}
    for split in _SPLITS:
        numbers = dict(
            zip(_NUMBERS, (high * _HALF + low for high, low in found[f"numbers/{split}"].tolist()), strict=True)
        )
        histogram = found[f"histogram/{split}"]
        others, clicks = (sum(counts) for counts in histogram.tolist())
        if (
            int(histogram.min()) < 0
            or (others + clicks, clicks) != (numbers["rows"], numbers["clicks"])
            or not 0 <= numbers["gauc_users"] <= numbers["users"] <= numbers["rows"]
            or not 0 <= numbers["gauc_rows"] <= numbers["rows"]
            or not all(value >= 0 for value in numbers.values())
        ):
            raise Refused("counts", f"sums of {split}: the counts contradict each other")
        sums[split] = ClickSums(**numbers, histogram=histogram)
    return sums


def pack_tally(run: str, node: int, tally: Tally) -> Message:
    """A node's item counts, before the first round."""
    header: Header = {"protocol": PROTOCOL, "kind": "tally", "run": run, "node": node}
    return header, {"ends": tally.ends, "views": tally.views, "clicks": tally.clicks}


def unpack_tally(run: str, node: int, periods: int, items: int, header: object, arrays: object) -> Tally:
    """What `pack_tally` packed.

    Parameters
    ----------
    run, node : str, int
        From where it must be.
    periods, items : int
        Of the settings (`Settings.item_counts`) and the data set.
    header, arrays : object

    Raises
    ------
    Refused
        If it is not of this form or origin, or its counts cannot be those of rows.
    """
    check_origin(head_of(header, "tally"), run, None, node)
    counts: _Array = (np.int64, (periods + 1, items))
    found = arrays_of(arrays, {"ends": (np.int64, (periods,)), "views": counts, "clicks": counts})
    views, clicks = found["views"], found["clicks"]
    # Before the first period there is nothing, and sums over more periods are never less.
    good = not views[0].any() and not clicks[0].any() and (np.diff(clicks, axis=0) >= 0).all()
    good = good and (np.diff(views - clicks, axis=0) >= 0).all() and (views < _HALF).all() and (views >= clicks).all()
    if not good or (np.diff(found["ends"]) < 0).any():
        raise Refused("counts", "item counts: views and clicks contradict each other")
    return Tally(found["ends"], views, clicks)
