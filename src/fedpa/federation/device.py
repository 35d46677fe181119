"""What devices keep: personal parameters, own copies of shared ones, moments of the optimiser, rows of tables."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.artifacts import replace_file
from fedpa.durable import link, rename
from fedpa.errors import ArtifactError
from fedpa.federation.generations import Draft, Generations
from fedpa.federation.parameters import Layout
from fedpa.federation.store import Generation, PersonalStore
from fedpa.federation.touched import TouchedRows
from fedpa.settings import Settings

__all__ = ["DeviceStore", "gather", "node_generations"]

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating]
_NOTHING = -1


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
    generations : Generations, optional
        Where rounds are written; without it there is nothing to write to.

    Attributes
    ----------
    keep : frozenset of int
        Generations that a round does not remove, beside the one that it reads.
    about : dict
        JSON that is noted with every generation; its ``users`` say whose it is.
    """

    def __init__(
        self, users: PersonalStore, tables: Mapping[str, PersonalStore], generations: Generations | None = None
    ) -> None:
        self.users = users
        self.tables = dict(tables)
        self.keep: frozenset[int] = frozenset()
        self.about: dict[str, Any] = {}
        self._generations = generations
        self._current = _NOTHING
        self._draft: Draft | None = None

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
        *,
        sync: bool = False,
    ) -> DeviceStore:
        """A store of zeros, whose rounds are generations in a folder; the header of the users' file names the columns.

        With `sync` they outlive a crash of the machine.
        """
        personal = layout.personal.parameters if layout.personal else ()
        columns = {p.name: "x".join(map(str, p.shape)) for p in personal}
        kinds = cls.columns(layout, settings)
        columns |= {f"({kind})": str(size) for kind, size in kinds.items() if size and kind != "personal"}
        tables = {
            name: PersonalStore(int(touched[name].pairs[-1]), width, settings.dtype, {name: str(width)})
            for name, width in cls.table_columns(layout, settings).items()
        }
        store = PersonalStore(users, sum(kinds.values()), settings.dtype, columns)
        return cls(store, tables, node_generations(folder, sync=sync))

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

    def held(self) -> dict[int, dict[str, Any]]:
        """The undamaged generations, with what was noted.

        Raises
        ------
        ArtifactError
            If one is of other users.
        """
        good = self._written().good()
        for number, about in good.items():
            self._check_users(number, about)
        return good

    def _check_users(self, number: int, about: Mapping[str, Any]) -> None:
        if about.get("users") != self.about.get("users"):
            raise ArtifactError(
                f"{self._written().path(number)}: generation {number} is of other users than this node's data set",
                "give the node the folder that belongs to its data set",
            )

    def begin_with_zeros(self, touched: Mapping[str, TouchedRows]) -> None:
        """Write generation 0, that of users who never took part, unless there are others already."""
        if not self._written().numbers():
            self.begin(np.zeros(0, np.int64), touched, 0)
            self.commit()

    def at(self, number: int) -> None:
        """Read from a generation, whose bytes are checked.

        Raises
        ------
        ArtifactError
            If it is missing, damaged or of other users.
        """
        if number == self._current:
            return
        generations = self._written()
        self._check_users(number, generations.about(number))
        for store, path in self._files(generations.path(number)).values():
            store.open(path)
        self._current = number

    def erase(self, folder: Path, user: int, touched: Mapping[str, TouchedRows], *, first: int = 0) -> int:
        """Write zeros over everything of one user in a folder's files; returns how many weights were not zero.

        Parameters
        ----------
        folder : Path
            Of a finished run, or of a generation that is being written.
        user : int
            Local number of the user.
        touched : mapping of str to TouchedRows
            Of all users of the run.
        first : int
            The local number of the folder's first user.
        """
        erased = 0
        for name, (store, path) in self._files(folder).items():
            if not store.size:
                continue
            own = np.array([user])
            rows = own - first if name is None else touched[name].stored(own) - touched[name].pairs[first]
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

    def begin(self, writers: Ints, touched: Mapping[str, TouchedRows], number: int) -> None:
        """Open generation `number`; every user but the `writers` keeps its values. Those not in `keep` are removed."""
        generations = self._written()
        generations.keep(self.keep | {self._current})
        self._draft = generations.draft(number)
        for name, (store, path) in self._files(self._draft.path).items():
            store.begin(path, writers if name is None else touched[name].stored(writers))

    def write(self, rows: Ints, values: Values) -> None:
        """Write all columns of some users."""
        self.users.write(rows, values)

    def commit(self) -> None:
        """Make the generation that was written the current one, for good."""
        if self._draft is None:
            raise ArtifactError("the store of devices was committed outside a round")
        folder = self._draft.publish(self.about)
        self._current, self._draft = self._draft.number, None
        for store, path in self._files(folder).values():
            store.open(path)

    @property
    def size(self) -> int:
        """Columns of a user."""
        return self.users.size

    def _written(self) -> Generations:
        if self._generations is None:
            raise ArtifactError("the store of a finished run is only read")
        return self._generations

    def _files(self, folder: Path) -> dict[str | None, tuple[PersonalStore, Path]]:
        """The stores and their files in a run folder, by table; None is the users' own."""
        found: dict[str | None, tuple[PersonalStore, Path]] = {None: (self.users, folder / "personal.safetensors")}
        return found | {name: (store, self.table_file(folder, name)) for name, store in self.tables.items()}


def node_generations(folder: Path, *, sync: bool = True) -> Generations:
    """The generations of what a node's devices keep."""
    return Generations(folder, "what devices keep", sync=sync)


def gather(folders: Sequence[Path], target: Path) -> None:
    """Put the generations of a run's nodes together, in the order of their users; not synced yet.

    Parameters
    ----------
    folders : sequence of Path
        One generation of each node.
    target : Path
        The run's folder.
    """
    for path in sorted(folders[0].glob("personal*.safetensors")):
        if len(folders) == 1:
            link(path, target / path.name)
            continue
        parts = [Generation(folder / path.name) for folder in folders]
        users, fresh = sum(part.shape[0] for part in parts), target / f".{path.name}.new"
        fresh.unlink(missing_ok=True)
        whole = Generation.create(fresh, users, parts[0].shape[1], parts[0].dtype.name, parts[0].metadata)
        begin = 0
        for part in parts:
            whole.copy_rows(part, np.arange(part.shape[0]), begin)
            begin += part.shape[0]
        rename(fresh, target / path.name, sync=False)
