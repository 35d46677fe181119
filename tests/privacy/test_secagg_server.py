"""What a server that keeps to the protocol and logs all it sees can learn: the sum, and nothing of one node."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedpa.errors import FedpaError
from fedpa.privacy.secagg.keys import KeyPair, combine, commitment, mask_key
from fedpa.privacy.secagg.masks import Words, add_masks
from fedpa.privacy.secagg.message import INPUT, KEYS, SHARES, UNMASK, Message
from fedpa.privacy.secagg.server import secure_sum
from fedpa.privacy.secagg.terms import AbortError, Terms
from secured import Ints, Nodes, added, terms_for

LENGTH = 3000


def mostly_zeros(nodes: int = 5, shift: int = 0) -> dict[int, Ints]:
    """Each node has one other slot filled, as with groups; the rest are zeros."""
    vectors = {}
    for node in range(nodes):
        vectors[node] = np.zeros(LENGTH, np.int64)
        begin = 100 * ((node + shift) % nodes)
        vectors[node][begin : begin + 100] = node + 1
    return vectors


def masked(group: Nodes) -> dict[int, Words]:
    found = {}
    for node, message in group.said(INPUT).items():
        vector = message.arrays["vector"]
        assert isinstance(vector, np.ndarray)
        found[node] = vector
    return found


def looks_random(vector: Words) -> bool:
    """No zeros, nothing twice, and every bit set in about half of the words."""
    bits = np.unpackbits(vector.view(np.uint8)).reshape(-1, 64).mean(0)
    return bool(vector.all()) and np.unique(vector).size == vector.size and bool((abs(bits - 0.5) < 0.06).all())


def test_no_vector_nor_sum_of_some_shows_in_what_the_server_sees(tmp_path: Path) -> None:
    vectors = mostly_zeros()
    group = Nodes(tmp_path, vectors)
    total, stayed = group.sum()
    assert total.tolist() == added(vectors, stayed).tolist()
    assert not looks_random(total.view(np.uint64))
    seen = masked(group)
    for size in range(1, 5):
        for some in itertools.combinations(seen, size):
            assert looks_random(np.add.reduce([seen[node] for node in some])), some
    for message in [message for _, _, _, message in group.log]:
        for content in message.arrays.values():
            raw = content if isinstance(content, bytes) else content.tobytes()
            assert not any(vector[:400].tobytes()[:64] in raw for vector in vectors.values())


def seeds(group: Nodes, terms: Terms) -> dict[int, bytes]:
    """The seeds of those who stayed, which the server puts together."""
    shown: dict[int, list[bytes]] = {}
    for message in group.said(UNMASK).values():
        for node, share in message.get("seed", terms.roster).items():
            shown.setdefault(node, []).append(share)
    return {node: combine(shares[: terms.threshold]) for node, shares in shown.items()}


def test_single_vectors_stay_masked_when_all_that_was_shown_is_taken_off(tmp_path: Path) -> None:
    vectors = mostly_zeros()
    group = Nodes(tmp_path, vectors)
    group.sum()
    terms = Terms.from_json(group.said(KEYS, "request")[0].header["terms"])
    found = seeds(group, terms)
    assert found.keys() == vectors.keys()
    for node, vector in masked(group).items():
        add_masks(vector, [(mask_key(found[node], terms, node, node), -1)])
        assert looks_random(vector)


def shape(message: Message) -> object:
    """All of a message but what is random in it."""
    header = {k: v for k, v in message.header.items() if k != "session"}
    if "terms" in header:
        header["terms"] = {k: v for k, v in header["terms"].items() if k != "session"}
    arrays = {k: len(v) if isinstance(v, bytes) else (v.dtype, v.shape) for k, v in message.arrays.items()}
    return header, arrays


def test_messages_have_the_same_form_whatever_the_groups(tmp_path: Path) -> None:
    one, other = Nodes(tmp_path / "a", mostly_zeros()), Nodes(tmp_path / "b", mostly_zeros(shift=2))
    one.sum()
    other.sum()
    for first, second in zip(one.log, other.log, strict=True):
        assert first[:3] == second[:3]
        assert shape(first[3]) == shape(second[3])
    zeros = [{node: (vector == 0).tobytes() for node, vector in masked(group).items()} for group in (one, other)]
    assert zeros[0] == zeros[1]


def test_below_the_threshold_nothing_unmasks(tmp_path: Path) -> None:
    vectors = mostly_zeros(6)
    lost = {0, 1}  # threshold 5 of 6
    group = Nodes(tmp_path, vectors, {UNMASK: lost})
    with pytest.raises(AbortError, match="4 of 6 nodes answered phase 'unmask', expected at least 5"):
        group.sum()
    terms = Terms.from_json(group.said(KEYS, "request")[0].header["terms"])
    commitments = {node: message.bytes_of("commitment") for node, message in group.said(SHARES).items()}
    shown = [message.get("seed", terms.roster) for message in group.said(UNMASK).values()]
    assert len(shown) == 4
    for node in terms.roster:
        for size in (1, 2, 3, 4):
            for some in itertools.combinations(shown, size):
                try:
                    guess = combine([shares[node] for shares in some])
                except FedpaError:
                    continue
                assert commitment(guess, terms, node) != commitments[node]
    assert looks_random(np.add.reduce(list(masked(group).values())))


def test_a_late_vector_stays_masked_though_its_key_is_shown(tmp_path: Path) -> None:
    """The key of who is late takes its masks off the others; its own mask, whose seed nobody shows, still hides it."""
    vectors = mostly_zeros()
    group = Nodes(tmp_path, vectors, {UNMASK: {3}})

    def exchange(phase: str, requests: dict[int, Message]) -> Iterator[tuple[int, Message]]:
        return ((node, answer) for node, answer in group.exchange(phase, requests) if (phase, node) != (INPUT, 3))

    terms = terms_for(vectors)
    total, stayed = secure_sum(terms, exchange)
    assert stayed == [0, 1, 2, 4] and total.tolist() == added(vectors, stayed).tolist()
    answers = group.said(UNMASK).values()
    assert all(3 not in message.get("seed", terms.roster) for message in answers)
    shares = [message.get("key", terms.roster)[3] for message in answers]
    pair = KeyPair.of(combine(shares[: terms.threshold]))
    public = {node: message.bytes_of("mask") for node, message in group.said(KEYS).items()}
    assert pair.public == public[3]
    late = masked(group)[3]
    add_masks(late, [(mask_key(pair.agree(public[node]), terms, 3, node), -1 if node > 3 else 1) for node in stayed])
    assert looks_random(late)
