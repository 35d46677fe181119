"""Which of a user's own rows may be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpa.data.dataset import Dataset, Part
from fedpa.data.past import Past
from fedpa.data.statistics import Counted
from fedpa.federation.rows import ShardRows
from prepared import reading, small


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small(tmp_path_factory).dataset


def shard_rows(data: Dataset) -> ShardRows:
    return ShardRows.of(data, dtype=torch.float32, device=torch.device("cpu"))


def by_hand() -> Past:
    user = np.array([0, 0, 0, 2, 2], np.uint32)
    part = np.array([Part.TRAIN, Part.UNBIASED, Part.TEST, Part.FOUNDATION, Part.UNUSED], np.uint8)
    item = np.array([4, 5, 6, 7, 8], np.uint32)
    click = np.array([True, True, False, True, True])
    return Past(Counted(user, item, np.array([10, 20, 30, 5, 6]), click, part), 3)


def test_random_exposures_and_unused_rows_are_no_past() -> None:
    past = by_hand()
    assert past.item.tolist() == [4, 6, 7]
    assert past.starts.tolist() == [0, 2, 2, 3]


def test_the_latest_rows_come_last_and_what_is_missing_first() -> None:
    past = by_hand()
    places, real = past.recent(np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2, 0, 1]), 2)
    assert real.tolist() == [[False, False], [False, True], [True, True], [False, False], [False, True]]
    assert past.item[places][real].tolist() == [4, 4, 6, 7]


def test_running_counts_by_hand() -> None:
    views, clicks = by_hand().running(np.array([0, 0, 0, 0, 1, 2]), np.array([10, 11, 30, 31, 99, 99]))
    assert views.tolist() == [0, 1, 1, 2, 0, 1]
    assert clicks.tolist() == [0, 1, 1, 1, 0, 1]


@pytest.mark.parametrize("online", [False, True])
def test_the_prefix_that_a_row_may_read_holds_the_rows_that_it_counts(data: Dataset, online: bool) -> None:
    rows, past = shard_rows(data), data.past
    rows = rows.online(data) if online else rows
    for place in range(0, len(rows.row), 7):
        user = rows.users[rows.user[place]]
        own = slice(past.starts[user], past.starts[user] + rows.own_views[place])
        assert past.click[own].sum() == rows.own_clicks[place]
        assert (past.time[own] < rows.time[place]).all()
        ends = {Part.VAL: (Part.TRAIN,), Part.TEST: (Part.TRAIN, Part.VAL)}.get(Part(rows.part[place]))
        if ends is not None and not online:
            counted = data.rows(*ends)
            assert rows.own_views[place] == (data.user[counted] == user).sum()


def test_online_a_test_row_knows_of_the_test_rows_before_it(data: Dataset) -> None:
    frozen, online = shard_rows(data), shard_rows(data).online(data)
    train, test = frozen.part == Part.TRAIN, frozen.part == Part.TEST
    assert (frozen.own_views[train] == online.own_views[train]).all()
    assert torch.equal(frozen.context[torch.from_numpy(train)], online.context[torch.from_numpy(train)])
    assert (online.own_views[test] >= frozen.own_views[test]).all()
    assert (online.own_views[test] > frozen.own_views[test]).any()
    changed = frozen.context[:, data.n_item_context :] != online.context[:, data.n_item_context :]
    assert changed.any()
    assert torch.equal(frozen.context[:, : data.n_item_context], online.context[:, : data.n_item_context])


@pytest.mark.parametrize("online", [False, True])
def test_what_comes_later_moves_nothing(data: Dataset, tmp_path_factory: pytest.TempPathFactory, online: bool) -> None:
    """Turn every click after the cut (frozen), or from the row on (online)."""
    reader = reading(tmp_path_factory).inputs.history
    assert reader is not None
    rows = shard_rows(data)
    rows = rows.online(data) if online else rows
    kinds = reader.kinds_of(data)
    before = reader.read(data.past, kinds, rows.queries())
    moved = 0
    for place in np.flatnonzero(rows.part == Part.TEST)[:40]:
        user = rows.users[rows.user[place]]
        turned = Past(data.counted, data.n_users)
        begin, end = turned.starts[user] + rows.own_views[place], turned.starts[user + 1]
        turned.click[begin:end] ^= True
        turned.item[begin:end] = (turned.item[begin:end] + 1) % data.n_items
        turned.time[begin:end] += 1000
        moved += end - begin
        query = rows.queries().at(np.array([place]))
        assert reader.read(turned, kinds, query).tobytes() == before[place].tobytes()
    assert moved > 40
