"""Frozen parts are computed once per distinct input, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpa
from arrays import CPU, ArrayDataset, toy
from fedpa.models.wrap.distinct import BLOCK
from fedpa.models.wrap.hashing import combined, keys_of
from fedpa.models.wrap.memory import Budget, Memory
from fedpa.models.wrap.rows import Rows, RowSource
from fedpa.models.wrap.wrapped import Wrapped
from models.wrap.modules import TextRanker, made
from models.wrap.test_adapted import inner, method, some_rows, started

TOP = ["layer.2.*.query", "score"]


def data() -> ArrayDataset:
    return toy(9, np.full(9, 8), context=True, features="causal")


def wrapped(on: ArrayDataset, **values: int) -> Wrapped:
    found = fedpa.wrap(made(TextRanker, on), TOP, **values)  # type: ignore[arg-type]
    found.check(on)
    return found


@contextmanager
def counted(found: Wrapped, name: str) -> Iterator[list[int]]:
    """Rows of every call of a submodule's weights."""
    calls: list[int] = []
    layer = found.model.get_submodule(f"{name}.attention.self.query")
    handle = layer.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    yield calls
    handle.remove()


def test_a_check_finds_what_lies_below_the_first_target() -> None:
    assert wrapped(data()).once == ("text.encoder.layer.0", "text.encoder.layer.1")


def test_a_whole_encoder_that_gives_one_tensor_is_one_part() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.deep = nn.Embedding(20, 8), nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))

        def forward(self, items: Tensor) -> Tensor:
            return self.deep(self.table(items))  # type: ignore[no-any-return]

    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.item, self.head = Encoder(), nn.Linear(10, 1)

        def forward(self, rows: Rows) -> Tensor:
            both = torch.cat([self.item(rows.items), rows.user_codes.float()], -1)
            return self.head(both).squeeze(-1)  # type: ignore[no-any-return]

    found = fedpa.wrap(Ranker(), ["head"])
    found.check(data())
    assert found.once == ("item",)


def test_what_an_adapter_changes_is_no_part() -> None:
    found = fedpa.wrap(made(TextRanker, data()), ["layer.0.*.query"])
    found.check(data())
    assert found.once == ()


def test_every_distinct_item_is_computed_once_whoever_asks() -> None:
    on = data()
    found = wrapped(on)
    chosen = method(found)
    model = inner(chosen, found, on)
    blocks, batch = started(model, 5, torch.float32), some_rows(on)
    texts = len({int(item) // 2 for item in batch.items.flatten()})
    with counted(found, "text.encoder.layer.0") as calls, torch.no_grad():
        first = model.forward(blocks, batch)[0]
        assert calls == [BLOCK] * -(-texts // BLOCK)
        calls.clear()
        again = model.forward(blocks, batch)[0]
        assert calls == []
    with counted(found, "text.encoder.layer.0") as calls:
        learning = {name: block.requires_grad_() for name, block in blocks.items()}
        third = model.forward(learning, batch)[0]
        assert calls == []
    assert torch.equal(first, again)
    assert torch.equal(first, third.detach())


def test_results_are_those_of_the_module_with_and_without_a_memory() -> None:
    on = data()
    batch = some_rows(on)
    for cache_bytes in (0, 1 << 20):
        found = wrapped(on, cache_bytes=cache_bytes)
        model = inner(method(found), found, on)
        for _ in range(2):
            with torch.no_grad():
                logits = model.forward(started(model, 5, torch.float32), batch)[0]
                expected = found.model(RowSource(on, CPU).of_batch(batch))
            torch.testing.assert_close(logits.flatten(), expected, rtol=0, atol=1e-6)


def test_the_module_itself_never_looks_anything_up() -> None:
    on = data()
    found = wrapped(on)
    rows = RowSource(on, CPU).of_batch(some_rows(on))
    with counted(found, "text.encoder.layer.0") as calls, torch.no_grad():
        found.model(rows)
        assert calls == [20]


@pytest.mark.parametrize("view", [False, True])
def test_a_tensor_that_is_written_into_is_not_taken_for_what_it_was(view: bool) -> None:
    """The second part must see what the module adds to the first one's output, or to a part of it."""

    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 32)
            self.one, self.two, self.head = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 1)

        def forward(self, rows: Rows) -> Tensor:
            hidden = self.one(self.table(rows.items))
            own = rows.user_codes.sum(1, keepdim=True)
            if view:
                hidden[:, :3] += own
            else:
                hidden.add_(own)
            return self.head(torch.tanh(self.two(hidden))).squeeze(-1)  # type: ignore[no-any-return]

    on = data()
    torch.manual_seed(0)
    found = fedpa.wrap(Ranker(), ["head"])
    found.check(on)
    assert found.once == ("one", "two")
    model = inner(method(found), found, on)
    batch = some_rows(on)
    for _ in range(2):
        with torch.no_grad():
            logits = model.forward(started(model, 5, torch.float32), batch)[0]
            expected = found.model(RowSource(on, CPU).of_batch(batch))
        torch.testing.assert_close(logits.flatten(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.int16, torch.bfloat16])
def test_equal_rows_have_equal_keys_and_unequal_ones_other(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(0, 2, (200, 9))).to(dtype)
    _, where = torch.unique(rows, dim=0, return_inverse=True)
    keys = keys_of(rows)
    assert len(torch.unique(keys)) == len(torch.unique(where))
    for row in range(len(rows)):
        assert torch.equal(keys == keys[row], where == where[row])


def test_signs_and_order_tell_rows_apart() -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [-1.0, 2.0], [1.0, -2.0], [2.0, 1.0], [0.0, -0.0], [0.0, 0.0]])
    assert len(torch.unique(keys_of(rows))) == len(rows)
    assert len(torch.unique(combined([torch.tensor([1, 2]), torch.tensor([2, 1])], 0))) == 2


def test_keys_do_not_depend_on_what_was_asked_before() -> None:
    row = torch.arange(8.0)[None]
    before = keys_of(row)
    keys_of(torch.zeros(2, 5000))
    assert torch.equal(keys_of(row), before)
    wide = torch.arange(6000.0).repeat(3, 1)
    assert torch.equal(keys_of(wide), keys_of(wide[:1]).expand(3))


def test_a_memory_keeps_what_there_is_room_for_and_then_stays() -> None:
    memory = Memory(Budget(2 << 20))
    rows = torch.arange(40.0)[:, None].expand(-1, 1 << 16).clone()  # a quarter of a MiB each: four a page
    memory.add(torch.arange(6), rows[:6])
    memory.add(torch.arange(4, 40), rows[4:])
    hit, found = memory.find(torch.arange(40))
    assert hit.nonzero().flatten().tolist() == list(range(8))
    assert found is not None
    assert found[:, 0].tolist() == list(range(8))
    hit, found = memory.find(torch.tensor([50, 7, 3]))
    assert hit.tolist() == [False, True, True]
    assert found is not None
    assert found[:, -1].tolist() == [7.0, 3.0]
    assert Memory(Budget(0)).find(torch.tensor([1]))[1] is None
