"""Letters: what a server and a node send each other inside Flower's messages.

A letter has a kind, a small head and any number of wire messages (`fedpa.federation.wire`). All arrays travel as one
block of bytes: Flower asks for every array by itself, on each of three ways, and that costs more than the bytes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpa.federation.form import PROTOCOL, Arrays, Message, Refused

__all__ = ["KINDS", "UNSTARTED", "Letter", "of_record", "packed", "to_record", "unpacked"]

KINDS = ("prepare", "start", "round", "finish", "secure")
"""What a node may be asked: for its item counts; to be ready; to score and train; to keep what the run came to; to do
its part of a secure sum, instead of telling its item counts or its part of a round."""

UNSTARTED = "has not started this run"
"""What a node says that never had, or lost, what a run needs."""

_NAME = "fedpa"
_TEXT = 1 << 20
_SQUEEZED = frozenset({"sums"})
"""Wire messages that are mostly zeros. Uploads are never squeezed: their length must not depend on what is in them."""
_MOST_SQUEEZED = 1 << 22


@dataclass(frozen=True)
class Letter:
    """What is asked or answered.

    Attributes
    ----------
    kind : str
        One of `KINDS`, or a stage of a protocol of its own.
    head : dict
        JSON: which run and node, and the number of the letter.
    parts : tuple
        Wire messages, header and arrays.
    """

    kind: str
    head: dict[str, Any]
    parts: tuple[Message, ...] = ()


def packed(letter: Letter) -> tuple[str, bytes]:
    """A letter as text and one block of bytes."""
    text = json.dumps(
        {
            "protocol": PROTOCOL,
            "kind": letter.kind,
            "head": letter.head,
            "parts": [header for header, _ in letter.parts],
        },
        allow_nan=False,
    )
    arrays: Arrays = {}
    for place, (header, own) in enumerate(letter.parts):
        if header.get("kind") in _SQUEEZED:
            squeezed = zlib.compress(safetensors.numpy.save(own), 6)
            arrays[str(place)] = np.frombuffer(squeezed, np.uint8)
        else:
            arrays |= {f"{place}/{name}": np.ascontiguousarray(array) for name, array in own.items()}
    return text, safetensors.numpy.save(arrays)


def unpacked(text: object, block: bytes) -> Letter:
    """What `packed` packed; its arrays are views of the block.

    Raises
    ------
    Refused
        ``header``, ``protocol`` or ``shape`` if it is not of this form; what its parts hold is not asked.
    """
    if not isinstance(text, str) or len(text) > _TEXT:
        raise Refused("header", "not a letter")
    try:
        found = json.loads(text)
        arrays = safetensors.numpy.load(block)
    except (ValueError, RecursionError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise Refused("header", "a letter that cannot be read") from error
    if not isinstance(found, dict) or found.get("protocol") != PROTOCOL:
        raise Refused("protocol", f"expected version {PROTOCOL} of the letters")
    kind, head, headers = found.get("kind"), found.get("head"), found.get("parts")
    if not isinstance(kind, str) or not isinstance(head, dict) or not isinstance(headers, list):
        raise Refused("header", "a letter without a kind, a head or parts")
    return Letter(kind, head, tuple(_parts(headers, arrays)))


def to_record(letter: Letter) -> RecordDict:
    """A letter as the content of a Flower message."""
    text, block = packed(letter)
    return RecordDict(
        {
            _NAME: ConfigRecord({"letter": text}),
            f"{_NAME}.arrays": ArrayRecord({"block": Array("uint8", (len(block),), "safetensors", block)}),
        }
    )


def of_record(record: RecordDict) -> Letter:
    """The letter in a Flower message, as `unpacked` reads it."""
    try:
        text, block = record[_NAME]["letter"], record[f"{_NAME}.arrays"]["block"]
    except (KeyError, TypeError) as error:
        raise Refused("header", "not a letter") from error
    if not isinstance(block, Array):
        raise Refused("header", "not a letter")
    return unpacked(text, block.data)


def _parts(headers: Sequence[object], arrays: Arrays) -> list[Message]:
    """The wire messages, each with its arrays."""
    found: list[Message] = []
    for place, header in enumerate(headers):
        if not isinstance(header, dict):
            raise Refused("header", "a part without a header")
        prefix = f"{place}/"
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        if str(place) in arrays:
            own |= _unsqueezed(arrays[str(place)].tobytes())
        found.append((header, own))
    return found


def _unsqueezed(data: bytes) -> Arrays:
    """Arrays that were squeezed; never more than a few megabytes, whatever arrived."""
    try:
        reader = zlib.decompressobj()
        block = reader.decompress(data, _MOST_SQUEEZED)
        if not reader.eof:
            raise Refused("shape", "a squeezed part that is too large or cut short")
        found: Arrays = safetensors.numpy.load(block)
    except (zlib.error, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise Refused("header", "a squeezed part that cannot be read") from error
    return found
