"""From a source's raw tables to a data set folder: divide, split, count, encode, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fedpa.artifacts import FORMAT_VERSION, publish, write_json
from fedpa.data.dataset import Dataset
from fedpa.data.derive import file_facts, row_facts, version, write_rows
from fedpa.data.divide import OPEN, PRIVATE, SIDES, at_random, by_feature, by_file, draw, make_cold
from fedpa.data.encode import ROW, Encoder, encode_reference, fit, fit_context, fit_rows
from fedpa.data.like import Like
from fedpa.data.rows import Rows, read_oracle, read_rows, read_table
from fedpa.data.source import Feature, Source
from fedpa.data.split import FOUNDATION_VAL_SHARE, PARTS, Part, cuts_in_time
from fedpa.data.split import split as split_rows
from fedpa.data.statistics import COUNTS, causal_counts
from fedpa.data.until import before, check_instants
from fedpa.data.validate import validate
from fedpa.errors import ConfigError, DataError

__all__ = ["COLD_SHARE", "prepare"]

COLD_SHARE = 0.1
"""Share of the private users that `cold_users` without a number makes cold."""

Features = Literal["causal", "reference"]
Split = Literal["per-user", "global-time"]


@dataclass(frozen=True)
class _Settings:
    """Everything that decides what is written, apart from the source."""

    features: Features
    min_rows: int
    division: Path | Literal["feature", "random"]
    split: Split
    cold_share: float
    groups: tuple[str, ...]
    labels: tuple[str, ...]
    row_features: tuple[str, ...]
    seed: int
    like: Like | None = None
    cuts: tuple[int, int] | None = None
    until: int | None = None


def prepare(
    source: Source,
    out: Path,
    *,
    features: Features = "causal",
    min_rows: int = 1,
    division: Path | Literal["feature", "random"] = "feature",
    split: Split = "per-user",
    cold_users: bool | float = False,
    groups: Sequence[str] | None = None,
    label: str | None = None,
    row_features: Sequence[str] = (),
    seed: int = 0,
    like: Dataset | None = None,
    cuts: tuple[int, int] | None = None,
    until: int | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Write a data set folder; equal arguments give equal bytes.

    Parameters
    ----------
    source : Source
        Raw tables under common names.
    out : Path
        Folder to write; it appears when it is complete.
    features : {"causal", "reference"}
        ``causal`` reads only what was known before a row; ``reference`` repeats the published encoding.
    min_rows : int
        Users with fewer rows, exact repeats not counted, are dropped.
    division : Path or {"feature", "random"}
        Which users are open: a CSV file with ``user_id`` and ``side``; the published feature, or half of the
        users at random where none is published; or half of the users at random.
    split : {"per-user", "global-time"}
        60/20/20 of each private user's rows in time, or of all rows in time; see `fedpa.data.split.split`.
    cold_users : bool or float
        Share of the private users that no training sees; true means `COLD_SHARE`.
    groups : sequence of str, optional
        User columns whose values make groups; by default those of the source.
    label : str, optional
        The label to predict; by default the source's first one.
    row_features : sequence of str
        Of those that the source offers: what is known of a row itself before it is scored. They are further context
        features, for ``causal`` features only, and make another task of the data: by default there are none.
    seed : int
        Every draw is a hash of the seed, its purpose and a user's id.
    like : Dataset, optional
        An earlier data set of the same source, so that what was trained on it fits this one too: encoders, groups,
        labels, row features, seed and the sides of its users are its own. New users are private, or as a file given as
        `division` says; `min_rows` is asked of them alone.
    cuts : (int, int), optional
        The two instants of a ``global-time`` split: rows before the first are for training, rows from the second on for
        testing.
    until : int, optional
        Rows of this instant and later are left out, as if the data had been read then.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    Dataset

    Raises
    ------
    ConfigError
        If a setting is unknown or out of range, the source has no reference encoding, it does not offer a row feature,
        or `like` was made of another source or contradicts a setting.
    DataError
        If a table or the division is not what it must be, or no open or no private users are left.
    ArtifactError
        If `out` exists or cannot be written.
    """
    check_instants(cuts, until)
    wanted: dict[str, Any] = {
        "features": features,
        "cold_users": cold_users,
        "groups": groups,
        "label": label,
        "row_features": row_features,
        "seed": seed,
    }
    lender = None
    if like is not None:
        lender = Like(like)
        lender.check(source, division, wanted)
        wanted = lender.settings
    split = split if cuts is None else "global-time"
    settings = _settings(source, min_rows=min_rows, division=division, split=split, **wanted)
    settings = replace(settings, like=lender, cuts=cuts, until=until)
    if until is not None:
        source = before(source, until)
    with publish(Path(out), overwrite=overwrite) as room:
        _write(source, settings, room)
    return Dataset(out)


def _settings(
    source: Source,
    *,
    features: Features,
    min_rows: int,
    division: Path | Literal["feature", "random"],
    split: Split,
    cold_users: bool | float,
    groups: Sequence[str] | None,
    label: str | None,
    row_features: Sequence[str],
    seed: int,
) -> _Settings:
    if features not in {"causal", "reference"}:
        raise ConfigError(f"features: found {features!r}, expected causal or reference")
    if features == "reference" and source.reference is None:
        raise ConfigError(f"{source.name}: has no published encoding to repeat", "use the causal features")
    if split not in {"per-user", "global-time"}:
        raise ConfigError(f"split: found {split!r}, expected per-user or global-time")
    if min_rows < 1:
        raise ConfigError(f"min_rows: found {min_rows}, expected 1 or more")
    if seed < 0:
        raise ConfigError(f"seed: found {seed}, expected 0 or more")
    share = (COLD_SHARE if cold_users else 0.0) if isinstance(cold_users, bool) else float(cold_users)
    if not 0.0 <= share < 1.0:
        raise ConfigError(f"cold_users: found {share}, expected a share from 0 to less than 1")
    if label is not None and label not in source.labels:
        raise ConfigError(f"label: found {label!r}, {source.name} has {', '.join(source.labels)}")
    first = source.labels[0] if label is None else label
    labels = (first, *(name for name in source.labels if name != first))
    if division == "feature" and source.division is None:
        division = "random"
    if division not in {"feature", "random"}:
        division = Path(division)
    chosen = tuple(dict.fromkeys(source.groups if groups is None else groups))
    rows = _row_features(source, features, row_features)
    return _Settings(features, min_rows, division, split, share, chosen, labels, rows, seed)


def _row_features(source: Source, features: Features, wanted: Sequence[str]) -> tuple[str, ...]:
    if unknown := [name for name in wanted if name not in source.row_features]:
        raise ConfigError(
            f"row_features: found {unknown[0]!r}, {source.name} offers {', '.join(source.row_features) or 'none'}",
            "name some of these"
            if source.row_features
            else "leave them out, or list them in the schema of your tables",
        )
    if wanted and features == "reference":
        raise ConfigError("row_features: the published encoding has none", "use the causal features")
    return tuple(dict.fromkeys(wanted))


def _write(source: Source, settings: _Settings, room: Path) -> None:
    """Every step of a preparation in its order."""
    validate(source)
    users = read_table(source, "user", _columns(source, settings, "user"))
    items = read_table(source, "item", _columns(source, settings, "item"))
    rows, dropped = read_rows(source, settings.labels, users["user_id"], items["item_id"], settings.row_features)
    side, dropped_users = _sides(rows, users, source, settings)
    coded_users, user_features, groups = _encode_users(users, side == OPEN, source, settings)
    coded_items, item_features = _encode_items(items, source, settings)
    rows = _keep_users(rows, side, dropped, dropped_users)
    kept = pl.Series(side >= 0)
    ids, side = users["user_id"].filter(kept), side[side >= 0]
    coded_users = coded_users.filter(kept).insert_column(
        1, pl.Series("side", side).replace_strict(range(len(SIDES)), SIDES, return_dtype=pl.Enum(SIDES))
    )
    cuts = settings.cuts
    if cuts is None and settings.split == "global-time":
        cuts = cuts_in_time(rows["time"][~rows.random])
    held_out = np.zeros(len(ids), dtype=np.bool_)
    held_out[side == OPEN] = draw(ids.filter(pl.Series(side == OPEN)), FOUNDATION_VAL_SHARE, "held-out", settings.seed)
    part = split_rows(rows["user"], rows["time"], rows.random, side, held_out, cuts)
    rows, part = _drop_random(rows, part, dropped)
    for needed in (Part.FOUNDATION, Part.TRAIN):
        if not (part == needed).any():
            raise DataError(f"{source.name}: no rows are left for part {PARTS[needed]}", "use more data")
    label = rows[settings.labels[0]]
    counts = causal_counts(rows["user"], rows["item"], rows["time"], label, part)
    learned = part == Part.FOUNDATION
    of_rows = rows.table.select(f"{ROW}{name}" for name in settings.row_features)
    context: Sequence[Encoder] = fit_context(counts, learned) if settings.features == "causal" else ()
    row_encoders = fit_rows(of_rows, learned)
    if settings.like is not None:
        context, row_encoders = settings.like.context, settings.like.rows
    facts = row_facts(rows["user"], part, side, {name: rows[name] for name in settings.labels})
    facts |= {"rows_read": len(rows) + sum(dropped.values()), "dropped": dropped, "items": len(items)}
    if settings.like is not None:
        facts["since"] = settings.like.facts(coded_users, coded_items)

    if source.oracle is not None:
        read_oracle(source, rows, ids, items["item_id"]).write_parquet(room / "oracle.parquet")
    coded_users.write_parquet(room / "users.parquet")
    coded_items.write_parquet(room / "items.parquet")
    columns = [pl.Series(name, counts[name]) for name in COUNTS]
    columns += [pl.Series(each.name, each.encode(of_rows[each.name]).astype(np.int16)) for each in row_encoders]
    write_rows(room, rows.table.drop(of_rows.columns).hstack(columns), part)

    manifest = {
        "kind": "dataset",
        "format_version": FORMAT_VERSION,
        "fedpa_version": version(),
        "source": source.name,
        "raw": [file_facts(path) for path in sorted(source.files, key=lambda path: path.name)],
        "settings": _settings_json(settings, cuts),
        "label": settings.labels[0],
        "labels": list(settings.labels),
        "counts": facts,
        "features": {
            "user": user_features,
            "item": item_features,
            "context": [encoder.to_json() for encoder in [*context, *row_encoders]],
        },
        "groups": groups,
        "undated": list(source.undated),
        "notes": list(source.notes),
        "warnings": _warnings(source, settings, facts),
        "files": {path.name: file_facts(path) for path in sorted(room.iterdir())},
    }
    write_json(room / "manifest.json", manifest)


def _columns(source: Source, settings: _Settings, noun: Literal["user", "item"]) -> list[str]:
    """Columns to read of a table besides the id."""
    if settings.features == "reference" and source.reference is not None:
        columns = list(getattr(source.reference, noun))
    else:
        columns = [each.name for each in (source.user_features if noun == "user" else source.item_features)]
    if noun == "user":
        columns += settings.groups
        if settings.division == "feature" and source.division is not None:
            columns.append(source.division.feature)
    return columns


def _sides(
    rows: Rows, users: pl.DataFrame, source: Source, settings: _Settings
) -> tuple[NDArray[np.int8], dict[str, NDArray[np.bool_]]]:
    """Side of every user of the table, -1 for those to drop, and who is dropped for what reason."""
    n_rows = np.bincount(rows["user"][~rows.random], minlength=len(users))
    enough = n_rows >= settings.min_rows
    chosen = users.filter(pl.Series(enough))
    ids = chosen["user_id"]
    side = np.full(len(users), -1, dtype=np.int8)
    file = settings.division if isinstance(settings.division, Path) else None
    if settings.like is not None:
        side = settings.like.sides(users["user_id"], n_rows, settings.min_rows, file)
        enough |= side >= 0
    elif file is not None:
        side[enough] = by_file(ids, file)
    elif settings.division == "feature" and source.division is not None:
        side[enough] = by_feature(ids, chosen[source.division.feature], source.division, settings.seed)
    else:
        side[enough] = at_random(ids, settings.seed)
    unnamed = enough & (side < 0)
    if settings.like is None:
        side[enough] = make_cold(ids, side[enough], settings.cold_share, settings.seed)
    for code in (OPEN, PRIVATE):
        if not (side == code).any():
            where = settings.division if isinstance(settings.division, Path) else source.name
            raise DataError(
                f"{where}: no {SIDES[code]} users are left among the {len(ids):,} with at least "
                f"{settings.min_rows} rows",
                "divide the users so that there are open and private ones, or lower min_rows",
            )
    return side, {"min_rows": ~enough, "not_in_division": unnamed}


def _keep_users(
    rows: Rows, side: NDArray[np.int8], dropped: dict[str, int], reasons: dict[str, NDArray[np.bool_]]
) -> Rows:
    """Rows of users who have a side, their users numbered without gaps; counts what it drops."""
    for name, users in reasons.items():
        dropped[name] = int((users[rows["user"]] & ~rows.random).sum())
    of_nobody = rows.random & (side[rows["user"]] != PRIVATE)
    dropped["random_not_private"] = int(of_nobody.sum())
    rows = rows.keep((side[rows["user"]] >= 0) & ~of_nobody)
    numbers = (np.cumsum(side >= 0) - 1).astype(np.uint32)
    return Rows(rows.table.with_columns(pl.Series("user", numbers[rows["user"]])), rows.random)


def _drop_random(rows: Rows, part: NDArray[np.uint8], dropped: dict[str, int]) -> tuple[Rows, NDArray[np.uint8]]:
    """Without the randomly exposed rows that come before the test period."""
    early = rows.random & (part == Part.UNUSED)
    dropped["random_before_test"] = int(early.sum())
    return rows.keep(~early), part[~early]


def _encode_users(
    users: pl.DataFrame, is_open: NDArray[np.bool_], source: Source, settings: _Settings
) -> tuple[pl.DataFrame, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Codes of all users, their encoders, and the groups' encoders; fitted on open users only if causal and new."""
    columns, like = [users["user_id"]], settings.like
    features, groups = [], {}
    if settings.features == "reference" and source.reference is not None:
        for name in source.reference.user:
            codes, facts = encode_reference(users[name], binned=False)
            columns.append(pl.Series(f"feature:{name}", codes))
            features.append(facts)
        for name in settings.groups:
            codes, groups[name] = encode_reference(users[name], binned=False)
            columns.append(pl.Series(f"group:{name}", codes))
    else:
        mask = pl.Series(is_open)
        for feature in source.user_features:
            encoder = like.encoder("user", feature.name) if like else fit(feature, users[feature.name].filter(mask))
            columns.append(pl.Series(f"feature:{feature.name}", encoder.encode(users[feature.name])))
            features.append(encoder.to_json())
        for name in settings.groups:
            encoder = like.group(name) if like else fit(Feature(name), users[name].filter(mask))
            columns.append(pl.Series(f"group:{name}", encoder.encode(users[name])))
            groups[name] = encoder.to_json()
    return pl.DataFrame(columns), features, groups


def _encode_items(
    items: pl.DataFrame, source: Source, settings: _Settings
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Codes of all items and their encoders, if new fitted on the item table."""
    columns, like = [items["item_id"]], settings.like
    features = []
    if settings.features == "reference" and source.reference is not None:
        for name in source.reference.item:
            codes, facts = encode_reference(items[name], binned=name in source.reference.binned)
            columns.append(pl.Series(f"feature:{name}", codes))
            features.append(facts)
    else:
        for feature in source.item_features:
            encoder = like.encoder("item", feature.name) if like else fit(feature, items[feature.name])
            columns.append(pl.Series(f"feature:{feature.name}", encoder.encode(items[feature.name])))
            features.append(encoder.to_json())
    return pl.DataFrame(columns), features


def _warnings(source: Source, settings: _Settings, facts: dict[str, Any]) -> list[str]:
    """What a person should know before believing a figure from this data set."""
    warnings = []
    if settings.features == "reference" and source.reference is not None and source.reference.binned:
        names = ", ".join(source.reference.binned)
        warnings.append(f"reference features leak: {names} were counted over the whole period of the log")
    if settings.cold_share and not facts["parts"]["cold_test"]:
        warnings.append("no cold user has enough rows to be judged")
    if source.division is None and settings.division == "random" and settings.like is None:
        warnings.append("no division of users is published for this source: half of the users, drawn, are open")
    return warnings


def _settings_json(settings: _Settings, cuts: tuple[int, int] | None) -> dict[str, Any]:
    division: dict[str, Any] = {"by": settings.division}
    if isinstance(settings.division, Path):
        division = {"by": "file", **file_facts(settings.division)}
    if settings.like is not None and not isinstance(settings.division, Path):
        division = {"by": "like"}
    asked: dict[str, Any] = {"row_features": list(settings.row_features)} if settings.row_features else {}
    asked |= {} if settings.until is None else {"until": settings.until}
    asked |= {} if settings.like is None else {"like": settings.like.dataset.hash}
    return asked | {
        "features": settings.features,
        "min_rows": settings.min_rows,
        "division": division,
        "split": settings.split,
        "cuts": None if cuts is None else list(cuts),
        "cold_users": settings.cold_share,
        "groups": list(settings.groups),
        "seed": settings.seed,
    }
