"""Wrapped modules through the whole of it: adapt, load, evaluate, recommend, forget, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpa
from command import answer
from command import fedpa as command
from fedpa.data import kuairand
from fedpa.data.dataset import Dataset, Part
from fedpa.data.prepare import prepare
from fedpa.errors import ArtifactError, ConfigError
from fedpa.models.wrap.rows import Rows, RowSource
from fedpa.models.wrap.wrapped import Wrapped
from fedpa.run import Run, load_run
from models.wrap.modules import DCN, TextRanker, made
from prepared import Small, small

QUICK: dict[str, Any] = {"rounds": 2, "patience": 0, "lr": 0.1}


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def text(on: Small) -> Wrapped:
    return fedpa.wrap(made(TextRanker, on.dataset, layers=2), ["layer.1.*.query", "score"], train=["head"], rank=2)


@pytest.fixture(scope="module")
def run(on: Small, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("wrapped")
    return fedpa.adapt(text(on), on.dataset, out=folder / "run", **QUICK)


def test_a_run_is_loaded_with_the_module_wrapped_again(on: Small, run: Run) -> None:
    assert run.summary["best_round"] > 0
    assert not run.config["settings"]["wide"]
    again = load_run(run.path, foundation=text(on))
    np.testing.assert_array_equal(again.scores, run.scores)
    assert again.evaluate("test") == run.evaluate("test")
    with pytest.raises(ArtifactError, match="the foundation was never saved"):
        load_run(run.path).scores  # noqa: B018
    other = fedpa.wrap(made(TextRanker, on.dataset, layers=2, seed=1), ["layer.1.*.query", "score"], train=["head"])
    with pytest.raises(ArtifactError, match=f"found {other.hash[:12]}"):
        load_run(run.path, foundation=other).scores  # noqa: B018


def test_its_yardstick_is_the_module_alone(on: Small, run: Run) -> None:
    found = run.yardstick_scores("test")
    rows = run.rows
    here = np.flatnonzero(rows.part == Part.TEST)
    source = RowSource(on.dataset, torch.device("cpu"))
    with torch.no_grad():
        expected = text(on).model(source.of_shard(rows, here)).sigmoid()
    np.testing.assert_allclose(found["frozen foundation"], expected.numpy(), rtol=0, atol=1e-6)
    assert not np.allclose(found["FedPA"], expected.numpy(), atol=1e-3)


def test_it_recommends_with_the_weight_of_every_branch(on: Small, run: Run) -> None:
    user = on.dataset.user_ids[int(run.rows.users[3])]
    found = run.recommender.recommend(user, 5)
    assert len(found.items) == 5
    assert found.scores == sorted(found.scores, reverse=True)
    assert set(found.gates) == {"foundation", "user", *on.dataset.group_sizes}
    assert np.allclose(np.sum([*found.gates.values()], 0), 1, atol=1e-5)
    ranking = run.evaluate("test", top_k=5, ranking_users=20)["ranking"]
    assert ranking["catalogue"] == on.dataset.n_items
    assert set(run.evaluate("cold")) == {"support_0", "support_1", "support_3", "support_5"}


def test_a_catalogue_in_pieces_has_the_same_scores(on: Small, run: Run) -> None:
    user = on.dataset.user_ids[int(run.rows.users[3])]
    expected = run.recommender.recommend(user, 30)
    module = made(TextRanker, on.dataset, layers=2)
    settings: dict[str, Any] = {"train": ["head"], "rank": 2, "rows_per_chunk": 32}
    pieces = load_run(run.path, foundation=fedpa.wrap(module, ["layer.1.*.query", "score"], **settings))
    found = pieces.recommender.recommend(user, 30)
    assert found.items == expected.items
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def labelled(on: Small, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The same users with a second label."""
    source = kuairand.load(on.folder / "raw", labels=("click", "long_view"))
    return prepare(source, tmp_path_factory.mktemp("labelled") / "dataset")


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss of one's own over both labels."""
    return ((logits.sigmoid() - labels) ** 2 * torch.tensor([2.0, 1.0])).sum(-1)


@pytest.mark.parametrize("loss", [None, squared])
@pytest.mark.parametrize("method", ["fedpa", "fedit"])
def test_two_labels(labelled: Dataset, tmp_path: Path, loss: Any, method: str) -> None:
    """Both are learnt; the first is scored, with a bias of the user's for each."""
    labels = ("click", "long_view")
    assert labelled.label_names == labels
    module = made(DCN, labelled, labels=2)
    wrapped = fedpa.wrap(module, ["cross.*"], train=["head"], labels=labels, loss=loss)
    settings: dict[str, Any] = {"personal_bias": True, "item_bias": True, **QUICK}
    run = fedpa.adapt(wrapped, labelled, out=tmp_path / "run", method=method, **settings)
    assert run.history[2]["train_loss"] < run.history[1]["train_loss"]
    rows = run.rows
    assert rows.every_label is not None
    assert torch.equal(rows.every_label[:, 0], rows.labels)
    expected = labelled.labels["long_view"][rows.row]
    np.testing.assert_array_equal(rows.every_label[:, 1].numpy(), expected)
    assert run.server.named()["item_bias"].shape[-1] == 2
    assert run.server.named()["head.head.weight"][0].ne(module.get_parameter("head.weight")).any(1).all()
    assert run.model.layout.places["user_bias"].size == 2
    assert run.scores.shape == (len(rows.row),)
    assert len(run.recommender.recommend(labelled.user_ids[int(rows.users[0])], 3).items) == 3


@pytest.mark.parametrize("method", ["fedsa-lora", "ffa-lora", "personal-lora", "local-only", "head-only", "biases"])
def test_other_adapter_methods(on: Small, tmp_path: Path, method: str) -> None:
    wrapped = fedpa.wrap(made(DCN, on.dataset), ["cross.*", "deep.*"], train=["head"])
    run = fedpa.adapt(wrapped, on.dataset, out=tmp_path / "run", method=method, **(QUICK | {"rounds": 1}))
    assert run.history[1]["val"]["auc"] != run.history[0]["val"]["auc"]


def test_a_module_whose_rows_meet_runs_in_the_loop(on: Small, tmp_path: Path) -> None:
    class Centred(DCN):
        def forward(self, rows: Any) -> Tensor:
            found = super().forward(rows)
            return found - found.mean()

    wrapped = fedpa.wrap(made(Centred, on.dataset), ["cross.*"], engine="loop")
    settings = QUICK | {"rounds": 1, "item_bias": False, "personal_bias": False}
    run = fedpa.adapt(wrapped, on.dataset, out=tmp_path / "run", **settings)
    logits = torch.logit(torch.from_numpy(run.scores).double())
    means = [float(logits[run.rows.user == user].mean()) for user in range(5)]
    np.testing.assert_allclose(means, 0, atol=1e-5)


class Attentive(DCN):
    """Also reads the user's past: the mean of the features of what was clicked, and how long ago the last row was."""

    def __init__(self, data: Dataset) -> None:
        super().__init__(data)
        self.register_buffer("codes", torch.from_numpy(data.item_codes).long())
        self.past = nn.Linear(data.item_codes.shape[1] + 2, 1)

    def forward(self, rows: Rows) -> Tensor:
        past = rows.history
        assert past is not None
        clicked = (past.clicks & past.mask).float()[..., None]
        liked = (self.get_buffer("codes")[past.items] * clicked).sum(1) / (1 + clicked.sum(1))
        ago = torch.log1p(past.gaps[:, -1:].double()).float() / 20
        known = torch.cat([liked / 100, ago, past.mask.float().mean(1, keepdim=True)], 1)
        found: Tensor = super().forward(rows) + self.past(known)
        return found


def test_a_module_that_reads_the_past(on: Small, tmp_path: Path) -> None:
    """The past of a row is what lies before it, or before the cut; the same module scores rows and the catalogue."""

    def again() -> Wrapped:
        return fedpa.wrap(made(Attentive, on.dataset), ["cross.*", "past"], history=7)

    run = fedpa.adapt(again(), on.dataset, out=tmp_path / "run", **QUICK)
    loaded = load_run(run.path, foundation=again())
    np.testing.assert_array_equal(loaded.scores, run.scores)
    rows, data, past = run.rows, on.dataset, on.dataset.past
    where = np.arange(0, len(rows.row), 37)
    found = again().row_source(data).of_shard(rows, where).history
    assert found is not None
    for place, row in enumerate(where):
        number, views = int(rows.users[rows.user[row]]), int(rows.own_views[row])
        mine = slice(past.starts[number], past.starts[number] + views)
        real = min(7, views)
        assert int(found.mask[place].sum()) == real
        assert found.items[place].tolist() == [0] * (7 - real) + past.item[mine][views - real :].tolist()
        assert found.clicks[place].tolist() == [False] * (7 - real) + past.click[mine][views - real :].tolist()
        gaps = (rows.time[row] - past.time[mine][views - real :]).tolist()
        assert found.gaps[place].tolist() == [0] * (7 - real) + gaps
        assert min(gaps, default=1) > 0
    assert len(run.recommender.recommend(data.user_ids[int(rows.users[0])], 3).items) == 3
    assert run.evaluate("test", top_k=5, ranking_users=10)["ranking"]["catalogue"] == data.n_items


FILE = """
import sys
sys.path[:0] = {path!r}
import fedpa
from models.wrap.modules import DCN, made
from fedpa import load_dataset

def build():
    return fedpa.wrap(made(DCN, load_dataset({dataset!r})), ["cross.*"], train=["head"])

def wrong():
    return 3

def failing():
    raise ValueError("not today")
"""


@pytest.fixture
def file(on: Small, tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(path=[str(Path(__file__).parents[2])], dataset=str(on.dataset.path)))
    return path


def test_the_command_line(on: Small, file: Path, tmp_path: Path) -> None:
    rounds = ("--set", "rounds=1", "--set", "patience=0")
    made_ = answer("adapt", f"{file}:build", on.dataset.path, "--out", tmp_path / "run", *rounds)
    assert made_["best_round"] in (0, 1)
    config = load_run(tmp_path / "run").config
    assert config["foundation"]["path"] == f"{file.resolve()}:build"
    report = answer("evaluate", tmp_path / "run", "--no-predictions")
    assert set(report["yardsticks"]) >= {"two counters", "frozen foundation", "FedPA"}
    user = on.dataset.user_ids[int(load_run(tmp_path / "run").rows.users[0])]
    assert len(answer("recommend", tmp_path / "run", "--user", user, "-k", 3)["items"]) == 3
    moved = file.rename(file.with_name("moved.py"))
    assert "no such file" in command("evaluate", tmp_path / "run", code=2).stderr
    answer("evaluate", tmp_path / "run", "--no-predictions", "--foundation", f"{moved}:build")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r"wrong\(\) returned int, expected what fedpa\.wrap returns"),
        ("failing", r"failing\(\) failed \(ValueError: not today\)"),
        ("absent", "has no function absent"),
    ],
)
def test_a_file_without_a_wrapped_module_is_an_error(file: Path, name: str, message: str) -> None:
    from fedpa.models.wrap.source import open_foundation

    with pytest.raises(ConfigError, match=message):
        open_foundation(f"{file}:{name}")
