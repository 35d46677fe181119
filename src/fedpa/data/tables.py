"""Your own tables, CSV or Parquet, named by a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedpa.data.reading import scan_table, table_schema
from fedpa.data.source import Feature, FeatureDivision, Reference, Source
from fedpa.errors import ConfigError, DataError

__all__ = ["DivisionSchema", "FeatureTable", "InteractionTable", "TablesSchema", "load", "read_schema"]

SCHEMA_NAME = "schema.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InteractionTable(_Strict):
    """The log: one row per interaction.

    Attributes
    ----------
    file : str
        CSV or Parquet.
    user, item, time : str
        Its columns. Times are numbers that sort, or dates in Parquet.
    labels : list or mapping of str
        Columns that hold 0 or 1, or names for them and their columns. The first one is what models predict.
    row_features : list or mapping of str
        Columns, or names for them and their columns, that say what is known of a row before its item is shown, such as
        the surface; read only where a preparation asks for them.
    """

    file: str
    user: str = "user_id"
    item: str = "item_id"
    time: str = "time"
    labels: tuple[str, ...] | dict[str, str] = Field(default=("click",), min_length=1)
    row_features: tuple[str, ...] | dict[str, str] = ()

    @property
    def label_columns(self) -> dict[str, str]:
        """Column of every label."""
        return _columns(self.labels)

    @property
    def row_columns(self) -> dict[str, str]:
        """Column of every row feature."""
        return _columns(self.row_features)


def _columns(named: tuple[str, ...] | dict[str, str]) -> dict[str, str]:
    return named if isinstance(named, dict) else {name: name for name in named}


class FeatureTable(_Strict):
    """Users or items: one row each.

    Attributes
    ----------
    file : str
        CSV or Parquet.
    id : str
        Column of the id, unique.
    categorical, numeric : list of str
        Columns that models read.
    """

    file: str
    id: str
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()


class DivisionSchema(_Strict):
    """A division of users by a feature: most users with a value in `values` are open."""

    feature: str
    values: tuple[str, ...] = Field(min_length=1)


class TablesSchema(_Strict):
    """What ``schema.yaml`` says.

    Attributes
    ----------
    name : str
        Of the data set.
    interactions : InteractionTable
    users, items : FeatureTable, optional
    ids : {"auto", "text", "integer"}
        Type of user and item ids; ``auto`` looks at the first rows.
    separator : str
        Between the fields of CSV files.
    groups : list of str
        User columns whose values make groups.
    division : DivisionSchema, optional
    undated : list of str
        File names of tables whose date is unknown.
    """

    name: str = Field(min_length=1)
    interactions: InteractionTable
    users: FeatureTable | None = None
    items: FeatureTable | None = None
    ids: Literal["auto", "text", "integer"] = "auto"
    separator: str = Field(default=",", min_length=1, max_length=1)
    groups: tuple[str, ...] = ()
    division: DivisionSchema | None = None
    undated: tuple[str, ...] = ()


def read_schema(path: Path) -> TablesSchema:
    """Read the YAML file that names the tables.

    Raises
    ------
    ConfigError
        If it is missing, is not YAML, or a key is unknown, missing or of the wrong type.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", "write a schema.yaml that names your tables and columns")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    try:
        return TablesSchema.model_validate(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
        raise ConfigError(
            f"{path}: {'; '.join(faults)}", f"use the keys {', '.join(TablesSchema.model_fields)}"
        ) from error


def load(schema: Path, raw: Path | None = None) -> Source:
    """Open the tables that a schema names.

    Parameters
    ----------
    schema : Path
        The YAML file, or the folder that holds it as ``schema.yaml``.
    raw : Path, optional
        The folder of the tables; by default that of the YAML file.

    Raises
    ------
    ConfigError
        If the schema is not valid.
    DataError
        If a table or column is missing or is not what it must be.
    """
    path = schema / SCHEMA_NAME if schema.is_dir() else schema
    settings = read_schema(path)
    folder = path.parent if raw is None else raw
    log, users, items = settings.interactions, settings.users, settings.items
    tables = [table for table in (log, users, items) if table is not None]
    files = {table.file: folder / table.file for table in tables}
    unknown = sorted(set(settings.undated) - files.keys())
    if unknown:
        raise ConfigError(f"{path}: undated names {unknown[0]!r}, which is no table", f"use some of {', '.join(files)}")
    log_path = files[log.file]
    user_type = _id_type(settings, [(log_path, log.user), *([(files[users.file], users.id)] if users else [])])
    item_type = _id_type(settings, [(log_path, log.item), *([(files[items.file], items.id)] if items else [])])
    of_users = [*settings.groups, *([settings.division.feature] if settings.division else [])]
    if of_users and users is None:
        raise ConfigError(
            f"{path}: groups or division need a column {of_users[0]!r}, but there is no users table",
            "add `users` with its file and id",
        )
    return Source(
        name=settings.name,
        files=tuple(files.values()),
        interactions=_interactions(settings, log_path, user_type, item_type),
        users=_features(settings, files[users.file], users, "user_id", user_type, of_users) if users else None,
        items=_features(settings, files[items.file], items, "item_id", item_type, []) if items else None,
        labels=tuple(log.label_columns),
        user_features=_named(users),
        item_features=_named(items),
        row_features=tuple(log.row_columns),
        groups=settings.groups,
        reference=_reference(users, items),
        division=FeatureDivision(settings.division.feature, settings.division.values) if settings.division else None,
        undated=settings.undated,
    )


def _reference(users: FeatureTable | None, items: FeatureTable | None) -> Reference | None:
    """The published encoding of one's own tables: every categorical column, codes over the whole table."""
    if users is None or items is None or not users.categorical or not items.categorical:
        return None
    return Reference(tuple(users.categorical), tuple(items.categorical), binned=())


def _named(table: FeatureTable | None) -> tuple[Feature, ...]:
    if table is None:
        return ()
    return (
        *(Feature(name) for name in table.categorical),
        *(Feature(name, "numeric") for name in table.numeric),
    )


def _id_type(settings: TablesSchema, columns: list[tuple[Path, str]]) -> type[pl.DataType]:
    """One type for an id wherever it occurs: a whole number if all of its columns hold such."""
    if settings.ids != "auto":
        return pl.Int64 if settings.ids == "integer" else pl.String
    schemas = [(table_schema(path, separator=settings.separator), name) for path, name in columns]
    whole = all(name in schema and schema[name].is_integer() for schema, name in schemas)
    return pl.Int64 if whole else pl.String


def _interactions(
    settings: TablesSchema, path: Path, user_type: type[pl.DataType], item_type: type[pl.DataType]
) -> pl.LazyFrame:
    log = settings.interactions
    time = table_schema(path, separator=settings.separator).get(log.time)
    # Text is scanned as the guess says, so that large whole numbers keep every digit; Parquet is converted.
    time_type = pl.Float64 if time is not None and time.is_float() and path.suffix != ".parquet" else pl.Int64
    columns: dict[str, type[pl.DataType]] = {log.user: user_type, log.item: item_type, log.time: time_type}
    columns |= dict.fromkeys(log.label_columns.values(), pl.Int8) | dict.fromkeys(log.row_columns.values(), pl.String)
    named = {"user_id": log.user, "item_id": log.item, "time": log.time, **log.label_columns, **log.row_columns}
    if not len(columns) == len(named) == 3 + len(log.label_columns) + len(log.row_columns):
        raise ConfigError(
            f"{path}: user, item, time, labels and row features share a column or a name",
            "name a column of its own for each",
        )
    return scan_table(path, columns, separator=settings.separator).select(
        pl.col(log.user).alias("user_id"),
        pl.col(log.item).alias("item_id"),
        pl.col(log.time).cast(pl.Int64, strict=False).alias("time"),
        *(pl.col(column).alias(name) for name, column in (log.label_columns | log.row_columns).items()),
    )


def _features(
    settings: TablesSchema,
    path: Path,
    table: FeatureTable,
    key: str,
    key_type: type[pl.DataType],
    groups: list[str],
) -> pl.LazyFrame:
    double = sorted(set(table.categorical) & set(table.numeric))
    if double:
        raise ConfigError(f"{path}: {double[0]!r} is both categorical and numeric", "list it once")
    found = table_schema(path, separator=settings.separator).names()
    absent = [name for name in groups if name not in found]
    if absent:
        raise DataError(
            f"{path}: no column {absent[0]!r} to group or divide users by; its columns are {', '.join(found)}",
            "correct `groups` or `division` in the schema",
        )
    text = [name for name in (*table.categorical, *groups) if name not in table.numeric]
    columns: dict[str, type[pl.DataType]] = {table.id: key_type}
    columns |= dict.fromkeys(text, pl.String) | dict.fromkeys(table.numeric, pl.Float64)
    if key in columns and key != table.id:
        raise ConfigError(f"{path}: {key!r} is the name of the id, not of a feature", "rename the column")
    return scan_table(path, columns, separator=settings.separator).rename({table.id: key})
