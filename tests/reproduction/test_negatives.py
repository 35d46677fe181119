from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest

from fedpa.errors import DataError
from fedpa.reproduction.negatives import PROTOCOLS, Pool, Protocol, evaluation_negatives, training_rows
from fedpa.reproduction.ratings import Ratings

ITEMS = 14


def small() -> Ratings:
    """User 0: test 5, validation 9, training 0 and 13; user 1: test 0, validation 1, training 2, 3 and 7."""
    items = {0: [5, 9, 0, 13], 1: [0, 1, 2, 3, 7]}
    rows = [(user, item, -place) for user, own in items.items() for place, item in enumerate(own)]
    # A third user has the others, so that they are in the catalogue.
    rows += [(2, item, -item) for item in (4, 6, 8, 10, 11, 12)]
    return Ratings.of("some", pl.DataFrame(rows, schema=["user_id", "item_id", "time"], orient="row"))


MAY_BE_DRAWN: dict[Protocol, dict[int, set[int]]] = {
    "published": {0: set(range(ITEMS)) - {0, 5, 9, 13}, 1: set(range(ITEMS)) - {0, 1, 2, 3, 7}},
    "after-split": {0: set(range(ITEMS)) - {0, 13}, 1: set(range(ITEMS)) - {2, 3, 7}},
}


def drawn(protocol: Protocol, rounds: int) -> Iterator[tuple[int, int, list[int]]]:
    """User, training positive and its negatives."""
    ratings = small()
    pool = Pool.of(ratings, protocol)
    for number in range(rounds):
        rows = training_rows(ratings, pool, seed=3, round_number=number)
        blocks = zip(rows.user.reshape(-1, 5), rows.item.reshape(-1, 5), rows.label.reshape(-1, 5), strict=True)
        for user, item, label in blocks:
            assert len(set(user.tolist())) == 1
            assert label.tolist() == [1, 0, 0, 0, 0]
            yield int(user[0]), int(item[0]), item[1:].tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_training_negatives_are_all_that_may_be_drawn_and_equally_likely(protocol: Protocol) -> None:
    rounds = 300
    counts = np.zeros((2, ITEMS), int)
    positives = {0: {0, 13}, 1: {2, 3, 7}}
    found: dict[int, set[int]] = {0: set(), 1: set()}
    for user, positive, negatives in drawn(protocol, rounds):
        if user == 2:
            continue
        found[user].add(positive)
        assert len(set(negatives)) == 4
        counts[user, negatives] += 1
    assert found == positives
    for user, may in MAY_BE_DRAWN[protocol].items():
        assert set(np.flatnonzero(counts[user]).tolist()) == may
        # Each is among the four with the same chance: a binomial count, within five standard deviations.
        times, share = rounds * len(positives[user]), 4 / len(may)
        spread = np.sqrt(times * share * (1 - share))
        assert all(abs(counts[user, item] - times * share) < 5 * spread for item in may)


def test_the_protocols_differ_in_the_held_out_items_alone() -> None:
    for user, held_out in ((0, {5, 9}), (1, {0, 1})):
        assert MAY_BE_DRAWN["after-split"][user] - MAY_BE_DRAWN["published"][user] == held_out
    ratings = small()
    sizes = [Pool.of(ratings, protocol).size.tolist() for protocol in PROTOCOLS]
    assert sizes == [[12, 11, 10], [10, 9, 8]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluation_negatives(protocol: Protocol) -> None:
    ratings = small()
    seen_in_validation: list[set[int]] = [set(), set()]
    for seed in range(200):
        validation, test = evaluation_negatives(ratings, protocol, sampled=4, seed=seed)
        for user, rated in ((0, {0, 5, 9, 13}), (1, {0, 1, 2, 3, 7})):
            assert len(set(test[user])) == len(set(validation[user])) == 4
            assert not rated & set(test[user].tolist())
            seen_in_validation[user] |= set(validation[user].tolist())
            if protocol == "published":
                assert not set(test[user].tolist()) & set(validation[user].tolist())
    # After the split it is not known that the test item is one of the user's.
    test_items = [{5}, {0}] if protocol == "after-split" else [set(), set()]
    for user, rated in ((0, {0, 5, 9, 13}), (1, {0, 1, 2, 3, 7})):
        assert seen_in_validation[user] == set(range(ITEMS)) - rated | test_items[user]


def test_another_round_draws_others_and_the_same_round_the_same() -> None:
    ratings = small()
    pool = Pool.of(ratings, "after-split")
    first, again, other = (training_rows(ratings, pool, seed=0, round_number=n).item for n in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert first[::5].tolist() == other[::5].tolist()


def test_faults() -> None:
    ratings = small()
    with pytest.raises(DataError, match="user 2 has 8 items left to be judged, expected at least 9"):
        evaluation_negatives(ratings, "after-split", sampled=9, seed=0)
    with pytest.raises(DataError, match="expected at least 10"):
        evaluation_negatives(ratings, "published", sampled=5, seed=0)
