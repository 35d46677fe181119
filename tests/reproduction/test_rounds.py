from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch

from fedpa.errors import ConfigError, FedpaError
from fedpa.evaluation.leave_one_out import Places
from fedpa.federation.rows import ShardRows
from fedpa.federation.shard import Shard
from fedpa.methods import FederatedMethod, find_method
from fedpa.reproduction import rounds as module
from fedpa.reproduction.negatives import PROTOCOLS, training_rows
from fedpa.reproduction.ratings import Ratings, read_ratings
from fedpa.reproduction.rounds import Line, Task, drawn_places, run_rounds, whole_catalogue
from reproduction.files import write_files

METHODS = ("fedmf", "fedncf", "fedrecon", "pfedrec")
Ints = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Ratings:
    return read_ratings("movielens-1m", write_files(tmp_path_factory.mktemp("raw"), "1m"))


def configured(name: str, **settings: Any) -> FederatedMethod:
    return cast(FederatedMethod, find_method(name).configured("published", settings))


def ignore(_: Line) -> None:
    pass


def by_item(items: int) -> Callable[[Ints, Ints], npt.NDArray[np.float64]]:
    """Lower numbers score higher; items 12 and 13 score the same."""
    scores = -np.arange(items, dtype=float)
    scores[13] = scores[12]
    return lambda _, wanted: scores[wanted]


def test_places_by_hand() -> None:
    """Two users and 20 items; lower numbers score higher, and of the first user's 12 and 13 none."""
    own = {0: [13, 4, 0, 1], 1: [5, 19, 7, 2]}
    rows = [(user, item, -place) for user, items in own.items() for place, item in enumerate(items)]
    rows += [(2, item, item) for item in range(20) if item not in {13, 4, 0, 1, 5, 19, 7, 2}]
    ratings = Ratings.of("some", pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row"))
    validation = np.array([[2, 3, 5], [0, 1, 3], [0, 1, 2]])
    test = np.array([[12, 3, 15], [4, 6, 8], [0, 1, 2]])
    task = replace(
        Task.drawn(ratings, "after-split", 0, sampled=3), validation_negatives=validation, test_negatives=test
    )
    val_places, test_places = drawn_places(by_item(20), task)
    # Validation item 4 is behind 2 and 3; 19 behind all.
    assert val_places.above[:2].tolist() == [2, 3]
    # Test item 13 is behind 3 and ties with 12; 5 is behind 4.
    assert test_places.above[:2].tolist() == [1, 1]
    assert test_places.tied[:2].tolist() == [1, 0]
    assert test_places.hr(2)[:2].tolist() == [0.5, 1.0]
    assert test_places.ndcg(2)[:2] == pytest.approx([1 / np.log2(3) / 2, 1 / np.log2(3)])
    # Without the user's own 4, 0 and 1, item 13 is behind 2, 3, 5 to 11; without 2, item 5 behind 0, 1, 3 and 4.
    whole = whole_catalogue(by_item(20), ratings)
    assert whole.above[:2].tolist() == [9, 4]
    assert whole.tied[:2].tolist() == [1, 0]
    assert whole.candidates[:2].tolist() == [17, 17]
    assert whole.hr(10)[:2].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("name", METHODS)
def test_what_devices_keep_is_carried_from_round_to_round(name: str, ratings: Ratings, tmp_path: Path) -> None:
    """With negatives drawn once, the same as one shard whose store goes through all rounds."""
    task = Task.drawn(ratings, "after-split", 0)
    method = configured(name, rounds=3, batch_size=32)
    outcome = run_rounds(method, task, tmp_path, redraw=False, advance=ignore)
    assert [line.round for line in outcome.lines] == [1, 2, 3]

    data = training_rows(ratings, task.pool, seed=0, round_number=1)
    rows = ShardRows.of(data, dtype=torch.float32, device=torch.device("cpu"))
    model = method.model(None, data, 0, torch.device("cpu"))
    store = Shard.new_store(model, rows, method.settings, tmp_path / "plain")
    shard = Shard(model, rows, method.settings, store, seed=0, rule=method)
    server = method.server(model.layout)
    users = np.arange(ratings.n_users)
    for line in outcome.lines:
        server.step(shard.round(server.state, line.round))
        weights = shard.weights_of(users, server.state)
        with torch.inference_mode():
            blocks, _ = shard.assembly.catalogue(weights, users, rows.users, server.state)
            items = torch.arange(ratings.n_items).expand(len(users), -1)
            slots = {table.name: items[..., None] for table in model.layout.tables}
            batch = replace(rows.batch(users, torch.zeros(len(users), 1, dtype=torch.int64)), items=items, slots=slots)
            scores = model.forward(blocks, batch)[0].numpy()

        def score(users: Ints, items: Ints, scores: npt.NDArray[Any] = scores) -> npt.NDArray[Any]:
            return np.take_along_axis(scores[users], items, 1)

        validation, test = drawn_places(score, task)
        assert line.val_hr == pytest.approx(validation.hr(10).mean())
        assert line.test_hr == pytest.approx(test.hr(10).mean())
        if line.round == outcome.best_round:
            assert outcome.whole.above.tolist() == whole_catalogue(score, ratings).above.tolist()
            assert outcome.sampled.above.tolist() == test.above.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_new_negatives_change_the_second_round_alone(name: str, ratings: Ratings, tmp_path: Path) -> None:
    task = Task.drawn(ratings, "published", 0)
    lines = []
    for redraw in (False, True):
        folder = tmp_path / str(redraw)
        found = run_rounds(configured(name, rounds=2), task, folder, redraw=redraw, advance=ignore)
        lines.append([line.train_loss for line in found.lines])
    assert lines[0][0] == lines[1][0]
    assert lines[0][1] != lines[1][1]


def test_own_copies_of_rounds_that_are_not_the_best_are_deleted(ratings: Ratings, tmp_path: Path) -> None:
    task = Task.drawn(ratings, "published", 0)
    found = run_rounds(configured("pfedrec", rounds=4), task, tmp_path, advance=ignore)
    kept = [path.relative_to(tmp_path).parts[0] for path in tmp_path.glob("**/personal-items.safetensors")]
    assert kept == [f"round-{found.best_round}"]


@pytest.mark.parametrize("redraw", [False, True])
def test_no_method_leaves_more_than_the_best_round_and_the_last(redraw: bool, ratings: Ratings, tmp_path: Path) -> None:
    task = Task.drawn(ratings, "published", 0)
    for name in METHODS:
        found = run_rounds(configured(name, rounds=5), task, tmp_path / name, redraw=redraw, advance=ignore)
        files = [path.parent for path in (tmp_path / name).glob("**/personal*.safetensors")]
        assert len({*files}) <= 2, (name, found.best_round)


@pytest.mark.parametrize(("hits", "best"), [([0.1, 0.3, 0.3, 0.2], 3), ([0.4, 0.3, 0.2, 0.1], 1)])
def test_the_best_round_by_validation_the_last_of_equal_ones(
    hits: list[float], best: int, ratings: Ratings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part ``x`` of the users is hit: ranks first, the others last."""
    wanted = iter(hits)
    users = ratings.n_users

    def places(*_: object) -> tuple[Places, Places]:
        above = np.where(np.arange(users) < round(next(wanted) * users), 0, 99)
        same = Places(above, np.zeros_like(above), np.full(users, 100))
        return same, same

    monkeypatch.setattr(module, "drawn_places", places)
    task = Task.drawn(ratings, "published", 0)
    found = run_rounds(configured("fedmf", rounds=4), task, tmp_path, advance=ignore)
    assert found.best_round == best
    assert found.sampled.hr(10).mean() == pytest.approx(max(hits))


def test_taste_is_learnt_and_the_leak_helps(ratings: Ratings, tmp_path: Path) -> None:
    """Users rate items of one kind of four; chance is 0.1."""
    hits = {}
    for protocol in PROTOCOLS:
        task = Task.drawn(ratings, protocol, 0)
        method = configured("pfedrec", rounds=10, lr=1.0, item_rate=75.0, std=0.1)
        hits[protocol] = run_rounds(method, task, tmp_path / protocol, advance=ignore).sampled.hr(10).mean()
    assert 0.3 < hits["after-split"] < hits["published"]


def test_divergence_keeps_the_best_round(ratings: Ratings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Shard.round

    def breaks_at(wrong: int) -> Callable[..., Any]:
        def breaks(self: Shard, state: Any, number: int, downlink: Any = ()) -> Any:
            if number == wrong:
                raise FedpaError("training diverged: so it did")
            return plain(self, state, number, downlink)

        return breaks

    monkeypatch.setattr(Shard, "round", breaks_at(3))
    task = Task.drawn(ratings, "published", 0)
    found = run_rounds(configured("fedmf", rounds=4), task, tmp_path / "a", advance=ignore)
    assert found.stopped == "round 3: training diverged: so it did"
    assert len(found.lines) == 2
    monkeypatch.setattr(Shard, "round", breaks_at(1))
    with pytest.raises(FedpaError, match="so it did"):
        run_rounds(configured("fedmf", rounds=4), task, tmp_path / "b", advance=ignore)


def test_everybody_must_take_part(ratings: Ratings, tmp_path: Path) -> None:
    task = Task.drawn(ratings, "published", 0)
    with pytest.raises(ConfigError, match=r"participation=0\.5"):
        run_rounds(configured("pfedrec", participation=0.5), task, tmp_path, advance=ignore)
