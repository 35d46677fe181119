"""Which rows of a table each user touches, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from arrays import CPU, Array, toy, toy_engine
from fedpa.data.dataset import Part
from fedpa.federation.parameters import SHARED, Layout, Table
from fedpa.federation.rows import ShardRows
from fedpa.federation.touched import TouchedRows
from fedpa.methods.fedmf import FedMF
from fedpa.models.items import ItemSettings

TRAIN, VAL = Part.TRAIN, Part.VAL

# By user the item of every row, and its part.
ITEMS = [[4, 1, 4, 6, 1], [], [0, 2], [6, 3, 3]]
PARTS = [[TRAIN, TRAIN, TRAIN, VAL, VAL], [], [VAL, VAL], [TRAIN, TRAIN, VAL]]


def shard_rows() -> ShardRows:
    data = toy(4, np.array([len(items) for items in ITEMS]), items=7)
    data._rows["item"][:] = np.concatenate(ITEMS)
    data._rows["part"][:] = np.concatenate(PARTS)
    return ShardRows.of(data, dtype=torch.float32, device=CPU)


def by_item() -> Table:
    return Table("items", 7, 2, torch.zeros(7, 2), lambda items, _: items[..., None])


def everyone(*users: int) -> Array:
    return np.array(users or range(4), np.int64)


def test_trained_rows_come_first_then_the_others_each_ascending() -> None:
    found = TouchedRows.of(by_item(), shard_rows())
    assert found.trained.tolist() == [2, 0, 0, 2]
    assert found.total.tolist() == [3, 0, 2, 2]
    assert found.begin.tolist() == [0, 3, 3, 5]
    assert found.ids.tolist() == [1, 4, 6, 0, 2, 3, 6]
    assert found.pairs.tolist() == [0, 2, 2, 2, 4]


def test_slots_find_every_row_of_the_shard_again() -> None:
    rows = shard_rows()
    found = TouchedRows.of(by_item(), rows)
    assert found.slots is not None
    assert found.slots.flatten().tolist() == [1, 0, 1, 2, 0, 0, 1, 1, 0, 0]
    place = found.begin[rows.user] + found.slots[:, 0].numpy()
    assert found.ids[place].tolist() == rows.items.tolist()


def test_several_ids_in_a_row() -> None:
    """An item's own row and that of its parity, which items share."""
    table = Table("both", 9, 1, torch.zeros(9, 1), lambda items, _: torch.stack([items, 7 + items % 2], -1))
    rows = shard_rows()
    found = TouchedRows.of(table, rows)
    assert found.slots is not None
    assert [found.ids[b : b + n].tolist() for b, n in zip(found.begin, found.total, strict=True)] == [
        [1, 4, 7, 8, 6],
        [],
        [0, 2, 7],
        [3, 6, 7, 8],
    ]
    assert found.trained.tolist() == [4, 0, 0, 4]
    ids = found.ids[found.begin[rows.user][:, None] + found.slots.numpy()]
    assert ids.tolist() == [[item, 7 + item % 2] for item in rows.items.tolist()]


def test_dense_blocks_of_users() -> None:
    found = TouchedRows.of(by_item(), shard_rows())
    ids, count = found.padded(everyone(), training=False)
    assert ids.tolist() == [[1, 4, 6], [0, 0, 0], [0, 2, 0], [3, 6, 0]]
    assert count.tolist() == [3, 0, 2, 2]
    ids, count = found.padded(everyone(3, 0), training=True)
    assert ids.tolist() == [[3, 6], [1, 4]]
    assert count.tolist() == [2, 2]
    ids, count = found.padded(everyone(1, 2), training=True)
    assert ids.tolist() == [[0], [0]]
    assert count.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("users", "stored"), [((), [0, 1, 2, 3]), ((3,), [2, 3]), ((1, 2), []), ((3, 0), [2, 3, 0, 1]), ((0, 1), [0, 1])]
)
def test_places_in_the_store(users: tuple[int, ...], stored: list[int]) -> None:
    assert TouchedRows.of(by_item(), shard_rows()).stored(everyone(*users)).tolist() == stored


def test_a_table_per_user_is_its_own_block() -> None:
    """Every user has the same number of rows, trained or not, and needs no slots."""
    table = Table("u", 8, 1, torch.zeros(8, 1), lambda users: torch.stack([users % 3, 3 + users], -1), "user")
    found = TouchedRows.of(table, shard_rows())
    assert found.slots is None
    assert found.padded(everyone(), training=True)[0].tolist() == [[0, 3], [1, 4], [2, 5], [0, 6]]
    assert found.padded(everyone(), training=False)[1].tolist() == [2, 2, 2, 2]
    assert found.stored(everyone(2, 1)).tolist() == [4, 5, 2, 3]


def test_a_shard_of_nobody() -> None:
    data = toy(2, np.array([3, 3]))
    rows = ShardRows.of(data, np.zeros(0, np.int64), dtype=torch.float32, device=CPU)
    found = TouchedRows.of(by_item(), rows)
    assert (len(found.ids), found.pairs.tolist()) == (0, [0])
    assert found.padded(np.zeros(0, np.int64), training=True)[0].shape == (0, 1)


def test_in_memory_a_user_has_its_touched_rows_alone_and_sends_whole_tables(tmp_path: Path) -> None:
    data = toy(3, np.array([3, 3, 3]), items=50)
    data._rows["item"][:] = [7, 7, 9, 7, 8, 8, 49, 49, 49]
    data._rows["part"][:] = TRAIN
    engine = toy_engine(tmp_path, data, FedMF(ItemSettings(width=4, optimizer="sgd", lr=0.5)))
    layout = engine.model.layout
    assert layout.width([2]) == layout.size + 2 * 4
    before = engine.server.named()["items"]
    upload = engine.round(1)
    assert upload.weights_up == 3 * 50 * 4
    moved = (engine.server.named()["items"] != before).any(1).nonzero().flatten().tolist()
    assert moved == [7, 8, 9, 49]


def test_a_layout_counts_and_places_its_tables() -> None:
    layout = Layout(
        [], lambda _: SHARED, {}, [by_item(), Table("b", 5, 3, torch.ones(5, 3), lambda i, _: i[..., None])]
    )
    assert layout.width([2, 4]) == 2 * 2 + 4 * 3
    assert [(span.begin, span.end) for span in layout.table_spans([2, 4])] == [(0, 4), (4, 16)]
    flat = torch.arange(32.0).view(2, 16)
    views = layout.views(flat, [2, 4])
    assert views["items"].tolist() == [[[0, 1], [2, 3]], [[16, 17], [18, 19]]]
    assert views["b"][0, 3].tolist() == [13, 14, 15]
    row = layout.row(lambda name: 0.1 if name == "b" else 2.0, [1, 1])
    assert row.tolist() == [2.0, 2.0, 0.1, 0.1, 0.1]  # as exact as the settings
    assert layout.sizes_by_scope() == {"shared": 14 + 15}
