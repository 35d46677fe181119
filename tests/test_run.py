"""A finished run: loading, refusing what does not fit, evaluating, cold users, forgetting."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from sklearn.metrics import roc_auc_score

from fedpa.adaptation import adapt
from fedpa.data.dataset import COLD, OPEN, PRIVATE, Dataset, Part
from fedpa.errors import ArtifactError, ConfigError, DataError
from fedpa.federation.device import node_generations
from fedpa.federation.rows import ShardRows
from fedpa.methods import FrozenFoundation
from fedpa.models.foundation import Foundation
from fedpa.recommend import catalogue_batch
from fedpa.run import Run, load_run
from fedpa.settings import Settings
from prepared import QUICK, Small, quick_run, small


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return quick_run(tmp_path_factory)


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    """A folder of the run that a test may damage."""
    shutil.copytree(run.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_loaded_run_is_the_one_that_was_returned(run: Run) -> None:
    loaded = load_run(run.path)
    assert (loaded.scores == run.scores).all()
    assert loaded.summary == run.summary
    assert loaded.history == run.history
    report, again = run.evaluate("test"), loaded.evaluate("test")
    assert report == again
    user = int(run.dataset.user_ids[int(run.rows.users[0])])
    assert loaded.recommend(user, 5) == run.recommend(user, 5)


def test_the_noted_paths_may_be_replaced(run: Run, made: Small, copy: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["dataset"]["path"] = config["foundation"]["path"] = str(tmp_path / "gone")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    given = load_run(copy, foundation=made.foundation, dataset=made.dataset)
    assert (given.scores == run.scores).all()
    with pytest.raises(ArtifactError, match="gone"):
        load_run(copy, foundation=made.foundation).scores  # noqa: B018
    with pytest.raises(ArtifactError, match="gone"):
        load_run(copy, dataset=made.dataset).scores  # noqa: B018


def test_another_foundation_is_refused(run: Run, made: Small) -> None:
    model = type(made.foundation.model).from_spec(made.foundation.model.spec())
    other = Foundation.of(model, made.foundation.features, {})
    with pytest.raises(
        ArtifactError, match=f"belong to foundation {made.foundation.hash[:12]}, found {other.hash[:12]}"
    ):
        load_run(run.path, foundation=other).evaluate("test")


def test_another_data_set_is_refused(run: Run, made: Small, tmp_path: Path) -> None:
    shutil.copytree(made.dataset.path, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["notes"] = ["another one"]
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    other = Dataset(tmp_path / "other")
    with pytest.raises(ArtifactError, match="is not the data set of this run"):
        load_run(run.path, dataset=other).evaluate("test")


def test_a_foundation_that_was_never_saved(made: Small, tmp_path: Path) -> None:
    unsaved = dataclasses.replace(made.foundation, path=None)
    found = adapt(unsaved, made.dataset, out=tmp_path / "run", **(QUICK | {"rounds": 1}))
    with pytest.raises(ArtifactError, match=r"never saved[\s\S]*foundation="):
        load_run(found.path).scores  # noqa: B018
    assert len(load_run(found.path, foundation=made.foundation).scores) == len(found.rows.row)


def test_a_swapped_file_is_refused(run: Run, copy: Path) -> None:
    named = safetensors.numpy.load_file(copy / "shared.safetensors")
    safetensors.numpy.save_file(named, copy / "shared.safetensors", {"foundation": "f" * 64})
    with pytest.raises(ArtifactError, match=r"shared\.safetensors: carries foundation ffffffffffff"):
        load_run(copy).scores  # noqa: B018
    del named["head.bias"]
    safetensors.numpy.save_file(named, copy / "shared.safetensors", {"foundation": run.config["foundation"]["hash"]})
    with pytest.raises(ArtifactError, match=r"head\.bias: expected \(1,\), found nothing"):
        load_run(copy).scores  # noqa: B018
    safetensors.numpy.save_file(named, copy / "shared.safetensors")
    with pytest.raises(ArtifactError, match=r"shared\.safetensors"):
        load_run(copy).scores  # noqa: B018


@pytest.mark.parametrize("name", ["shared.safetensors", "personal.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_damaged_files_are_refused(copy: Path, name: str, damage: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    if damage != "missing":
        (copy / name).write_bytes(content[: len(content) // 2] if damage == "short" else b"")
    with pytest.raises(ArtifactError, match=name):
        load_run(copy).scores  # noqa: B018


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", b"\xff\xfe"), ("config.yaml", b"a: [1"), ("summary.json", b"{")]
)
def test_unreadable_notes_are_refused(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        load_run(copy)


def test_a_folder_that_is_no_run(made: Small, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected a run"):
        load_run(tmp_path)
    with pytest.raises(ArtifactError, match="expected a run"):
        load_run(made.folder / "dataset")


def test_evaluating_a_part(run: Run) -> None:
    report = run.evaluate("test", bootstrap=20)
    here = run.rows.part == Part.TEST
    y, p = run.rows.labels.numpy()[here], run.scores[here]
    assert report["auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-9)
    assert report["rows"] == here.sum()
    assert report["users"] == len(np.unique(run.rows.user[here]))
    assert report["bootstrap"] is not None
    assert set(report["by_group"]) == set(run.dataset.group_sizes)
    for name, values in report["by_group"].items():
        vocabulary = {*map(str, run.dataset.manifest["groups"][name]["vocabulary"]), "unknown"}
        assert set(values) <= vocabulary
        assert sum(part["rows"] for part in values.values()) == report["rows"]
    assert sum(part["rows"] for part in report["by_history"].values()) == report["rows"]
    json.dumps(report, allow_nan=False)


def test_a_users_group_has_its_name(run: Run) -> None:
    key = "register_days_range"
    names = run._group_names(key, np.array([0, 1, -1]))
    vocabulary = run.dataset.manifest["groups"][key]["vocabulary"]
    assert names.tolist() == [str(vocabulary[0]), str(vocabulary[1]), "unknown"]
    raw = run.dataset.groups[key][run.rows.users]
    known = run.rows.groups[key].numpy()
    assert ((raw == 0) == (known == -1)).all()


def test_parts_that_are_none(run: Run) -> None:
    with pytest.raises(ConfigError, match="unknown part 'tset', expected one of train, val, test, unbiased, cold"):
        run.evaluate("tset")
    with pytest.raises(DataError, match="has no rows of part 'unbiased'"):
        run.evaluate("unbiased")


def test_yardsticks_stand_on_the_same_rows(run: Run) -> None:
    reports = run.yardsticks("test")
    assert list(reports) == ["two counters", "frozen foundation", "FedPA", "oracle"]
    assert len({report["rows"] for report in reports.values()}) == 1
    assert reports["FedPA"]["auc"] == run.evaluate("test")["auc"]
    assert reports["oracle"]["auc"] > reports["FedPA"]["auc"]
    assert reports["frozen foundation"]["worse_off_share"] == 0


def test_predictions(run: Run) -> None:
    table = run.predictions()
    assert table.columns == ["user", "item", "time", "split", "label", "score"]
    assert len(table) == len(run.rows.row)
    data, place = run.dataset, 37
    row = run.rows.row[place]
    assert table.row(place) == (
        data.user_ids[int(data.user[row])],
        data.item_ids[int(data.item[row])],
        data.time[row],
        Part(data.part[row]).name.lower(),
        data.label[row],
        run.scores[place],
    )
    by_user = dict(table.group_by("user").len().iter_rows())
    private = np.flatnonzero(data.side == PRIVATE)
    assert by_user == {data.user_ids[int(u)]: int((data.user == u).sum()) for u in private}


def test_cold_users_are_scored_on_the_same_rows(run: Run) -> None:
    found = run.evaluate("cold")
    assert list(found) == ["support_0", "support_1", "support_3", "support_5"]
    data = run.dataset
    expected = len(data.rows("cold_test"))
    assert {report["rows"] for report in found.values()} == {expected}
    assert {report["users"] for report in found.values()} == {len(np.unique(data.user[data.rows("cold_test")]))}
    assert len({report["logloss"] for report in found.values()}) == 4
    assert run.evaluate("cold") == found
    assert len(run.scores) == len(run.rows.row)


def test_rows_of_cold_users(run: Run) -> None:
    data = run.dataset
    kept = [ShardRows.cold(data, support, dtype=torch.float32, device=torch.device("cpu")) for support in (0, 1, 3, 5)]
    judged = [rows.row[rows.part == Part.COLD_TEST] for rows in kept]
    for support, rows, later in zip((0, 1, 3, 5), kept, judged, strict=True):
        assert (data.side[rows.users] == COLD).all()
        assert (later == judged[0]).all()
        assert rows.train.max(initial=0) <= support
        for local, user in enumerate(rows.users):
            own = data.rows("support", "cold_test")
            own = own[data.user[own] == user]
            first = own[data.part[own] == Part.SUPPORT][:support]
            begin = rows.begin[local]
            assert rows.row[begin : begin + rows.train[local]].tolist() == first.tolist()
            if len(own):
                shown = (rows.user == local) & (rows.part == Part.COLD_TEST)
                assert (rows.own_views[shown] == len(first)).all()
                assert (rows.own_clicks[shown] == data.label[first].sum()).all()


def test_without_support_a_cold_user_has_what_the_server_sends(run: Run) -> None:
    """One user by hand: its own start, shared and group parameters."""
    data = run.dataset
    rows = ShardRows.cold(data, 0, dtype=torch.float32, device=torch.device("cpu"))
    report = run._cold(0, 0)
    scores = np.zeros(len(rows.row), np.float32)
    for local, user in enumerate(rows.users):
        place = np.flatnonzero(rows.user == local)
        if not len(place):
            continue
        shard, numbers = run.recommender.shard, np.array([user])
        flat = shard.weights_of_newcomer(int(user), data, run.server.state)
        with torch.inference_mode():
            blocks, tables = shard.assembly.catalogue(flat, None, numbers, run.server.state)
            own = rows.batch(np.array([local]), torch.from_numpy(place)[None])
            logits, _ = run.model.forward(blocks, catalogue_batch(tables, numbers, own.items, own.context))
        scores[place] = logits[0].sigmoid().numpy()
    assert report["auc"] == pytest.approx(roc_auc_score(rows.labels.numpy(), scores), abs=1e-4)


def test_baselines_serve_cold_users_too(made: Small, tmp_path: Path) -> None:
    frozen = adapt(made.foundation, made.dataset, out=tmp_path / "run", method="foundation")
    found = frozen.evaluate("cold")
    rows = ShardRows.cold(made.dataset, 5, dtype=torch.float32, device=torch.device("cpu"))
    scores = FrozenFoundation(Settings()).scores(made.foundation, made.dataset, rows)
    here = rows.part == Part.COLD_TEST
    expected = roc_auc_score(rows.labels.numpy()[here], scores[here])
    assert found["support_5"]["auc"] == pytest.approx(expected, abs=1e-9)


def own_run(made: Small, folder: Path) -> Run:
    return adapt(made.foundation, made.dataset, out=folder / "run", foundation_path=made.foundation_path, **QUICK)


def kept_rounds(run: Run) -> dict[int, Any]:
    """What the devices kept after each round that can be gone back to; none of it is damaged."""
    generations = node_generations(run.path / "checkpoints" / "node-0")
    assert [*generations.good()] == generations.numbers()
    return {
        number: safetensors.numpy.load_file(generations.path(number) / "personal.safetensors")["personal"].copy()
        for number in generations.numbers()
    }


def test_forgetting(made: Small, tmp_path: Path) -> None:
    found = own_run(made, tmp_path)
    data, users = made.dataset, found.rows.users
    gone, kept = (data.user_ids[int(users[local])] for local in (3, 4))
    before, lists = found.scores.copy(), [found.recommend(user, 10) for user in (gone, kept)]
    stored = safetensors.numpy.load_file(found.path / "personal.safetensors")["personal"].copy()
    rounds = kept_rounds(found)
    report = found.forget(gone)
    assert report["erased"] == np.count_nonzero(stored[3]) > 100
    assert "averages" in report["cannot_undo"]
    for one in (found, load_run(found.path)):
        after = one.scores
        mine = found.rows.user == 3
        assert (after[~mine] == before[~mine]).all()
        assert (after[mine] != before[mine]).all()
        again = [one.recommend(user, 10) for user in (gone, kept)]
        assert again[1] == lists[1]
        assert again[0].scores != lists[0].scores  # type: ignore[union-attr]
        assert any("forgotten" in note for note in again[0].notes)  # type: ignore[union-attr]
    left = safetensors.numpy.load_file(found.path / "personal.safetensors")["personal"]
    assert not left[3].any()
    assert (np.delete(left, 3, 0) == np.delete(stored, 3, 0)).all()
    for number, values in kept_rounds(found).items():
        assert not values[3].any()
        assert (np.delete(values, 3, 0) == np.delete(rounds[number], 3, 0)).all()
    written = [values[3].tobytes() for values in (stored, *rounds.values()) if values[3].any()]
    assert len({*written}) > 1, "what the user had in another round is to be gone too"
    files = [path.read_bytes() for path in found.path.rglob("*") if path.is_file()]
    assert not any(mine in content for mine in written for content in files)
    assert load_run(found.path).summary["forgotten"] == 1
    assert found.forget(gone)["erased"] == 0
    assert sorted(path.name for path in found.path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "personal.safetensors",
        "shared.safetensors",
        "summary.json",
    ]


def test_who_cannot_be_forgotten(made: Small, tmp_path: Path) -> None:
    found = own_run(made, tmp_path)
    content = (found.path / "personal.safetensors").read_bytes()
    for side in (OPEN, COLD):
        user = made.dataset.user_ids[int(np.flatnonzero(made.dataset.side == side)[0])]
        with pytest.raises(DataError, match="is not a private user"):
            found.forget(user)
    with pytest.raises(DataError, match="no user 999999"):
        found.forget(999_999)
    assert (found.path / "personal.safetensors").read_bytes() == content
    assert "forgotten" not in found.summary


def test_many_users_at_once(run: Run) -> None:
    users: list[Any] = [run.dataset.user_ids[int(u)] for u in run.rows.users[:3]]
    found = run.recommend(users, 4)
    assert isinstance(found, list)
    assert found == [run.recommend(user, 4) for user in users]
