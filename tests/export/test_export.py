"""Exported folders: what is in them, who is left out, and what cannot be exported."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from command import answer, fedpa
from fedpa import export
from fedpa.adaptation import adapt
from fedpa.data.dataset import OPEN, Part
from fedpa.errors import ConfigError, DataError
from fedpa.evaluation.metrics import log_loss
from fedpa.exporting.exportable import file_stem
from fedpa.exporting.own_rows import write_own_rows
from fedpa.methods import FrozenFoundation
from fedpa.run import Run
from fedpa.settings import Settings
from prepared import QUICK, Small, quick_run, small
from train_on_device import stem


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return quick_run(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("devices") / "out"
    export(run, out)
    return out


def test_an_adapter_is_small_and_says_what_it_belongs_to(run: Run, folder: Path) -> None:
    users = run.dataset.user_ids.gather(run.rows.users).to_list()
    assert (
        len([*(folder / "adapters").glob("*.json")])
        == len([*(folder / "adapters").glob("*.safetensors")])
        == len(users)
    )
    card = json.loads((folder / "adapters" / f"{users[0]}.json").read_text())
    assert run.foundation is not None
    assert card["user"] == users[0]
    assert card["foundation"] == run.foundation.hash
    assert card["rank"] == 4
    assert card["targets"] == ["layers.0", "layers.1"]
    assert {*card["groups"]} == {*run.dataset.group_sizes}
    assert card["adapter"] is True
    file = folder / "adapters" / f"{users[0]}.safetensors"
    assert file.stat().st_size < 16_384
    with safetensors.safe_open(file, "np") as opened:
        assert opened.metadata() == {"foundation": run.foundation.hash}


def test_a_users_file_has_what_is_personal_and_no_more(run: Run, folder: Path) -> None:
    user = run.dataset.user_ids[int(run.rows.users[3])]
    found = load_file(folder / "adapters" / f"{user}.safetensors")
    personal = {name for name, scope in run.model.layout.scopes.items() if scope.kind == "personal"}
    assert {*found} == personal
    weights = run.recommender.shard.weights_of(np.array([3]), run.server.state)[0]
    for name, value in found.items():
        span = run.model.layout.places[name]
        assert np.array_equal(value.ravel(), weights[span.begin : span.end].numpy())


def test_shared_parameters_are_written_once(run: Run, folder: Path) -> None:
    found = safetensors.torch.load_file(folder / "shared.safetensors")
    for name, value in run.server.named().items():
        assert torch.equal(found[name], value)
    assert {*run.model.layout.scopes} - {*found} == {"user_embedding"}


def test_the_graph_has_the_adapter_as_inputs_and_nothing_of_any_user(run: Run, folder: Path) -> None:
    graph = onnx.load(folder / "foundation.onnx").graph
    inputs = {each.name for each in graph.input}
    assert inputs - {"dense"} == {*run.model.layout.scopes, "item_codes", "context_codes"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {*manifest["inputs"]} == inputs
    assert not inputs & {each.name for each in graph.initializer}
    assert [each.name for each in graph.output] == ["score"]


def test_equal_runs_give_equal_bytes(run: Run, folder: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "again")
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(folder)).read_bytes(), file


def test_adapters_that_lose_on_validation_rows_are_left_out_and_counted(run: Run, tmp_path: Path) -> None:
    report = export(run, tmp_path / "better", only_if_better=True)
    rows, labels = run.rows, run.rows.labels.numpy()
    plain = FrozenFoundation(Settings()).scores(run.foundation, run.dataset, rows)
    loses, without = set(), 0
    for local, number in enumerate(rows.users):
        own = (rows.user == local) & (rows.part == Part.VAL)
        adapted, frozen = log_loss(labels[own], run.scores[own]), log_loss(labels[own], plain[own])
        without += adapted is None
        if adapted is not None and frozen is not None and adapted > frozen:
            loses.add(str(run.dataset.user_ids[int(number)]))
    folder = tmp_path / "better" / "adapters"
    cards = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    assert len(cards) == report["users"] == len(rows.users)
    assert {name for name, card in cards.items() if not card["adapter"]} == loses
    assert {file.stem for file in folder.glob("*.safetensors")} == {*cards} - loses
    assert 0 < report["left_out"] == len(loses) < len(cards)
    assert report["adapters"] == len(cards) - len(loses)
    assert report["without_validation_rows"] == without


def test_some_users(run: Run, tmp_path: Path) -> None:
    users = run.dataset.user_ids.gather(run.rows.users[[2, 5, 2]]).to_list()
    report = export(run, tmp_path / "two", users=users, rows=True)
    assert report["users"] == report["adapters"] == 2
    assert {file.stem for file in (tmp_path / "two" / "rows").iterdir()} == {str(user) for user in users}


def test_only_private_users_have_adapters(run: Run, tmp_path: Path) -> None:
    opened = run.dataset.user_ids[int(np.flatnonzero(run.dataset.side == OPEN)[0])]
    with pytest.raises(DataError, match=f"user {opened} is not a private user"):
        export(run, tmp_path / "open", users=[opened])
    with pytest.raises(DataError, match="no user 'nobody'"):
        export(run, tmp_path / "nobody", users=["nobody"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("user", ["../../x", "", ".", "a/b", "Ann", "ann", "con.txt", "é", "x" * 300, "a b", -7, 42])
def test_a_file_name_is_safe_and_the_examples_agree_on_it(user: int | str) -> None:
    found = file_stem(user)
    assert found == stem(str(user))
    assert len(found) <= 64
    assert {*found} <= {*"0123456789abcdefghijklmnopqrstuvwxyz_-."}
    assert found.strip(".") == found != ""


def test_names_of_files_differ_even_where_case_does_not_count() -> None:
    users = ["ann", "Ann", "ANN", "a.b", "a/b", "A.B"]
    assert len({file_stem(user).lower() for user in users}) == len(users)


@pytest.mark.parametrize(
    ("method", "reason"),
    [("two-counters", "it has no adapters"), ("fedmf", "does not adapt the backbone"), ("fedrep", "does not adapt")],
)
def test_what_adapts_no_backbone_is_refused(made: Small, tmp_path: Path, method: str, reason: str) -> None:
    other = adapt(made.foundation, made.dataset, out=tmp_path / "run", method=method, rounds=1)
    with pytest.raises(ConfigError, match=f"method {method} cannot be exported: .*{reason}"):
        export(other, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_table_of_ones_own_is_refused(made: Small, tmp_path: Path) -> None:
    settings = {**QUICK, "item_bias": True}
    other = adapt(made.foundation, made.dataset, out=tmp_path / "run", method="local-only", **settings)
    with pytest.raises(ConfigError, match="table 'item_bias' is personal, expected shared"):
        export(other, tmp_path / "out")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("    def loss(self, *given): return super().loss(*given)", "a local step of its own (loss)"),
        ("    forgets_personal = True", "a local step of its own (forgets_personal)"),
        ("    def scope(self, name): return KEPT if 'head' in name else super().scope(name)", "the scope shared, kept"),
    ],
)
def test_a_method_of_ones_own_that_devices_cannot_follow_is_refused(
    made: Small, tmp_path: Path, body: str, reason: str
) -> None:
    lines = ["from fedpa.federation.parameters import Scope", "from fedpa.methods import FedPA"]
    lines.append("KEPT = Scope('shared', keeps=True)")
    (tmp_path / "own.py").write_text("\n".join([*lines, "class Own(FedPA):", "    name = 'own'", body, ""]))
    method = f"{tmp_path / 'own.py'}:Own"
    other = adapt(made.foundation, made.dataset, out=tmp_path / "run", method=method, rounds=0, groups=())
    with pytest.raises(ConfigError, match=re.escape(reason)):
        export(other, tmp_path / "out")


def test_rows_that_nobody_was_shown_are_not_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.dataset.manifest["files"], "counted.parquet", {})
    with pytest.raises(ConfigError, match="has drawn rows that nobody was shown"):
        write_own_rows(tmp_path / "rows", run, np.array([0]))


def test_without_onnx_the_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "fedpa.exporting.graph", raising=False)
    monkeypatch.delattr("fedpa.exporting.graph", raising=False)
    with pytest.raises(ConfigError, match=r"needs ONNX.*\n.*fedpa\[export\]"):
        export(run, tmp_path / "out")


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    user = run.dataset.user_ids[int(run.rows.users[0])]
    out = tmp_path / "out"
    report: dict[str, Any] = answer("export", run.path, "--user", user, "--rows", "--out", out)
    assert report["users"] == 1
    assert report["bytes"]["foundation.onnx"] == (out / "foundation.onnx").stat().st_size
    assert "already exists" in fedpa("export", run.path, "--all-users", "--out", out, code=2).stderr
    assert answer("export", run.path, "--all-users", "--out", out, "--overwrite")["users"] == len(run.rows.users)
    assert "expected one of them" in fedpa("export", run.path, "--out", tmp_path / "x", code=2).stderr
    both = ("--all-users", "--user", user, "--out", tmp_path / "x")
    assert "expected one of them" in fedpa("export", run.path, *both, code=2).stderr
