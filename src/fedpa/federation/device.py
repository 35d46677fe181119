"""What devices keep: personal parameters, own copies of shared ones, moments of the optimiser, rows of tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpa.artifacts import replace_file
from fedpa.federation.parameters import Layout
from fedpa.federation.store import Generation, PersonalStore
from fedpa.federation.touched import TouchedRows
from fedpa.settings import Settings

__all__ = ["DeviceStore"]

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating]


class DeviceStore:
    """One row per user, and for every table with something to keep one row per (user, row touched in training).

    The columns of a user are ``personal`` (changes from the start), ``kept`` (copies of shared parameters, as changes
    from the server's start), ``moments`` (Adam's two, and the number of its rounds) and ``took_part``; those of a
    table's row the change from the table's start and, likewise, moments. A user who never took part is zeros.

    Parameters
    ----------
    users : PersonalStore
    tables : mapping of str to PersonalStore
        By name of the table.
    """

    def __init__(self, users: PersonalStore, tables: Mapping[str, PersonalStore]) -> None:
        self.users = users
        self.tables = dict(tables)

    @staticmethod
    def columns(layout: Layout, settings: Settings) -> dict[str, int]:
        """Number of columns of each kind that a user's row has."""
        keeps = any(scope.keeps for scope in layout.scopes.values())
        return {
            "personal": layout.personal_size,
            "kept": sum(vector.size for vector in layout.kept),
            "moments": 2 * layout.size + 1 if settings.keep_optimizer else 0,
            "took_part": int(keeps),
        }

    @staticmethod
    def table_columns(layout: Layout, settings: Settings) -> dict[str, int]:
        """Number of columns that a row of each table has on a device; tables without any are left out."""
        found = {}
        for table in layout.tables:
            scope = layout.scopes[table.name]
            kept = table.width if scope.kind == "personal" or scope.keeps else 0
            moments = 2 * table.width if settings.keep_optimizer and scope.kind != "frozen" else 0
            if kept + moments:
                found[table.name] = kept + moments
        return found

    @classmethod
    def create(
        cls,
        folder: Path,
        layout: Layout,
        touched: Mapping[str, TouchedRows],
        users: int,
        settings: Settings,
    ) -> DeviceStore:
        """Files of zeros in an empty folder; the header of the users' names the columns."""
        personal = layout.personal.parameters if layout.personal else ()
        columns = {p.name: "x".join(map(str, p.shape)) for p in personal}
        kinds = cls.columns(layout, settings)
        columns |= {f"({kind})": str(size) for kind, size in kinds.items() if size and kind != "personal"}
        store = PersonalStore(folder, users, sum(kinds.values()), settings.dtype, columns)
        tables = {}
        for name, width in cls.table_columns(layout, settings).items():
            room = folder / f"table-{name}"
            room.mkdir()
            pairs = int(touched[name].pairs[-1])
            tables[name] = PersonalStore(room, pairs, width, settings.dtype, {name: str(width)})
        return cls(store, tables)

    @classmethod
    def open(
        cls,
        folder: Path,
        layout: Layout,
        touched: Mapping[str, TouchedRows],
        users: int,
        settings: Settings,
    ) -> DeviceStore:
        """The finished store of a run, to read from.

        Raises
        ------
        ArtifactError
            If a file is missing, cut short or holds other users or weights.
        """
        size = sum(cls.columns(layout, settings).values())
        store = PersonalStore.view(folder / "personal.safetensors" if size else None, users, size, settings.dtype)
        tables = {
            name: PersonalStore.view(cls.table_file(folder, name), int(touched[name].pairs[-1]), width, settings.dtype)
            for name, width in cls.table_columns(layout, settings).items()
        }
        return cls(store, tables)

    @staticmethod
    def table_file(folder: Path, name: str) -> Path:
        """Where a run keeps the rows of a table."""
        return folder / f"personal-{name}.safetensors"

    def save(self, folder: Path) -> None:
        """Move the best generation into a run folder."""
        for store, path in self._files(folder).values():
            if store.size:
                store.best.flush()
                store.best.path.rename(path)

    def erase(self, folder: Path, user: int, touched: Mapping[str, TouchedRows]) -> int:
        """Write zeros over everything of one user in a run folder; returns how many weights were not zero."""
        erased = 0
        for name, (store, path) in self._files(folder).items():
            if not store.size:
                continue
            own = np.array([user])
            rows = own if name is None else touched[name].stored(own)
            with replace_file(path) as fresh:
                shutil.copyfile(path, fresh)
                file = Generation(fresh, writable=True)
                found = file.read(rows)
                erased += int(np.count_nonzero(found))
                file.write(rows, np.zeros_like(found))
                file.flush()
        return erased

    def read(self, rows: Ints) -> Values:
        """All columns of some users [rows, columns]."""
        return self.users.read(rows)

    def read_table(self, name: str, touched: TouchedRows, users: Ints, length: int) -> Values | None:
        """What some users keep of a table [users, length, columns], zero past their rows; None if nothing."""
        if name not in self.tables:
            return None
        store = self.tables[name]
        found = store.read(touched.stored(users))
        count = touched.trained[users]
        dense = np.zeros((len(users), length, store.size), found.dtype)
        dense[np.arange(length) < count[:, None]] = found
        return dense

    def write_table(self, name: str, touched: TouchedRows, users: Ints, values: Values) -> None:
        """Write what some users keep of a table, as `read_table` gives it."""
        count = touched.trained[users]
        self.tables[name].write(touched.stored(users), values[np.arange(values.shape[1]) < count[:, None]])

    def begin(self, writers: Ints, touched: Mapping[str, TouchedRows]) -> None:
        """Open the next generation; every user but the `writers` keeps its values."""
        self.users.begin(writers)
        for name, store in self.tables.items():
            store.begin(touched[name].stored(writers))

    def write(self, rows: Ints, values: Values) -> None:
        """Write all columns of some users."""
        self.users.write(rows, values)

    def commit(self) -> None:
        """Make the generation that was written the current one."""
        for store in self._stores():
            store.commit()

    def mark_best(self) -> None:
        """Keep the current generation as the best."""
        for store in self._stores():
            store.mark_best()

    @property
    def best(self) -> Generation:
        """The users' best generation."""
        return self.users.best

    @property
    def size(self) -> int:
        """Columns of a user."""
        return self.users.size

    def _stores(self) -> Sequence[PersonalStore]:
        return (self.users, *self.tables.values())

    def _files(self, folder: Path) -> dict[str | None, tuple[PersonalStore, Path]]:
        """The stores and their files in a run folder, by table; None is the users' own."""
        found: dict[str | None, tuple[PersonalStore, Path]] = {None: (self.users, folder / "personal.safetensors")}
        return found | {name: (store, self.table_file(folder, name)) for name, store in self.tables.items()}
