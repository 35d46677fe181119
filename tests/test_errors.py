"""Every mistake ends with one message that helps, exit code 2 and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.torch

from command import ROUNDS, World, answer, fedpa, make_world
from fedpa import load_dataset, load_run
from fedpa.data.dataset import OPEN, Part
from fedpa.federation import generations
from fedpa.federation.shard import Shard

USERS, TIMES = range(1, 25), range(10)
SCHEMA = """
name: mine
interactions: {file: log.csv, labels: [click]}
users: {file: users.csv, id: user_id, categorical: [city], numeric: [age]}
items: {file: items.csv, id: item_id, categorical: [kind]}
groups: [city]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Own tables without a fault: 24 users, 9 items, 240 rows."""
    folder = tmp_path / "raw"
    folder.mkdir()
    log = [f"{u},{(u * 5 + t) % 9},{1000 + t},{(u * t + u + t) % 3 % 2}" for u in USERS for t in TIMES]
    (folder / "log.csv").write_text("user_id,item_id,time,click\n" + "\n".join(log) + "\n")
    users = [f"{u},{'ab'[u % 2]},{20 + u}" for u in USERS]
    (folder / "users.csv").write_text("user_id,city,age\n" + "\n".join(users) + "\n")
    (folder / "items.csv").write_text("item_id,kind\n" + "\n".join(f"{i},{'xyz'[i % 3]}" for i in range(9)) + "\n")
    (folder / "schema.yaml").write_text(SCHEMA)
    return folder


def refused(*arguments: object, names: tuple[str, ...], code: int = 2) -> str:
    """Standard error of a command line that is refused with these words; nothing is on standard output."""
    result = fedpa(*arguments, code=code)
    assert result.stdout == ""
    text = " ".join(result.stderr.split())
    for name in names:
        assert name in text, text
    return result.stderr


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        text = (raw / file).read_text()
        assert old in text
        (raw / file).write_text(text.replace(old, new, 1))

    return change


def write(file: str, content: bytes) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        (raw / file).write_bytes(content)

    return change


def cut(raw: Path) -> None:
    content = (raw / "log.csv").read_bytes()
    (raw / "log.csv").write_bytes(content[:-7])


def test_tables_without_a_fault_are_accepted(raw: Path, tmp_path: Path) -> None:
    fedpa("prepare", "tables", "--raw", raw, "--out", tmp_path / "dataset")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda raw: (raw / "log.csv").unlink(), ("log.csv: no such file", "To fix it: check the name")),
        (lambda raw: (raw / "schema.yaml").unlink(), ("schema.yaml: no such file", "To fix it: write a schema.yaml")),
        (write("log.csv", b""), ("log.csv: empty file", "To fix it: export")),
        (write("users.csv", b"user_id,city,age\n"), ("users.csv: a header but no rows", "To fix it: export")),
        (
            replace("log.csv", ",click\n", ",clicked\n"),
            ("log.csv: no column 'click'", "user_id, item_id, time, clicked", "rename 'clicked' to 'click'"),
        ),
        (
            replace("users.csv", "2,a,22", "2,a,old"),
            ("users.csv, line 3, column 'age': 'old', expected a number", "To fix it: correct the value"),
        ),
        (
            replace("log.csv", "1,5,1000,", "1,5,noon,"),
            ("log.csv, line 2, column 'time': 'noon', expected a whole number", "To fix it: correct the value"),
        ),
        (
            replace("log.csv", "1,5,1000,", "1,5,,"),
            ("mine interactions: a row has no time", "user 1, item 5", "To fix it: remove the row"),
        ),
        (
            replace("log.csv", "1,5,1000,", ",5,1000,"),
            ("mine interactions: a row has no user_id", "item 5, time 1000", "To fix it: remove the row"),
        ),
        (
            replace("log.csv", "1,5,1000,", "99,5,1000,"),
            ("mine interactions: 1 values of user_id are not in the table of users: 99", "To fix it: add them"),
        ),
        (
            replace("log.csv", "1,5,1000,", "1,77,1000,"),
            ("mine interactions: 1 values of item_id are not in the table of items: 77", "To fix it: add them"),
        ),
        (
            replace("log.csv", "1,5,1000,1", "1,5,1000,2"),
            ("label 'click': 2 at user 1, item 5, time 1000, expected 0 or 1", "To fix it: correct the label"),
        ),
        (
            replace("log.csv", "1,5,1000,1", "1,5,1000,yes"),
            ("log.csv, line 2, column 'click': 'yes', expected a whole number", "To fix it"),
        ),
        (
            replace("users.csv", "2,a,22", "1,a,22"),
            ("mine users: 1 values of user_id occur more than once: 1 2 times", "To fix it: keep one row per id"),
        ),
        (
            replace("items.csv", "2,z", "1,z"),
            ("mine items: 1 values of item_id occur more than once: 1 2 times", "To fix it: keep one row per id"),
        ),
        (cut, ("log.csv, line 241: the file ends within a row: 3 fields, the header has 4", "To fix it: copy")),
        (
            write("users.csv", b"user_id,city,age\n1,K\xf6ln,20\n"),
            ("users.csv, line 2: byte 20 of the file is 0xf6, which is not UTF-8", "To fix it: save the file as UTF-8"),
        ),
        (
            replace("schema.yaml", "groups: [city]", "groups: [town]"),
            ("users.csv: no column 'town' to group", "user_id, city, age", "To fix it: correct `groups`"),
        ),
        (replace("schema.yaml", "groups:", "group:"), ("schema.yaml: group: Extra inputs", "To fix it: use the keys")),
        (write("schema.yaml", b"name: [mine\n"), ("schema.yaml: not readable as YAML",)),
        (write("schema.yaml", b"just text\n"), ("schema.yaml: file: Input should be", "To fix it: use the keys")),
    ],
)
def test_faults_of_tables(raw: Path, tmp_path: Path, change: Callable[[Path], None], names: tuple[str, ...]) -> None:
    change(raw)
    text = refused("prepare", "tables", "--raw", raw, "--out", tmp_path / "dataset", names=names)
    assert text.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (
            ("--groups", "town"),
            ("no column 'town'", "it has age, city, user_id", "To fix it: name one of these columns"),
        ),
        (("--label", "like"), ("label: found 'like', mine has click",)),
        (("--min-rows", 0), ("min_rows: found 0, expected 1 or more",)),
        (("--min-rows", 11), ("no open users are left among the 0 with at least 11 rows", "To fix it")),
        (("--seed", -1), ("seed: found -1, expected 0 or more",)),
        (("--division", "nowhere.csv"), ("nowhere.csv",)),
        (("--features", "casual"), ("Invalid value for '--features'", "'causal', 'reference'")),
        (("--split", "random"), ("Invalid value for '--split'", "'per-user', 'global-time'")),
        (("--min-rows", "five"), ("Invalid value for '--min-rows'", "valid integer")),
        (("--minrows", 5), ("No such option", "--minrows")),
    ],
)
def test_faults_of_options(raw: Path, tmp_path: Path, options: tuple[object, ...], names: tuple[str, ...]) -> None:
    refused("prepare", "tables", "--raw", raw, "--out", tmp_path / "dataset", *options, names=names)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("sides", "names"),
    [
        (["private"] * 24, ("division.csv: no open users are left among the 24", "To fix it: divide the users")),
        (["open"] * 24, ("division.csv: no private users are left among the 24", "To fix it: divide the users")),
        (["open", "closed"] * 12, ("division.csv, line 3: user 2 has side 'closed', expected open or private",)),
    ],
)
def test_faults_of_the_division(raw: Path, tmp_path: Path, sides: list[str], names: tuple[str, ...]) -> None:
    file = raw / "division.csv"
    pl.DataFrame({"user_id": USERS, "side": sides}).write_csv(file)
    refused("prepare", "tables", "--raw", raw, "--out", tmp_path / "dataset", "--division", file, names=names)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_split_of_one_class_lacks_metrics_and_is_no_fault(raw: Path, tmp_path: Path) -> None:
    log = [f"{u},{(u * 5 + t) % 9},{1000 + t},{1 if t >= 6 else t % 2}" for u in USERS for t in TIMES]
    (raw / "log.csv").write_text("user_id,item_id,time,click\n" + "\n".join(log) + "\n")
    out = {name: tmp_path / name for name in ("dataset", "foundation", "run")}
    fedpa("prepare", "tables", "--raw", raw, "--out", out["dataset"])
    fedpa("pretrain", out["dataset"], "--out", out["foundation"], "--set", "epochs=1")
    summary = answer("adapt", out["foundation"], out["dataset"], "--out", out["run"], *ROUNDS)
    assert summary["splits"]["val"]["auc"] is summary["splits"]["test"]["gauc"] is None
    metrics = answer("evaluate", out["run"])["metrics"]
    assert metrics["auc"] is metrics["gauc"] is None
    assert "have label 1" in metrics["reasons"]["auc"]
    assert "-" in fedpa("evaluate", out["run"]).stdout


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--method", "fedp"), ("unknown method 'fedp'; did you mean 'fedpa'?", "To fix it")),
        (("--method", "nowhere.py:Mine"), ("nowhere.py: no such file, expected a Python file with class Mine",)),
        (
            ("--preset", "fast"),
            ("method fedpa: unknown preset 'fast', known: default, no-gate, ", "reference, repaired"),
        ),
        (
            ("--method", "fedit", "--set", "wide=true"),
            ("method fedit: setting 'wide': expected False, found True; only fedpa and local-only have this part",),
        ),
        (
            ("--method", "biases", "--set", "groups=[town]"),
            ("setting 'groups': expected [], found ['town']; only fedpa and local-only have this part",),
        ),
        (("--set", "rank=0"), ("setting 'rank'", "greater than or equal to 1, found 0")),
        (("--set", "lr=-1"), ("setting 'lr'", "greater than 0, found -1")),
        (("--set", "lr=.nan"), ("setting 'lr'", "found nan")),
        (("--set", "alpha=.inf"), ("setting 'alpha'", "finite", "found inf")),
        (("--set", "participation=1.5"), ("setting 'participation'", "less than or equal to 1, found 1.5")),
        (("--set", "rounds=many"), ("setting 'rounds'", "valid integer", "found 'many'")),
        (("--set", "select=best"), ("setting 'select'", "'mean', 'auc', 'gauc' or 'logloss', found 'best'")),
        (("--set", "round=3"), ("unknown setting 'round'; did you mean 'rounds'?",)),
        (("--set", "rounds"), ("--set 'rounds': expected key=value", "To fix it: for instance --set lr=0.01")),
        (("--set", "groups=[a"), ("--set 'groups=[a': the value is not readable",)),
        (("--set", "seed=1"), ("--set seed: is not a setting", "To fix it: use the option --seed")),
        (("--set", "groups=[town]"), ("'town'",)),
        (("--set", "gate_hidden=[8]"), ("setting 'gate_hidden'", "(2), found [8]")),
        (("--device", "nonsense"), ("device 'nonsense' cannot be used here", "To fix it: use --device cpu")),
        (("--device", "meta"), ("device 'meta' cannot be used here", "To fix it: use --device cpu")),
        (("--seed", "one"), ("Invalid value for '--seed'", "valid integer")),
        (("--rounds", 3), ("No such option", "--rounds")),
    ],
)
def test_faults_of_an_adaptation(
    world: World, tmp_path: Path, options: tuple[object, ...], names: tuple[str, ...]
) -> None:
    refused("adapt", world.foundation, world.dataset, "--out", tmp_path / "run", *options, names=names)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--set", "epochs=0"), ("pretraining: setting 'epochs'", "greater than or equal to 1, found 0")),
        (("--set", "epoch=1"), ("unknown setting 'epoch'; did you mean 'epochs'?",)),
        (("--set", "out=x"), ("--set out: is not a setting",)),
        (("--device", "nonsense"), ("device 'nonsense' cannot be used here", "To fix it: use --device cpu")),
    ],
)
def test_faults_of_pretraining(
    world: World, tmp_path: Path, options: tuple[object, ...], names: tuple[str, ...]
) -> None:
    refused("pretrain", world.dataset, "--out", tmp_path / "foundation", *options, names=names)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("nope",), ("No such command 'nope'",)),
        (("data", "nope"), ("No such command 'nope'",)),
        (("data", "synth", "OUT", "--users", 3), ("users is 3, expected 10 to", "To fix it")),
        (("data", "download", "netflix", "OUT"), ("'netflix' cannot be downloaded", "kuairand-pure")),
        (("data", "download", "movielens-1m", "OUT"), ("'movielens-1m' cannot be downloaded", "licence")),
        (("data", "describe", "OUT"), ("OUT: expected a dataset folder, but it is not a folder", "fedpa prepare")),
        (
            ("prepare", "kuairand", "--raw", "OUT", "--out", "x"),
            ("unknown source 'kuairand'", "did you mean 'kuairand-"),
        ),
        (("prepare", "kuairand-pure", "--raw", "OUT", "--out", "x"), ("OUT",)),
        (("prepare", "kuairand-pure", "--raw", "OUT"), ("Missing option '--out'",)),
        (("pretrain", "OUT", "--out", "x"), ("expected a dataset folder", "fedpa prepare")),
        (("adapt", "OUT", "DATASET", "--out", "x"), ("OUT: expected a foundation folder", "fedpa pretrain")),
        (("adapt", "DATASET", "DATASET", "--out", "x"), ("expected a foundation, found 'dataset'", "fedpa pretrain")),
        (("evaluate", "OUT"), ("OUT: expected a run folder", "fedpa adapt")),
        (("evaluate", "RUN", "--part", "exam"), ("unknown part 'exam', expected one of train, val, test",)),
        (("evaluate", "RUN", "--part", "unbiased"), ("has no rows of part 'unbiased'",)),
        (("evaluate", "RUN", "--top-k", 0), ("k",)),
        (("recommend", "RUN", "--user", "nobody"), ("no user 'nobody'", "their ids are whole numbers")),
        (("recommend", "RUN", "--user", 10**30), ("no user",)),
        (("recommend", "RUN", "--user", 0, "-k", 0), ("k must be at least 1, found 0",)),
        (("recommend", "RUN"), ("Missing option '--user'",)),
        (("forget", "RUN", "--user", "nobody"), ("no user 'nobody'",)),
        (("import-reference", "x.pth", "--dataset", "DATASET", "--out", "x"), ("causal features", "--features ref")),
        (("demo", "--dir", "RUN"), ("exists and is not an earlier demo", "To fix it: choose another folder")),
    ],
)
def test_faults_of_arguments(
    world: World, tmp_path: Path, arguments: tuple[object, ...], names: tuple[str, ...]
) -> None:
    places = {"OUT": tmp_path / "OUT", "DATASET": world.dataset, "RUN": world.run, "x": tmp_path / "x"}
    refused(*(places.get(str(each), each) for each in arguments), names=names)
    assert not [*tmp_path.iterdir()]


def test_open_users_have_nothing_to_forget(world: World) -> None:
    dataset = load_dataset(world.dataset)
    user = dataset.user_ids[int((dataset.side == OPEN).argmax())]
    refused("forget", world.run, "--user", user, names=(f"user '{user}' is not a private user",))


@pytest.fixture
def copy(world: World, tmp_path: Path) -> World:
    """The world's folders, to be damaged; the run is told of its copies."""
    copied = World(*(tmp_path / name for name in ("raw", "dataset", "foundation", "run")))
    for name in ("dataset", "foundation", "run"):
        shutil.copytree(getattr(world, name), getattr(copied, name))
    return copied


def use(copy: World) -> tuple[tuple[object, ...], ...]:
    """Command lines that between them read every file."""
    moved = ("--dataset", copy.dataset, "--foundation", copy.foundation)
    return (
        ("adapt", copy.foundation, copy.dataset, "--out", copy.raw, "--set", "rounds=1"),
        ("evaluate", copy.run, "--no-predictions", *moved),
        ("recommend", copy.run, "--user", 0, *moved),
    )


def set_key(name: str, key: str, value: object) -> Callable[[World], None]:
    def change(copy: World) -> None:
        path = copy.dataset.parent / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def damage(name: str, keep: int | None, at: int | None = None) -> Callable[[World], None]:
    def change(copy: World) -> None:
        path = copy.dataset.parent / name
        content = bytearray(path.read_bytes())
        if at is not None:
            content[at] ^= 128
        path.write_bytes(content[:keep])

    return change


@pytest.mark.parametrize(
    ("change", "verbs", "names"),
    [
        (
            set_key("dataset/manifest.json", "format_version", 2),
            {"adapt", "evaluate", "recommend"},
            ("dataset/manifest.json: written in format version 2, this fedpa reads version 1", "fedpa prepare"),
        ),
        (
            set_key("foundation/manifest.json", "format_version", "0"),
            {"adapt", "evaluate", "recommend"},
            ("foundation/manifest.json: written in format version '0'", "fedpa pretrain"),
        ),
        (
            set_key("run/summary.json", "format_version", 2),
            {"evaluate", "recommend"},
            ("run/summary.json: written in format version 2", "fedpa adapt"),
        ),
        (set_key("dataset/manifest.json", "note", 1), {"evaluate"}, ("is not the data set of this run (hash",)),
        (
            damage("dataset/manifest.json", 100),
            {"adapt", "evaluate"},
            ("dataset/manifest.json: not readable as JSON", "fedpa prepare"),
        ),
        (
            damage("dataset/interactions.parquet", 500),
            {"adapt", "evaluate"},
            ("interactions.parquet: has 500 bytes, the manifest says", "fedpa prepare"),
        ),
        (
            lambda copy: (copy.dataset / "items.parquet").unlink(),
            {"adapt", "recommend"},
            ("items.parquet: missing from the data set", "fedpa prepare"),
        ),
        (
            damage("foundation/foundation.safetensors", 300),
            {"adapt", "evaluate"},
            ("foundation.safetensors: cannot be read", "To fix it: pretrain the foundation again"),
        ),
        (
            damage("foundation/foundation.safetensors", None, at=-1),
            {"adapt", "evaluate"},
            ("foundation.safetensors: differs from the manifest's hash", "To fix it: pretrain"),
        ),
        (
            damage("run/shared.safetensors", 60),
            {"evaluate", "recommend"},
            ("shared.safetensors: cannot be read", "To fix it: adapt again"),
        ),
        (
            damage("run/personal.safetensors", 2000),
            {"evaluate", "recommend"},
            ("personal.safetensors: cut short", "To fix it: adapt again"),
        ),
        (
            damage("run/personal.safetensors", 5),
            {"evaluate", "recommend"},
            ("personal.safetensors: cut short", "To fix it: adapt again"),
        ),
        (
            damage("run/personal.safetensors", None, at=12),
            {"evaluate", "recommend"},
            ("personal.safetensors: its header is not that of personal parameters", "To fix it: adapt again"),
        ),
        (
            lambda copy: (copy.run / "personal.safetensors").unlink(),
            {"evaluate", "recommend"},
            ("personal.safetensors: cannot be opened", "To fix it: adapt again"),
        ),
        (
            lambda copy: (copy.run / "config.yaml").write_text("- 1\n"),
            {"evaluate", "recommend"},
            ("config.yaml: lacks method, seed", "To fix it: adapt again"),
        ),
        (
            lambda copy: (copy.run / "config.yaml").unlink(),
            {"evaluate", "recommend"},
            ("config.yaml: cannot be read", "To fix it: adapt again"),
        ),
    ],
)
def test_folders_that_are_damaged_or_of_another_version(
    copy: World, change: Callable[[World], None], verbs: set[str], names: tuple[str, ...]
) -> None:
    change(copy)
    for arguments in use(copy):
        if arguments[0] in verbs:
            refused(*arguments, names=names)
    assert not copy.raw.exists()


def test_a_run_refuses_another_foundation(copy: World) -> None:
    other = copy.raw / "other"
    fedpa("pretrain", copy.dataset, "--out", other, "--set", "epochs=1", "--seed", 8)
    names = ("run: its adapters belong to foundation", "To fix it: give the foundation that the run was made with")
    refused("evaluate", copy.run, "--foundation", other, names=names)
    refused("recommend", copy.run, "--user", 0, "--foundation", other, names=names)


def test_a_foundation_refuses_another_encoding(world: World, raw: Path, tmp_path: Path) -> None:
    fedpa("prepare", "tables", "--raw", raw, "--out", tmp_path / "dataset")
    names = ("features are encoded otherwise than the foundation's", "To fix it: use the data set")
    refused("adapt", world.foundation, tmp_path / "dataset", "--out", tmp_path / "run", names=names)
    assert not (tmp_path / "run").exists()


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_polars(*_: Any, **__: Any) -> None:
    raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")


@pytest.mark.parametrize("verb", ["synth", "prepare", "pretrain", "adapt", "store"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    adapt = ("adapt", world.foundation, world.dataset, "--out", out, *ROUNDS)
    commands: dict[str, tuple[tuple[object, ...], object, str, Callable[..., None]]] = {
        "synth": (("data", "synth", out, "--users", 20, "--items", 10), pl.DataFrame, "write_csv", full),
        "prepare": (
            ("prepare", "kuairand-pure", "--raw", world.raw, "--out", out),
            pl.DataFrame,
            "write_parquet",
            full_in_polars,
        ),
        "pretrain": (
            ("pretrain", world.dataset, "--out", out, "--set", "epochs=1"),
            safetensors.torch,
            "save_file",
            full,
        ),
        "adapt": (adapt, generations, "write_file", full),
        "store": (adapt, os, "posix_fallocate", full),
    }
    arguments, place, name, writer = commands[verb]
    if overwrite:
        out.mkdir()
        (out / "mine").touch()
        arguments = (*arguments, "--overwrite")
    monkeypatch.setattr(place, name, writer)
    # A run is written beside its place, and the error names the file.
    what = rf"{out}\.unfinished(/\S+)?" if verb in ("adapt", "store") else f"{out}"
    text = refused(*arguments, names=("No space left on device", "free some space"))
    assert re.match(f"error: {what}: could not be written", text), text
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == (["out", "out/mine"] if overwrite else [])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_a_run_as_it_was(copy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = ("--dataset", copy.dataset, "--foundation", copy.foundation)
    user = int(load_dataset(copy.dataset).user_ids[int(load_run(copy.run).rows.users[0])])
    fedpa("evaluate", copy.run, *moved)
    before = contents(copy.run)
    names = ("could not be written", "No space left on device", "To fix it: free some space")
    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full_in_polars)
        refused("evaluate", copy.run, *moved, names=("predictions.parquet", *names))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        refused("forget", copy.run, "--user", user, *moved, names=("personal.safetensors", *names))
    assert contents(copy.run) == before


def test_ctrl_c_keeps_the_best_round_so_far(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Shard.round

    def interrupted(self: Shard, state: Any, number: int, downlink: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return train(self, state, number, downlink)

    monkeypatch.setattr(Shard, "round", interrupted)
    arguments = ("adapt", world.foundation, world.dataset, "--out", tmp_path / "run", "--set", "rounds=9", "--json")
    result = fedpa(*arguments, code=130)
    assert result.stderr == f"interrupted: {tmp_path / 'run'} holds the best round so far\n"
    summary = json.loads(result.stdout)
    assert (summary["interrupted"], summary["rounds"]) == (True, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    monkeypatch.undo()
    metrics = answer("evaluate", tmp_path / "run")["metrics"]
    assert metrics["auc"] == pytest.approx(summary["splits"]["test"]["auc"], abs=1e-4)  # of bins
    assert load_run(tmp_path / "run").rows.part.max() == Part.TEST


@pytest.mark.parametrize("verb", ["prepare", "pretrain"])
def test_ctrl_c_elsewhere_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl.DataFrame, "write_parquet", interrupted)
    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    commands = {
        "prepare": ("prepare", "kuairand-pure", "--raw", world.raw),
        "pretrain": ("pretrain", world.dataset, "--set", "epochs=1"),
    }
    text = refused(*commands[verb], "--out", tmp_path / "out", names=("interrupted",), code=130)
    assert text.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_reader_that_went_away_is_no_fault(world: World) -> None:
    command = [sys.executable, "-c", "from fedpa.cli import main; main()", "data", "describe", str(world.dataset)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
