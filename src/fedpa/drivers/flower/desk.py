"""Where a node answers letters: one at a time, each once, from what is on its own disk.

Flower starts a new process for every message and keeps nothing between two of them. All that a node keeps is in the
folder that `store=...` of its ``--node-config`` names: per run a folder with the run's config, everybody's item counts,
the generations of what its users' devices keep, and its last answer. What is asked a second time, because the answer or
the process that was at it got lost, is answered from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpa.drivers.flower.letter import Letter, packed, unpacked
from fedpa.durable import make_folder, replace
from fedpa.errors import ConfigError, FedpaError
from fedpa.federation.form import Refused
from fedpa.unfinished import room_of

__all__ = ["FAILED", "Desk", "Unfit"]

FAILED = "failed"
"""Kind of the answer of a node that cannot do what it was asked."""

_log = logging.getLogger(__name__)
_LAST = "last.letter"
_LOCK_SECONDS = 60.0
_RUN = re.compile(r"[0-9a-f]{8,64}")
_NEEDED = ("dataset", "store")
Handler = Callable[["Desk", Letter], Letter]
Stamp = tuple[int, int]


class Unfit(FedpaError):  # noqa: N818 (an answer, not a failure)
    """A node that does not fit the run; unlike other errors its message is told to the server."""


@dataclass
class Desk:
    """A node, as its ``--node-config`` describes it.

    Attributes
    ----------
    dataset : str
        Folder of its users' data, for instance one of those that ``fedpa data shard`` writes.
    store : Path
        Folder of what it keeps.
    foundation : str or None
        Folder, or ``my_file.py:build``.
    method : str or None
        ``my_file.py:MyMethod``, if the run's method is not one of the package: no code is ever taken from a server.
    device : str
    secure : str
        ``true``: give masked sums alone, whatever a server asks (`fedpa.drivers.flower.secure_work`).
    peers, key : str or None
        File of the public keys of all nodes that it is ready to be summed with, and that of its own private key.
    """

    dataset: str
    store: Path
    foundation: str | None = None
    method: str | None = None
    device: str = "cpu"
    secure: str = ""
    peers: str | None = None
    key: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Desk:
        """The node of a ``--node-config``.

        Raises
        ------
        ConfigError
            If a value is missing or unknown.
        """
        known = cls.__dataclass_fields__.keys()
        missing = [key for key in _NEEDED if not config.get(key)]
        if missing:
            raise ConfigError(
                f"--node-config: lacks {', '.join(missing)}",
                'give --node-config \'dataset="FOLDER" foundation="FOLDER" store="FOLDER"\'',
            )
        given = {key: str(value) for key, value in config.items() if key in known and value != ""}
        return cls(**(given | {"store": Path(given["store"])}))  # type: ignore[arg-type]

    def target(self, run: str) -> Path:
        """The folder of a finished run, whose id may come from a server.

        Raises
        ------
        Refused
            If it is no id.
        """
        if not _RUN.fullmatch(run):
            raise Refused("run", "expected the id of a run")
        return self.store / run

    def room(self, run: str) -> Path:
        """The folder of a run that goes on."""
        return room_of(self.target(run))

    def answer(self, letter: Letter, handlers: Callable[[], Mapping[str, Handler]]) -> Letter:
        """What the node answers.

        Parameters
        ----------
        letter : Letter
        handlers : callable
            What to do by kind of letter; called only if there is something to do.
        """
        try:
            run, stamp = _origin(letter)
            with self._alone(run):
                return self._answer(letter, run, stamp, handlers)
        except (Refused, Unfit) as error:
            _log.warning("%s: %s", letter.kind, error)
            return _failed(letter, error.message)
        except Exception as error:
            # What went wrong may name users or files; the server learns no more than that something did.
            _log.exception("%s: failed", letter.kind)
            return _failed(letter, f"{type(error).__name__}; the node's log says more")

    def _answer(self, letter: Letter, run: str, stamp: Stamp, handlers: Callable[[], Mapping[str, Handler]]) -> Letter:
        last = self._last(run)
        if last is not None and stamp == last[0]:
            _log.info("%s: was answered before, is answered again", letter.kind)
            return last[1]
        if last is not None and stamp < last[0]:
            raise Refused("late", f"letter {stamp}, the last one was {last[0]}")
        handler = handlers().get(letter.kind)
        if handler is None:
            raise Refused("header", f"unknown kind {letter.kind[:64]!r}")
        found = handler(self, letter)
        reply = Letter(found.kind, {**_echo(letter), **found.head}, found.parts)
        self._note(run, stamp, reply)
        return reply

    @contextlib.contextmanager
    def _alone(self, run: str) -> Iterator[None]:
        """Wait until no other process works for the run here: one that is being killed may take a moment."""
        make_folder(self.store)
        file = os.open(self.store / f".{run}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        end = time.monotonic() + _LOCK_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise Unfit("another process of this node is at work for this run") from None
                    time.sleep(0.1)
            yield
        finally:
            os.close(file)

    def _last(self, run: str) -> tuple[Stamp, Letter] | None:
        """The last answer, if it can be read."""
        for folder in (self.room(run), self.target(run)):
            try:
                line, _, rest = (folder / _LAST).read_bytes().partition(b"\n")
                session, serial, length = json.loads(line)
                return (session, serial), unpacked(rest[:length].decode(), rest[length:])
            except OSError:
                continue
            except (ValueError, TypeError, Refused):
                _log.warning("%s: cannot be read; it is left out", folder / _LAST)
        return None

    def _note(self, run: str, stamp: Stamp, reply: Letter) -> None:
        """Keep an answer; it can be made again, so that its name need not outlive a crash of the machine."""
        text, block = packed(reply)
        raw = text.encode()
        for folder in (self.room(run), self.target(run)):
            if folder.is_dir():
                replace(folder / _LAST, json.dumps([*stamp, len(raw)]).encode() + b"\n" + raw + block, sync_name=False)
                break


def _origin(letter: Letter) -> tuple[str, Stamp]:
    """The run and the number of a letter."""
    run, session, serial = (letter.head.get(key) for key in ("run", "session", "serial"))
    if not isinstance(run, str) or not _RUN.fullmatch(run):
        raise Refused("run", "expected the id of a run")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in (session, serial)):
        raise Refused("header", "a letter without a number")
    return run, (session, serial)  # type: ignore[return-value]


def _echo(letter: Letter) -> dict[str, Any]:
    return {key: letter.head[key] for key in ("run", "node", "session", "serial") if key in letter.head}


def _failed(letter: Letter, reason: str) -> Letter:
    return Letter(FAILED, {**_echo(letter), "asked": letter.kind, "reason": reason})
