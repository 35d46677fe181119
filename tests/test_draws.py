"""Draws depend on seed, purpose, numbers and key, and on nothing else."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.draws import derive_seed, generator, uniform, user_keys
from golden import plain_loop

words = st.integers(0, 2**64 - 1)


@settings(max_examples=50)
@given(st.integers(0, 2**63), st.text(max_size=10), st.lists(st.integers(0, 10**6), max_size=3), st.lists(words))
def test_draws_equal_those_in_whole_numbers(seed: int, purpose: str, numbers: list[int], keys: list[int]) -> None:
    found = uniform(seed, purpose, numbers, np.array(keys, np.uint64))
    assert found.tolist() == [plain_loop.uniform(seed, purpose, numbers, key) for key in keys]
    assert ((found >= 0) & (found < 1)).all()


def test_draws_are_even_and_independent() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    draws = [uniform(seed, "a test", (number,), keys) for seed, number in ((0, 0), (0, 1), (1, 0))]
    draws.append(uniform(0, "another", (0,), keys))
    for one in draws:
        found = np.histogram(one, 50, (0, 1))[0]
        assert ((found - 2000) ** 2 / 2000).sum() < 49 + 5 * np.sqrt(98)
        assert abs(np.corrcoef(one[:-1], one[1:])[0, 1]) < 5 / np.sqrt(len(keys))
    correlation = np.corrcoef(draws)
    assert np.abs(correlation - np.eye(4)).max() < 5 / np.sqrt(len(keys))


def test_draws_have_the_shape_of_the_keys() -> None:
    keys = np.arange(6, dtype=np.uint64).reshape(2, 3)
    assert (uniform(0, "x", (), keys).ravel() == uniform(0, "x", (), keys.ravel())).all()
    assert keys.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_seeds_of_purposes_differ_and_fit_63_bits() -> None:
    arguments = [(0, "a"), (0, "b"), (1, "a"), (0, "a", 1), (0, "a", 1, 2), (0, "a", 12)]
    seeds = [derive_seed(seed, purpose, *numbers) for seed, purpose, *numbers in arguments]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(7, "start") == derive_seed(7, "start")


def test_generators_repeat() -> None:
    one, same, other = (torch.rand(4, generator=generator(0, "start", n)) for n in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt32, pl.Int8])
def test_integers_are_their_own_keys(dtype: pl.DataType) -> None:
    assert user_keys(pl.Series([0, 5, 99], dtype=dtype)).tolist() == [0, 5, 99]


def test_negative_and_text_ids_have_keys() -> None:
    assert user_keys(pl.Series([-1])).tolist() == [2**64 - 1]
    keys = user_keys(pl.Series(["a", "b", "a"]))
    assert keys.dtype == np.uint64
    assert keys[0] == keys[2] != keys[1]
    assert user_keys(pl.Series([], dtype=pl.String)).shape == (0,)
    assert keys.tolist()[1] == user_keys(pl.Series(["b"])).tolist()[0]
