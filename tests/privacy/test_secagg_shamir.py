"""Secrets from shares are those that Flower puts together."""

from __future__ import annotations

import pytest
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpa.privacy.secagg.shamir import combined


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=1, max_size=70), st.integers(2, 6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, threshold: int, more: int, random) -> None:  # type: ignore[no-untyped-def]
    shares = create_shares(secret, threshold, threshold + more)
    some = random.sample(shares, threshold)
    assert combined(some) == secret == combine_shares(some)


def test_as_flower_puts_many_shares_together() -> None:
    shares = create_shares(bytes(range(48)), 34, 50)
    assert combined(shares[10:44]) == combine_shares(shares[10:44]) == bytes(range(48))


def test_what_are_no_shares_of_one_secret_is_refused() -> None:
    shares = create_shares(b"s" * 32, 3, 5)
    other = create_shares(b"long" * 32, 3, 5)
    for wrong in (
        [shares[0], shares[0], shares[1]],
        [shares[0], shares[1], other[2]],
        [shares[0], shares[1], bytes(4) + shares[2][4:]],
        [share[:-1] for share in shares[:3]],
        [share[:4] for share in shares[:3]],
        shares[:2],
    ):
        with pytest.raises(ValueError, match="shares of"):
            combined(wrong)
