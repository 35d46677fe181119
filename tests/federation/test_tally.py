"""Item counts of everybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedpa.adaptation import adapt
from fedpa.data.dataset import Dataset, Part
from fedpa.federation.rows import ShardRows
from fedpa.federation.tally import Tally
from fedpa.methods import TwoCounters
from fedpa.settings import Settings
from prepared import Small, reading, small

PERIODS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


def shard_rows(data: Dataset, users: np.ndarray | None = None) -> ShardRows:
    return ShardRows.of(data, users, dtype=torch.float32, device=torch.device("cpu"))


METHOD = TwoCounters(Settings(item_counts=PERIODS))


def test_a_row_knows_the_training_rows_of_the_periods_before_its_own(made: Small) -> None:
    data, plain = made.dataset, shard_rows(made.dataset)
    tally = METHOD.tally(data, plain)
    assert tally is not None
    rows = METHOD.rows(None, data, plain, tally)
    opened = data.time[data.rows("foundation", "foundation_val")]
    edges = opened.min() + np.arange(1, PERIODS + 1) * (opened.max() + 1 - opened.min()) // PERIODS
    train = plain.part == Part.TRAIN
    items, labels = plain.items.numpy(), plain.labels.numpy()
    for place in range(0, len(rows.row), 11):
        ended = edges[edges <= plain.time[place]]
        known = train & (plain.time < (ended[-1] if len(ended) else -1))
        of_item = known & (items == items[place])
        assert rows.item_views[place] - plain.item_views[place] == of_item.sum()
        assert rows.item_clicks[place] - plain.item_clicks[place] == labels[of_item].sum()
        assert rows.open_views[place] - plain.open_views[place] == known.sum()
        assert rows.open_clicks[place] - plain.open_clicks[place] == labels[known].sum()
        assert not of_item[place]
    codes = data.encode_item(rows.item_views, rows.item_clicks, rows.open_views, rows.open_clicks)
    assert (rows.context[:, : data.n_item_context].numpy() == codes).all()


def test_counts_of_shards_add_up(made: Small) -> None:
    data = made.dataset
    whole = METHOD.tally(data, shard_rows(data))
    users = shard_rows(data).users
    parts = [METHOD.tally(data, shard_rows(data, users[k::3])) for k in range(3)]
    assert whole is not None
    total = parts[0]
    for part in parts[1:]:
        assert total is not None and part is not None
        total = total + part
    assert isinstance(total, Tally)
    assert (total.views == whole.views).all()
    assert (total.clicks == whole.clicks).all()


def test_labels_after_the_cut_are_not_counted(made: Small) -> None:
    data = made.dataset
    plain = shard_rows(data)
    turned = shard_rows(data)
    later = torch.from_numpy(plain.part != Part.TRAIN)
    turned.labels[later] = 1 - turned.labels[later]
    one, other = METHOD.tally(data, plain), METHOD.tally(data, turned)
    assert one is not None and other is not None
    assert (one.clicks == other.clicks).all()


def test_a_run_scores_with_them_and_says_what_they_cost(
    made: Small, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    foundation = reading(tmp_path_factory)
    run, without = (
        adapt(foundation, made.dataset, out=tmp_path / str(periods), method="foundation", item_counts=periods)
        for periods in (PERIODS, 0)
    )
    assert run.summary["bytes_item_counts_per_user"] == 8 * PERIODS * made.dataset.n_items
    assert without.summary["bytes_item_counts_per_user"] == 0
    assert not np.array_equal(run.scores, without.scores)
    assert np.array_equal(run.yardstick_scores()["frozen foundation"], without.scores[without.rows.part == Part.TEST])
