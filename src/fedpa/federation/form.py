"""The form of an untrusted message: its header, and the names, types and shapes of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fedpa.errors import FedpaError

__all__ = [
    "JSON",
    "PROTOCOL",
    "REASONS",
    "Arrays",
    "Form",
    "Header",
    "Message",
    "Reason",
    "Refused",
    "arrays_of",
    "check_origin",
    "head_of",
]

PROTOCOL = 1
"""Version of the messages; another version is refused."""

JSON = str | int | float | bool | None | list[Any] | dict[str, Any]
Header = dict[str, JSON]
Arrays = dict[str, npt.NDArray[Any]]
Message = tuple[Header, Arrays]
Form = Mapping[str, tuple[type, tuple[int | None, ...]]]
"""Type and shape of every array of a message; None: any length."""
Kind = Literal["order", "report", "sums", "tally"]
Reason = Literal[
    "header",
    "protocol",
    "run",
    "node",
    "late",
    "early",
    "repeated",
    "names",
    "dtype",
    "shape",
    "value",
    "bound",
    "weights",
    "counts",
    "rows",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Why a message is refused. ``header``: not of this form; ``protocol``, ``run``, ``node``: of another version or run,
or of a node that does not take part; ``late``, ``early``: of another round; ``repeated``: counted already; ``names``,
``dtype``, ``shape``: arrays that are missing or extra, or have another type or shape; ``value``: not finite, or out of
range; ``bound``: sums beyond what the message says, or that could overflow; ``weights``, ``counts``: do not fit the
participants, or the node; ``rows``: single users' rows that do not fit their sums."""

_TEXT = 64
_LIST = 1 << 16
_WHOLE = 1 << 62
_HEADERS: dict[Kind, dict[str, type]] = {
    "order": {"run": str, "round": int, "train": bool, "generation": int, "keep": list},
    "report": {"run": str, "round": int, "node": int}
    | dict.fromkeys(("participants", "rows", "loss", "weights_up", "weights_down"), int)
    | {"bound": float},
    "sums": {"run": str, "round": int, "node": int},
    "tally": {"run": str, "node": int},
}


class Refused(FedpaError):  # noqa: N818 (a refusal is an answer, not a failure)
    """A message that is not what it must be.

    Parameters
    ----------
    reason : str
        One of `REASONS`.
    message : str
        What was found and expected.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason: Reason = reason
        super().__init__(f"message refused ({reason}): {message}")


def head_of(header: object, kind: Kind) -> dict[str, Any]:
    """The header of an untrusted message, with every key of its kind and no other.

    Raises
    ------
    Refused
        ``protocol`` for a message of another version, else ``header``.
    """
    if not isinstance(header, Mapping):
        raise Refused("header", f"expected a mapping, found {type(header).__name__}")
    found = dict(header)
    version = found.pop("protocol", None)
    if not _is(version, int):
        raise Refused("header", "expected a number under 'protocol'")
    if version != PROTOCOL:
        raise Refused("protocol", f"expected version {PROTOCOL} of the messages")
    if found.pop("kind", None) != kind:
        raise Refused("header", f"expected a message of kind {kind!r}")
    expected = _HEADERS[kind]
    if found.keys() != expected.keys():
        odd = sorted(str(key)[:_TEXT] for key in found.keys() ^ expected.keys())
        raise Refused("header", f"missing or extra keys {odd[:5]}")
    for key, type_ in expected.items():
        if not _is(found[key], type_):
            raise Refused("header", f"{key!r}: expected {type_.__name__} of a usual size")
    return found


def _is(value: object, expected: type) -> bool:
    """Whether a JSON value has a type, and a size that makes sense."""
    if expected is float:
        return isinstance(value, float) or _is(value, int)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool) and -_WHOLE < value < _WHOLE
    if expected is list:
        return isinstance(value, list) and len(value) <= _LIST and all(_is(one, int) for one in value)
    return isinstance(value, expected) and (not isinstance(value, str) or len(value) <= _TEXT)


def check_origin(head: Mapping[str, Any], run: str, number: int | None, node: int) -> None:
    """Refuse what is of another run, node or round.

    Raises
    ------
    Refused
        ``run``, ``node``, ``late`` or ``early``.
    """
    if head["run"] != run:
        raise Refused("run", "of another run")
    if head["node"] != node:
        raise Refused("node", f"expected one of node {node}, found one of {head['node']}")
    if number is not None and head["round"] != number:
        reason: Reason = "late" if head["round"] < number else "early"
        raise Refused(reason, f"node {node}: expected round {number}, found {head['round']}")


def arrays_of(arrays: object, expected: Form) -> Arrays:
    """The arrays of an untrusted message, if they are as expected; no value is read.

    Raises
    ------
    Refused
        ``names``, ``dtype`` or ``shape``.
    """
    if not isinstance(arrays, Mapping) or arrays.keys() != expected.keys():
        found = arrays.keys() if isinstance(arrays, Mapping) else set()
        odd = sorted(str(key)[:_TEXT] for key in found ^ expected.keys())
        raise Refused("names", f"missing or extra arrays {odd[:5]}")
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
            what = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise Refused("dtype", f"{name}: expected {np.dtype(dtype)}, found {what}")
        if array.ndim != len(shape) or any(
            long is not None and long != size for long, size in zip(shape, array.shape, strict=True)
        ):
            raise Refused("shape", f"{name}: expected {shape}, found {array.shape}")
    return dict(arrays)
