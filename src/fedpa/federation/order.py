"""What a server and its nodes say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedpa.evaluation.sums import ClickSums
from fedpa.federation.server import TableRows, Upload

__all__ = ["Base", "Order", "Report", "Sums"]

Sums = dict[str, ClickSums]
"""What a node says of its rows' scores, per split: ``train``, ``val`` and ``test``."""


@dataclass(frozen=True)
class Order:
    """What a server asks of all nodes: to score with a state, then to train from it.

    Attributes
    ----------
    run : str
        Id of the run.
    number : int
        The round to train, from 1.
    state : tuple of Tensor
        The server's state after round `number` - 1; see `fedpa.federation.server.Server`.
    downlink : tuple of TableRows
        What single users receive beside it.
    train : bool
        False: score only.
    """

    run: str
    number: int
    state: tuple[Tensor, ...]
    downlink: tuple[TableRows, ...] = ()
    train: bool = True


@dataclass(frozen=True)
class Base:
    """What one node starts from, and what it must not remove.

    Attributes
    ----------
    generation : int
        Of what its devices keep: that of its last round which was counted; 0 before the first.
    keep : tuple of int
        Generations to which the run may yet go back.
    """

    generation: int = 0
    keep: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a node answers to having trained.

    Attributes
    ----------
    run : str
    number : int
        The round.
    node : int
    upload : Upload
        Sums over its users.
    """

    run: str
    number: int
    node: int
    upload: Upload
