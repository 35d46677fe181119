"""Ranks of left-out items: by hand, at chance, with ties, against drawn items."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedpa.evaluation.leave_one_out as module
from arrays import CPU, ArrayDataset
from fedpa.data.dataset import Part
from fedpa.data.leave_one_out import leave_one_out
from fedpa.errors import ConfigError, DataError, FedpaError
from fedpa.evaluation.leave_one_out import Places, leave_one_out_report
from fedpa.federation.rows import ShardRows
from logged import logged, many

Array = npt.NDArray[Any]


def dataset(rows: list[tuple[int, int, Part, int]], users: int, items: int) -> ArrayDataset:
    """Rows of user, item, part and label."""
    user, item, part, label = np.array(rows, dtype=np.int64).T
    return ArrayDataset(
        user_ids=np.arange(users) * 10 + 5,
        user_codes=np.zeros((users, 1), np.int64),
        item_codes=np.zeros((items, 1), np.int64),
        user=user,
        item=item,
        label=label,
        part=part,
        groups={},
        sizes={"user": {"kind": 1}, "item": {"kind": 1}, "groups": {}},
    )


def rows_of(data: Any) -> ShardRows:
    return ShardRows.of(data, dtype=torch.float32, device=CPU)


def by_user(rows: ShardRows, table: Array) -> Any:
    """A scorer that gives local user u the u-th row of a table."""
    return lambda positions: table[rows.user[positions]]


HAND = [
    (0, 0, Part.TRAIN, 1),
    (0, 5, Part.TRAIN, 0),
    (0, 1, Part.VAL, 1),
    (0, 2, Part.TEST, 1),
    (0, 4, Part.TEST, 0),
    (1, 2, Part.TRAIN, 1),
    (1, 1, Part.TRAIN, 1),
    (2, 4, Part.TRAIN, 1),
    (2, 0, Part.VAL, 1),
    (2, 5, Part.TEST, 1),
]
"""Six items; user 1 is not tested, item 5 is clicked by nobody in training."""

SCORES = np.array([[9, 8, 3, 7, 3, 1], [0, 0, 0, 0, 0, 0], [9, 1, 2, 3, 8, 0]], np.float32)


def test_ranks_by_hand() -> None:
    data = dataset(HAND, 3, 6)
    rows = rows_of(data)
    found = leave_one_out_report(data, rows, by_user(rows, SCORES), k=2)
    # User 0: of items 2, 3, 4, 5 one is above item 2 and one is tied. User 2: of 1, 2, 3, 5 all are above item 5.
    assert found.users.tolist() == [0, 2]
    assert found.places.candidates.tolist() == [4, 4]
    assert found.rank.tolist() == [2.5, 4.0]
    assert found.hr.tolist() == [0.5, 0.0]
    assert found.ndcg.tolist() == pytest.approx([0.5 / np.log2(3), 0.0])
    assert found.seen_in_training.tolist() == [True, False]
    # Fewer than 99 items are no positives, so all of them are drawn, and the figures are those of the catalogue.
    assert found.sampled_rank.tolist() == [2.5, 4.0]
    report = found.report()
    assert report["hr@2"] == report["hr@2_sampled99"] == 0.25
    assert report["ndcg@2"] == report["ndcg@2_sampled99"] == pytest.approx(0.25 / np.log2(3))
    assert report["unseen"] == dict.fromkeys(list(report)[:4], 0.0) | {"users": 1}
    assert (report["users"], report["test_users"], report["catalogue"]) == (2, 2, 6)


def test_only_training_and_validation_positives_are_left_out_of_the_catalogue() -> None:
    data = dataset(HAND, 3, 6)
    rows = rows_of(data)
    high = np.zeros((3, 6))
    high[0, [0, 1]] = 9  # positives
    assert leave_one_out_report(data, rows, by_user(rows, high)).places.above.tolist() == [0, 0]
    high[0, [4, 5]] = 9  # drawn ones
    assert leave_one_out_report(data, rows, by_user(rows, high)).places.above.tolist() == [2, 0]


def test_an_item_clicked_before_is_ranked_all_the_same() -> None:
    data = dataset([(0, 2, Part.TRAIN, 1), (0, 3, Part.VAL, 1), (0, 2, Part.TEST, 1)], 1, 5)
    rows = rows_of(data)
    found = leave_one_out_report(data, rows, by_user(rows, np.array([[4.0, 0, 1, 5, 0]])))
    assert (found.rank.tolist(), found.places.candidates.tolist()) == ([2.0], [4])


def task(users: int, items: int, known: int) -> ArrayDataset:
    """User u has clicked on `known` items from u on, is validated on the next and tested on the one after."""
    rows = []
    for user in range(users):
        parts = [Part.TRAIN] * known + [Part.VAL, Part.TEST]
        rows += [(user, (user + place) % items, part, 1) for place, part in enumerate(parts)]
    return dataset(rows, users, items)


def test_a_constant_scorer_is_at_chance_exactly() -> None:
    data = task(50, 200, 19)
    report = leave_one_out_report(data, rows_of(data), lambda positions: np.zeros((len(positions), 200))).report()
    discounts = (1 / np.log2(np.arange(2, 12))).sum()
    assert report["hr@10"] == pytest.approx(10 / 180, abs=1e-12)
    assert report["ndcg@10"] == pytest.approx(discounts / 180, abs=1e-12)
    assert report["hr@10_sampled99"] == pytest.approx(10 / 100, abs=1e-12)
    assert report["ndcg@10_sampled99"] == pytest.approx(discounts / 100, abs=1e-12)


def test_a_perfect_scorer_has_one_and_a_perverse_one_nothing() -> None:
    data = task(30, 150, 5)
    rows = rows_of(data)

    def perfect(positions: Array) -> torch.Tensor:
        return torch.nn.functional.one_hot(rows.items[positions], 150).float()

    for score, value in ((perfect, 1.0), (lambda positions: -perfect(positions), 0.0)):
        report = leave_one_out_report(data, rows, score).report()
        assert [report[name] for name in list(report)[:4]] == [value] * 4


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12))
def test_ties_are_the_mean_over_all_orders(above: int, tied: int, k: int) -> None:
    places = Places(np.array([above]), np.array([tied]), np.array([above + tied + 1]))
    ranks = np.arange(above + 1, above + tied + 2)
    assert places.rank[0] == ranks.mean()
    assert places.hr(k)[0] == pytest.approx((ranks <= k).mean())
    assert places.ndcg(k)[0] == pytest.approx(np.where(ranks <= k, 1 / np.log2(1 + ranks), 0).mean())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 30), st.integers(1, 9), st.integers(1, 12))
def test_places_equal_counting_one_item_at_a_time(seed: int, items: int, users: int, sampled: int) -> None:
    random = np.random.default_rng(seed)
    rows_list = []
    for user in range(users):
        chosen = random.permutation(items)[: random.integers(3, min(items, 8) + 1)].tolist()
        parts = [Part.TRAIN] * (len(chosen) - 2) + [Part.VAL, Part.TEST]
        rows_list += [(user, item, part, 1) for item, part in zip(chosen, parts, strict=True)]
    data = dataset(rows_list, users, items)
    rows = rows_of(data)
    table = random.integers(0, 5, (users, items)).astype(np.float32)
    found = leave_one_out_report(data, rows, by_user(rows, table), sampled=sampled, seed=seed)
    for user in range(users):
        mine = [(item, part) for one, item, part, _ in rows_list if one == user]
        target = next(item for item, part in mine if part == Part.TEST)
        others = [item for item in range(items) if item not in {item for item, _ in mine}]
        assert found.places.above[user] == sum(table[user, item] > table[user, target] for item in others)
        assert found.places.tied[user] == sum(table[user, item] == table[user, target] for item in others)
        assert found.places.candidates[user] == len(others) + 1
        assert found.sampled_places.candidates[user] == min(sampled, len(others)) + 1
        if sampled >= len(others):
            assert found.sampled_rank[user] == found.rank[user]


def test_drawn_items_are_uniform_and_no_positives() -> None:
    """One item scores above, so a user's sampled rank is 2 where it was drawn: 99 of 178 times, for any item."""
    users, items = 2000, 200
    data = task(users, items, 20)
    rows = rows_of(data)
    for ahead in (0, 77, 199):
        table = np.zeros((users, items), np.float32)
        table[np.arange(users), rows.items.numpy()[(rows.part == Part.TEST)]] = 1
        table[:, ahead] = 2
        found = leave_one_out_report(data, rows, by_user(rows, table))
        drawn = found.sampled_rank == 2
        mine = (ahead - np.arange(users)) % items < 22
        assert not drawn[mine].any()
        assert (found.places.above == np.where(mine, 0, 1)).all()
        n = int((~mine).sum())
        assert drawn.sum() == pytest.approx(n * 99 / 178, abs=5 * (n * 99 / 178 * 79 / 178) ** 0.5)
    assert (found.sampled_places.candidates == 100).all()


def test_blocks_and_other_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = task(40, 60, 6)
    rows = rows_of(data)
    table = np.random.default_rng(0).integers(0, 9, (40, 60)).astype(np.float32)
    whole = leave_one_out_report(data, rows, by_user(rows, table), sampled=10)
    sizes = []

    def watched(positions: Array) -> Array:
        sizes.append(len(positions))
        return table[rows.user[positions]]

    monkeypatch.setattr(module, "_BLOCK_SCORES", 7 * 60 + 5)
    assert leave_one_out_report(data, rows, watched, sampled=10).report() == whole.report()
    assert sizes == [7, 7, 7, 7, 7, 5]
    some = ShardRows.of(data, np.array([3, 20, 31]), dtype=torch.float32, device=CPU)
    few = leave_one_out_report(data, some, lambda positions: table[some.users[some.user[positions]]], sampled=10)
    assert few.users.tolist() == [3, 20, 31]
    for name in ("rank", "sampled_rank", "seen_in_training"):
        assert getattr(few, name).tolist() == getattr(whole, name)[[3, 20, 31]].tolist()


def test_most_ranks_a_draw_of_the_users() -> None:
    data = task(40, 60, 6)
    rows = rows_of(data)
    table = np.random.default_rng(0).random((40, 60))
    whole = leave_one_out_report(data, rows, by_user(rows, table))
    blocks: list[int] = []

    def counted(positions: Array) -> Any:
        blocks.append(len(positions))
        return by_user(rows, table)(positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_SCORES", 5 * data.n_items)
        leave_one_out_report(data, rows, counted, most=12)
    assert blocks == [5, 5, 2], "no block may be empty"
    some = leave_one_out_report(data, rows, by_user(rows, table), most=12)
    assert (len(some.users), some.test_users) == (12, 40)
    assert (some.rank == whole.rank[some.users]).all()
    assert some.users.tolist() != list(range(12))
    more = leave_one_out_report(data, rows, by_user(rows, table), most=20)
    assert set(some.users) < set(more.users)
    other = leave_one_out_report(data, rows, by_user(rows, table), most=12, seed=1)
    assert set(other.users) != set(some.users)
    assert leave_one_out_report(data, rows, by_user(rows, table), most=99).report() == whole.report()


def test_a_made_data_set_says_who_was_left_out(tmp_path: Path) -> None:
    source = logged(tmp_path, [*many(60, 900, 40), (59, 40, 10**7, 1)], range(30, 60), items=41)
    made = leave_one_out(source, tmp_path / "out")
    rows = rows_of(made)
    found = leave_one_out_report(made, rows, lambda positions: np.ones((len(positions), 41)))
    report = found.report()
    counts = made.manifest["counts"]
    assert report["left_out"] == counts["left_out"]
    assert report["users"] == counts["judged"] == 30 - counts["left_out"]["fewer_than_3_positives"]
    assert report["unseen"]["users"] == counts["unseen_test_items"] > 0
    assert not found.seen_in_training[found.users == 59].any()
    # Nobody else's positives are left out: the catalogue less the user's own.
    own = [len(set(made.item[(made.user == user) & (made.label == 1)].tolist())) for user in found.users]
    assert (found.places.candidates == 41 - np.array(own) + 1).all()


@pytest.mark.parametrize("change", [{"k": 0}, {"sampled": 0}, {"most": 0}])
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    data = dataset(HAND, 3, 6)
    with pytest.raises(ConfigError, match=next(iter(change))):
        leave_one_out_report(data, rows_of(data), lambda positions: np.zeros((len(positions), 6)), **change)


def test_other_data_and_scores_are_refused() -> None:
    data = dataset(HAND, 3, 6)
    rows = rows_of(data)
    with pytest.raises(FedpaError, match=r"shape \(2, 5\), expected .* \[2, 6\]"):
        leave_one_out_report(data, rows, lambda positions: np.zeros((len(positions), 5)))
    with pytest.raises(FedpaError, match=r"1 of 12 scores are not finite \(1 NaN\)"):
        leave_one_out_report(data, rows, lambda positions: np.where(np.eye(2, 6) * [1, 0, 0, 0, 0, 0], np.nan, 0))
    twice = dataset([*HAND, (2, 1, Part.TEST, 1)], 3, 6)
    with pytest.raises(DataError, match="user 25 has more than one test positive"):
        leave_one_out_report(twice, rows_of(twice), lambda positions: np.zeros((len(positions), 6)))
    none = dataset(HAND[:3], 3, 6)
    with pytest.raises(DataError, match="no test positive"):
        leave_one_out_report(none, rows_of(none), lambda positions: np.zeros((len(positions), 6)))


def test_means_without_users_are_none() -> None:
    data = task(10, 50, 5)
    found = leave_one_out_report(data, rows_of(data), lambda positions: np.zeros((len(positions), 50)))
    seen = dataclasses.replace(found, seen_in_training=np.ones(10, np.bool_))
    assert seen.report()["unseen"] == dict.fromkeys(list(found.report())[:4]) | {"users": 0}
