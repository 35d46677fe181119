"""What was published on MovieLens, and how a run here differs from the published one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedpa.reproduction.negatives import Protocol

__all__ = ["PUBLISHED", "ROUNDS", "SOURCE", "UNCITED", "Departure", "Published", "departures"]

SOURCE = "Zhang et al., Dual Personalization on Federated Recommendation, IJCAI 2023"
ROUNDS = 100
"""Rounds of the published runs."""


class Published(NamedTuple):
    """HR@10 and NDCG@10 among 99 drawn items, as shares."""

    hr: float
    ndcg: float


PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    "movielens-100k": {},
    "movielens-1m": {
        "fedmf": Published(0.6515, 0.3938),
        "fedncf": Published(0.6062, 0.3325),
        "fedrecon": Published(0.6445, 0.3778),
        "pfedrec": Published(0.7326, 0.4436),
    },
}
"""By data set and method, all from `SOURCE`."""

UNCITED: Mapping[str, str] = {
    "movielens-100k": "No published value is shown for MovieLens 100K: we could not check those of the paper's table."
}


class Departure(NamedTuple):
    """A way in which a run is not the published one: a few words, and a sentence."""

    short: str
    long: str


_SPLIT = Departure(
    "drawn after the split",
    "The published code never draws a validation or test item as a training negative, which helps to tell it from the "
    "items it is ranked among. Here it may be drawn like any other, which lowers values; see `--protocol both`.",
)
_ONCE = Departure(
    "training negatives drawn once",
    "Published are new training negatives in every round; with the same ones in all rounds a model may learn them by "
    "heart. Leave out `--negatives once` to draw them anew.",
)
_TIES = Departure(
    "ties count half",
    "Logits are ranked and a tie counts as half a place. The published code ranks sigmoids in 32 bits, where large "
    "logits are all 1, and breaks ties by position.",
)
_UNKNOWN = Departure(
    "published settings unknown",
    "How the paper ran this baseline is not in its published code. Here it has the width, batches, rounds and rates of "
    "PFedRec's; vectors of FedMF and FedRecon start small, and FedRecon rebuilds in five passes.",
)
_ONE_START = Departure(
    "one start for all users",
    "User vectors start from the same draw for everybody, so that the first changes of an item do not cancel out.",
)
_NEUMF = Departure(
    "NeuMF",
    "FedNCF is the product of vectors beside a perceptron of 32, 16 and 8, with one width for both.",
)
_NEWEST = Departure(
    "untrained items from the newest table",
    "Items that a device did not train in the last round are scored from the average after it, not from the one "
    "downloaded before it.",
)
_OF_METHOD: Mapping[str, tuple[Departure, ...]] = {
    "fedmf": (_UNKNOWN, _ONE_START),
    "fedncf": (_UNKNOWN, _ONE_START, _NEUMF),
    "fedrecon": (_UNKNOWN, _ONE_START),
    "pfedrec": (_NEWEST,),
}


def departures(
    method: str, protocol: Protocol, *, rounds: int, redraw: bool, settings: Mapping[str, Any]
) -> list[Departure]:
    """Everything known in which a run is not the published one, what may matter most first.

    Parameters
    ----------
    method : str
    protocol : {"after-split", "published"}
    rounds : int
    redraw : bool
        Whether training negatives are drawn anew in every round.
    settings : mapping
        What was changed over preset ``published``.
    """
    found = []
    if rounds != ROUNDS:
        found.append(
            Departure(f"{rounds} rounds, not {ROUNDS}", f"The published runs have {ROUNDS} rounds, this one {rounds}.")
        )
    if settings:
        changed = ", ".join(f"{key}={value}" for key, value in sorted(settings.items()))
        found.append(Departure(changed, f"Settings other than those of preset `published`: {changed}."))
    if protocol == "after-split":
        found.append(_SPLIT)
    if not redraw:
        found.append(_ONCE)
    return [*found, *_OF_METHOD.get(method, ()), _TIES]
