"""The top-k task: every private user's last new click is to be found among the whole catalogue."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.artifacts import publish
from fedpa.data.dataset import Dataset
from fedpa.data.derive import (
    DRAWN,
    need_parts,
    refuse_drawn,
    row_columns,
    row_facts,
    write_derived_manifest,
    write_rows,
)
from fedpa.data.divide import COLD, PRIVATE
from fedpa.data.encode import fit_context
from fedpa.data.split import Part, tie_starts
from fedpa.data.statistics import COUNTS, Counted, counts_at
from fedpa.draws import uniform, user_keys
from fedpa.errors import ConfigError, DataError

__all__ = ["MIN_POSITIVES", "leave_one_out", "pair_keys", "seen_items"]

MIN_POSITIVES = 3
"""A user with fewer positives keeps them all for training and is not judged."""

_LEARNED = (Part.FOUNDATION, Part.FOUNDATION_VAL, Part.TRAIN)
_JUDGED = (Part.TRAIN, Part.VAL, Part.TEST)
_NOBODY = np.uint8(255)


class _Positives(NamedTuple):
    """Clicks, sorted by user, then time.

    Attributes
    ----------
    row : ndarray, shape ``[n]``
        Rows of the source data set.
    user, item, time : ndarray, shape ``[n]``
    part : ndarray of uint8, shape ``[n]``
        Of the source at first, then of the task.
    nth : ndarray of int64, shape ``[n]``
        Place among the user's positives, from 0.
    """

    row: NDArray[np.int64]
    user: NDArray[np.uint32]
    item: NDArray[np.uint32]
    time: NDArray[np.int64]
    part: NDArray[np.uint8]
    nth: NDArray[np.int64]


def leave_one_out(
    dataset: Dataset, out: Path | str, *, negatives: int = 4, seed: int = 0, overwrite: bool = False
) -> Dataset:
    """Write the top-k task of a data set: positives, and negatives drawn for each of them.

    A user's *positives* are the first clicks on each item; a later click on the same item is no news and is dropped.
    Of a private user with `MIN_POSITIVES` or more the latest is the test row, the one before it the validation row,
    the others are training rows. Positives of one time are put in a drawn order: row order would be the order of item
    numbers, and the highest number among them would be the one to be found. Users with fewer positives keep them as
    training rows and are not judged. With a `global-time` split, positives before the first cut are training rows, the
    last one between the cuts is the validation row, the last one after the second cut the test row; a user who lacks
    either is not judged. All positives of open users belong to the foundation. Cold users and randomly exposed rows
    are left out.

    For every positive, `negatives` items are drawn, each uniformly from the catalogue without the items of the user's
    training positives (all positives, for an open user), at the positive's own time. No draw knows a validation or
    test item, so these are as likely to be drawn as any other, even beside the validation or test row itself. A user
    whose training positives are the whole catalogue gets none.

    Counts are those of the rows that were shown in `dataset`, strictly before a row's time; own counts stop at the
    cuts of a `global-time` split. These rows are kept in ``counted.parquet``. Item numbers and the tables of
    users and items stay as they are; the encoders of counts are fitted on the new foundation rows. Row features of a
    drawn row are those of the positive that it stands beside.

    Parameters
    ----------
    dataset : Dataset
        As prepared.
    out : Path
        Folder to write; it appears when it is complete.
    negatives : int
        Drawn for every positive.
    seed : int
        Every draw is a hash of the seed, its purpose, the user's id and the place of the positive among the user's.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    Dataset
        ``settings`` say ``"split": "leave-one-out"`` and the source's hash, ``counts`` who is not judged
        (``left_out``) and how many test items have no training or foundation positive (``unseen_test_items``).

    Raises
    ------
    ConfigError
        If `negatives` or `seed` is out of range, or the negatives of `dataset` were drawn already.
    DataError
        If no user can be judged, or there is nothing to train on.
    ArtifactError
        If `out` exists or cannot be written.
    """
    if negatives < 1:
        raise ConfigError(f"negatives: found {negatives}, expected 1 or more")
    if seed < 0:
        raise ConfigError(f"seed: found {seed}, expected 0 or more")
    refuse_drawn(dataset, "made into a top-k task again")
    with publish(Path(out), overwrite=overwrite) as room:
        _write(dataset, negatives, seed, room)
    return Dataset(out)


def pair_keys(first: NDArray[np.uint64], second: NDArray[Any]) -> NDArray[np.uint64]:
    """One key per pair of a user's key and a number, for `fedpa.draws.uniform`; both are hashed before they are mixed.

    Parameters
    ----------
    first, second : ndarray
        uint64 keys and numbers of 0 or more, of shapes that broadcast.
    """
    hashed = (
        uniform(0, purpose, (), keys) for purpose, keys in (("user", first), ("number", second.astype(np.uint64)))
    )
    left, right = ((number * 2.0**53).astype(np.uint64) for number in hashed)
    return left ^ right


def seen_items(dataset: Dataset) -> NDArray[np.bool_]:
    """Items with a positive among the training and foundation rows, shape ``[n_items]``."""
    rows = dataset.rows(Part.FOUNDATION, Part.TRAIN)
    clicked = dataset.item[rows[dataset.label[rows] == 1]]
    return np.bincount(clicked, minlength=dataset.n_items) > 0


def _write(dataset: Dataset, negatives: int, seed: int, room: Path) -> None:
    manifest = dataset.manifest
    cuts = manifest["settings"]["cuts"]
    cuts = None if cuts is None else (int(cuts[0]), int(cuts[1]))
    found, repeats = _positives(dataset, seed)
    kept, left_out = _parts(found, dataset, cuts)
    need_parts(dataset, kept.part, "the top-k task")
    if not (kept.part == Part.TEST).any():
        reasons = ", ".join(f"{name}: {users:,}" for name, users in left_out.items())
        raise DataError(f"{dataset.path}: no private user can be judged ({reasons})", "use more data")
    drawn = _draw(kept, dataset, negatives, seed)

    item = np.concatenate([kept.item[:, None], drawn], axis=1)
    # Of users who can have no negative, the positive alone is written.
    real = np.flatnonzero(item.reshape(-1) >= 0)
    of = real // (1 + negatives)
    positive = real % (1 + negatives) == 0
    user, time, part = kept.user[of], kept.time[of], kept.part[of]
    item = item.reshape(-1)[real].astype(np.uint32)
    labels = {
        name: np.where(positive, values[kept.row][of], 0).astype(np.int8) for name, values in dataset.labels.items()
    }
    counts = counts_at(dataset.counted, user, item, time, part, cuts)
    causal = manifest["settings"]["features"] == "causal"
    context = fit_context(counts, part == Part.FOUNDATION) if causal else ()

    for name in ("users.parquet", "items.parquet"):
        shutil.copyfile(dataset.path / name, room / name)
    pl.DataFrame(dict(zip(Counted._fields, dataset.counted, strict=True))).write_parquet(room / "counted.parquet")
    columns = {"user": user, "item": item, "time": time} | labels | {name: counts[name] for name in COUNTS}
    write_rows(room, pl.DataFrame(columns | row_columns(dataset, kept.row[of])), part)

    seen = np.bincount(kept.item[np.isin(kept.part, (Part.FOUNDATION, Part.TRAIN))], minlength=dataset.n_items) > 0
    not_clicks = dataset.n_rows - len(found.row) - repeats
    write_derived_manifest(
        room,
        dataset,
        raw=manifest.get("raw", ()),
        settings=manifest["settings"]
        | {
            "split": DRAWN,
            "source": dataset.hash,
            "source_split": manifest["settings"]["split"],
            "negatives": negatives,
            "draws_seed": seed,
        },
        counts=row_facts(user, part, dataset.side, labels)
        | {
            "rows_read": dataset.n_rows,
            "dropped": {
                "no_positive": not_clicks,
                "repeats": repeats,
                "not_chosen": len(found.row) - len(kept.row),
            },
            "drawn": int((~positive).sum()),
            "items": dataset.n_items,
            "judged": int((kept.part == Part.TEST).sum()),
            "left_out": left_out,
            "unseen_test_items": int((~seen[kept.item[kept.part == Part.TEST]]).sum()),
        },
        context=context,
        notes=["rows without a click were drawn"],
    )


def _positives(dataset: Dataset, seed: int) -> tuple[_Positives, int]:
    """First clicks on each item, those of one time in a drawn order, and how many later ones there are."""
    row = dataset.rows(*_LEARNED, Part.VAL, Part.TEST)
    row = row[dataset.label[row] == 1]
    user, item, time = dataset.user[row], dataset.item[row], dataset.time[row]
    chance = uniform(seed, "leave-one-out/ties", (), pair_keys(user_keys(dataset.user_ids)[user], item))
    order = np.lexsort((item, chance, time, user))
    row, user, item, time = row[order], user[order], item[order], time[order]
    pair = user.astype(np.int64) * dataset.n_items + item
    _, first = np.unique(pair, return_index=True)
    first.sort()
    user = user[first]
    nth = np.arange(len(first)) - tie_starts(user)
    found = _Positives(row[first], user, item[first], time[first], dataset.part[row[first]], nth)
    return found, len(row) - len(first)


def _parts(found: _Positives, dataset: Dataset, cuts: tuple[int, int] | None) -> tuple[_Positives, dict[str, int]]:
    """The positives of the task with their parts, and how many users are not judged and why."""
    private = np.isin(found.part, _JUDGED)
    judged = dataset.side == PRIVATE
    left_out = {"cold": int((dataset.side == COLD).sum())}
    part = found.part.copy()
    if cuts is None:
        total = np.bincount(found.user, minlength=dataset.n_users)
        few = judged & (total < MIN_POSITIVES)
        left_out["fewer_than_3_positives"] = int(few.sum())
        enough = ~few[found.user]
        after = (total[found.user] - 1 - found.nth)[private]
        part[private] = np.where(after == 0, Part.TEST, np.where(after == 1, Part.VAL, Part.TRAIN))
        part[private & ~enough] = Part.TRAIN
    else:
        lasts = {each: _last(found, each) for each in (Part.VAL, Part.TEST)}
        has = {each: np.bincount(found.user[last], minlength=dataset.n_users) > 0 for each, last in lasts.items()}
        left_out["no_test_positive"] = int((judged & ~has[Part.TEST]).sum())
        left_out["no_validation_positive"] = int((judged & has[Part.TEST] & ~has[Part.VAL]).sum())
        both = (has[Part.VAL] & has[Part.TEST])[found.user]
        for each, last in lasts.items():
            part[(found.part == each) & ~(last & both)] = _NOBODY
    kept = part != _NOBODY
    return _Positives(*(values[kept] for values in found._replace(part=part))), left_out


def _last(found: _Positives, part: Part) -> NDArray[np.bool_]:
    """Which positives are their user's last ones of a part, shape ``[n]``."""
    here = np.flatnonzero(found.part == part)
    last = np.zeros(len(found.part), dtype=np.bool_)
    if len(here):
        user = found.user[here]
        last[here[np.append(user[1:] != user[:-1], True)]] = True
    return last


def _draw(kept: _Positives, dataset: Dataset, negatives: int, seed: int) -> NDArray[np.int64]:
    """Items that the positive's user has no training positive of, shape ``[n, negatives]``; -1 where there is none.

    Of ``m`` items left in ascending order the one at place ``floor(m u)`` is taken. It is the place plus the number of
    excluded items before it: those whose number exceeds their own place among the excluded by no more than the place.
    """
    n_items = dataset.n_items
    learned = np.isin(kept.part, _LEARNED)
    pair = np.sort(kept.user[learned].astype(np.int64) * n_items + kept.item[learned])
    owner = pair // n_items
    start = np.searchsorted(owner, np.arange(dataset.n_users + 1))
    gaps = pair - (np.arange(len(pair)) - start[owner])
    left = n_items - np.diff(start)[kept.user]
    keys = pair_keys(user_keys(dataset.user_ids)[kept.user], kept.nth)
    drawn = np.full((len(kept.user), negatives), -1, dtype=np.int64)
    first = kept.user.astype(np.int64) * n_items
    for place in range(negatives):
        chosen = (uniform(seed, "leave-one-out/negatives", (place,), keys) * left).astype(np.int64)
        before = np.searchsorted(gaps, first + chosen, side="right") - start[kept.user]
        drawn[:, place] = np.where(left > 0, chosen + before, -1)
    return drawn
