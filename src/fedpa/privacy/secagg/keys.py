"""Keys, shares and seals, from Flower's own secure aggregation.

Key agreement is elliptic-curve Diffie-Hellman on P-384 with HKDF, secret sharing is Shamir's over GF(2^128), and shares
travel in Fernet seals (AES-128-CBC and HMAC-SHA-256).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fedpa.errors import ConfigError
from fedpa.privacy.secagg.shamir import combined
from fedpa.privacy.secagg.terms import ProtocolError, Terms

try:
    from cryptography.fernet import InvalidToken
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
    from flwr.common.secure_aggregation.crypto.shamir import create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_utils import (
        share_keys_plaintext_concat,
        share_keys_plaintext_separate,
    )
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
except ImportError as error:
    raise ConfigError(f"secure aggregation needs Flower ({error})", "pip install fedpa[flower]") from error

__all__ = ["SEED_BYTES", "KeyPair", "combine", "commitment", "mask_key", "seal", "split", "unseal"]

SEED_BYTES = 32
_SCALAR_BYTES = 48
_CURVE = ec.SECP384R1


@dataclass(frozen=True)
class KeyPair:
    """A key pair of one session.

    Attributes
    ----------
    secret : bytes
        The private number [48 bytes]; a quarter of the shares that its PEM would take.
    public : bytes
        PEM.
    """

    secret: bytes
    public: bytes

    @classmethod
    def new(cls) -> KeyPair:
        """A fresh pair."""
        private, public = generate_key_pairs()
        return cls(private.private_numbers().private_value.to_bytes(_SCALAR_BYTES, "big"), public_key_to_bytes(public))

    @classmethod
    def of(cls, secret: bytes) -> KeyPair:
        """The pair of a private number.

        Raises
        ------
        ProtocolError
            If there is no such private number.
        """
        try:
            private = ec.derive_private_key(int.from_bytes(secret, "big"), _CURVE())
        except ValueError:
            raise ProtocolError("what the shares give is not a private key") from None
        return cls(secret, public_key_to_bytes(private.public_key()))

    def agree(self, other: bytes) -> bytes:
        """The key that this secret and another's public key give, as does the other way round.

        Raises
        ------
        ProtocolError
            If the other is not a public key of this curve.
        """
        private = ec.derive_private_key(int.from_bytes(self.secret, "big"), _CURVE())
        try:
            public = bytes_to_public_key(other)
            if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, _CURVE):
                raise ValueError
            return generate_shared_key(private, public)
        except ValueError:
            raise ProtocolError("a public key is not one of the curve P-384") from None


def _derive(secret: bytes, terms: Terms, label: str) -> bytes:
    info = b"fedpa secure aggregation " + label.encode() + b"\0" + terms.digest
    return HKDFExpand(hashes.SHA256(), 32, info).derive(secret)


def mask_key(secret: bytes, terms: Terms, first: int, second: int) -> bytes:
    """The key [32 bytes] of the mask between two nodes, whichever comes first; twice the same node: its own mask."""
    low, high = sorted((first, second))
    return _derive(secret, terms, f"mask {low} {high}")


def commitment(seed: bytes, terms: Terms, node: int) -> bytes:
    """What a node publishes of its seed [32 bytes], so that a seed put together from shares can be checked."""
    return hashlib.sha256(
        b"fedpa secure aggregation seed\0" + terms.digest + str(node).encode() + b"\0" + seed
    ).digest()


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Shares of a secret, one per holder; any `threshold` of them give it, fewer nothing."""
    return create_shares(secret, threshold, holders)


def combine(shares: Sequence[bytes]) -> bytes:
    """The secret of as many shares as it takes.

    Raises
    ------
    ProtocolError
        If they are not shares of one secret; not every mismatch shows, so compare the result with what is known of it.
    """
    try:
        return combined(shares)
    except ValueError:
        raise ProtocolError("shares of different secrets") from None


def seal(key: bytes, terms: Terms, source: int, target: int, seed_share: bytes, key_share: bytes) -> bytes:
    """Shares for one node, that only it can read."""
    return encrypt(key, terms.digest + share_keys_plaintext_concat(source, target, seed_share, key_share))


def unseal(key: bytes, terms: Terms, source: int, target: int, sealed: bytes) -> tuple[bytes, bytes]:
    """The shares of a seed and of a key that a node sealed.

    Raises
    ------
    ProtocolError
        If it was altered, or sealed by another node, for another one or under other terms.
    """
    try:
        plain = decrypt(key, sealed)
    except InvalidToken:
        raise ProtocolError(f"the shares from node {source} were altered on their way") from None
    size = len(terms.digest)
    found_source, found_target, seed_share, key_share = share_keys_plaintext_separate(plain[size:])
    if plain[:size] != terms.digest or (found_source, found_target) != (source, target):
        raise ProtocolError(f"the shares from node {source} belong to another session or node")
    return seed_share, key_share
