"""The sum is exact to the bit whoever drops out, or there is none."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.errors import ConfigError
from fedpa.privacy.secagg.masks import add_masks, words
from fedpa.privacy.secagg.message import INPUT, KEYS, PHASES, SHARES, UNMASK
from fedpa.privacy.secagg.terms import AbortError, Terms, default_threshold
from secured import Nodes, added, drawn, dropped_before, terms_for

whole = st.integers(-(2**63), 2**63 - 1)
extreme = st.sampled_from([0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63)])


@st.composite
def drops(draw: st.DrawFn) -> tuple[int, int | None, dict[str, list[int]]]:
    """Number of nodes, threshold, and by phase who drops out, by place."""
    nodes = draw(st.integers(5, 8))
    threshold = draw(st.none() | st.integers(nodes // 2 + 1, nodes))
    who = draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.sampled_from(PHASES)), max_size=4))
    return nodes, threshold, {phase: [place for place, when in who if when == phase] for phase in PHASES}


@settings(max_examples=30, deadline=None)
@given(
    drops(), st.lists(st.integers(-(2**63), 2**63 - 1) | extreme, min_size=1, max_size=20), st.integers(0, 2**32 - 1)
)
def test_the_sum_is_of_those_who_stayed_or_there_is_none(
    plan: tuple[int, int | None, dict[str, list[int]]], values: list[int], seed: int
) -> None:
    nodes, threshold, places = plan
    vectors = drawn(nodes, len(values), seed)
    ids = sorted(vectors)
    vectors[ids[0]] = np.array(values, np.int64)
    drop = {phase: {ids[place] for place in gone} for phase, gone in places.items()}
    least = default_threshold(nodes) if threshold is None else threshold
    enough = nodes - len(dropped_before(drop, UNMASK)) >= least
    with tempfile.TemporaryDirectory() as folder:
        group = Nodes(Path(folder), vectors, drop)
        if not enough:
            with pytest.raises(AbortError, match="nothing was unmasked"):
                group.sum(threshold=threshold)
            return
        total, stayed = group.sum(threshold=threshold)
    assert stayed == [node for node in ids if node not in dropped_before(drop, INPUT)]
    assert total.tolist() == added(vectors, stayed).tolist()
    assert not group.errors


@pytest.mark.parametrize("phase", PHASES)
def test_one_node_may_drop_out_of_each_phase(tmp_path: Path, phase: str) -> None:
    vectors = drawn(5, 50)
    lost = sorted(vectors)[2]
    total, stayed = Nodes(tmp_path, vectors, {phase: {lost}}).sum()
    assert (lost in stayed) == (phase == UNMASK)
    assert len(stayed) == 4 + (phase == UNMASK)
    assert total.tolist() == added(vectors, stayed).tolist()


@settings(max_examples=5, deadline=None)
@given(st.integers(12, 20), st.integers(0, 2**32 - 1), st.sampled_from(PHASES))
def test_the_sum_over_a_sparse_graph_of_masks_is_the_same(nodes: int, seed: int, phase: str) -> None:
    vectors = drawn(nodes, 7, seed)
    lost = {sorted(vectors)[seed % nodes]}
    with tempfile.TemporaryDirectory() as folder:
        group = Nodes(Path(folder), vectors, {phase: lost})
        total, stayed = group.sum(degree=8)
    assert set(vectors) - set(stayed) == (set() if phase == UNMASK else lost)
    assert total.tolist() == added(vectors, stayed).tolist()
    assert {len(message.arrays) for message in group.said(SHARES).values()} <= {8, 9}  # sealed shares, a commitment


def test_neighbours_of_a_sparse_graph_are_mutual_and_as_many_as_declared() -> None:
    terms = terms_for(drawn(30, 1), degree=6)
    for node in terms.roster:
        assert len(terms.holders(node)) == 7 and node in terms.holders(node)
        assert all(node in terms.holders(other) for other in terms.holders(node))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_fewer_than_five_nodes_are_refused(nodes: int) -> None:
    with pytest.raises(ConfigError, match="at least 5"):
        terms_for(drawn(nodes, 3))


@pytest.mark.parametrize(("nodes", "threshold"), [(5, 2), (6, 3), (50, 25), (5, 6), (7, 0)])
def test_thresholds_below_a_majority_are_refused(nodes: int, threshold: int) -> None:
    with pytest.raises(ConfigError, match="majority"):
        terms_for(drawn(nodes, 3), threshold=threshold)


def test_a_node_refuses_what_its_own_fedpa_would_not_ask(tmp_path: Path) -> None:
    vectors = drawn(5, 3)
    terms = terms_for(vectors).to_json()
    node = Nodes(tmp_path, vectors).node(sorted(vectors)[0])
    for name, value in (("roster", sorted(vectors)[:4]), ("threshold", 2), ("threshold", True), ("version", 2)):
        with pytest.raises(ConfigError if type(value) is not bool and name != "version" else Exception):
            Terms.from_json({**terms, name: value})
        with pytest.raises(Exception, match="secure aggregation"):
            node.keys(({"version": 1, "session": terms["session"], "phase": KEYS, "terms": {**terms, name: value}}, {}))
    assert not list((tmp_path / "node-0").glob("session*"))


def test_masks_are_the_stream_of_aes_in_counter_mode() -> None:
    """The known answer of AES-256 for a zero block and the zero key, and of the block after it."""
    vector = words(np.zeros(40_000, np.int64))
    add_masks(vector, [(bytes(32), 1)])
    assert vector[:2].astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    once = vector.copy()
    assert np.unique(once).size == once.size  # pieces do not repeat
    add_masks(vector, [(bytes(32), -1), (b"\1" * 32, 1), (b"\1" * 32, -1)])
    assert not vector.any()


def test_masks_of_a_long_vector_begin_like_those_of_a_short_one() -> None:
    long, short = words(np.zeros(40_001, np.int64)), words(np.zeros(17, np.int64))
    for vector in (long, short):
        add_masks(vector, [(b"k" * 32, 1)])
    assert (long[:17] == short).all()


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 32769])
def test_masks_cover_the_whole_vector(size: int) -> None:
    vector = words(np.zeros(size, np.int64))
    add_masks(vector, [(b"k" * 32, 1)])
    assert vector.all()
