"""The node's side of a secure sum.

Bonawitz et al., *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, CCS 2017, figure 4, over the
graph of masks of Bell et al., *Secure Single-Server Aggregation with (Poly)Logarithmic Overhead*, CCS 2020.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpa.errors import ConfigError
from fedpa.privacy.secagg.identity import Identity, Peers
from fedpa.privacy.secagg.keys import SEED_BYTES, KeyPair, commitment, mask_key, seal, split, unseal
from fedpa.privacy.secagg.masks import add_masks, words
from fedpa.privacy.secagg.message import INPUT, KEYS, SHARES, UNMASK, Found, Message
from fedpa.privacy.secagg.terms import ProtocolError, Terms
from fedpa.privacy.secagg.vault import Vault

__all__ = ["SecureNode"]

Ints = npt.NDArray[np.int64]


class SecureNode:
    """Answers the four requests of a session, each perhaps in a new process.

    What it must remember lies in a `Vault`. Private keys and the seed are deleted when the vector has been masked, and
    the shares of others before any of them is shown, so that nothing is answered twice.

    Parameters
    ----------
    folder : Path
        The node's own, for its owner alone.
    node : int
        Its number in the roster.
    identity : Identity, optional
        Signs the round keys.
    peers : Peers, optional
        Whose signed keys alone are accepted. Without them a server that lies about keys learns what it likes.
    """

    def __init__(
        self, folder: Path, node: int, *, identity: Identity | None = None, peers: Peers | None = None
    ) -> None:
        self.vault = Vault(folder)
        self.node = node
        self.identity = identity
        self.peers = peers
        if peers is not None and (identity is None or identity.public not in peers.keys):
            raise ConfigError(
                "secure aggregation: this node checks its peers' signatures, but its own key is not among theirs",
                "give it its private key too, and put its public key into the peers file of every node",
            )

    def keys(self, request: Found) -> Message:
        """Draw key pairs for a session, and forget an earlier session that did not end.

        Raises
        ------
        ProtocolError, ConfigError
            If the terms are not acceptable or do not name this node.
        """
        message = Message.read(request, KEYS)
        terms = Terms.from_json(message.header.get("terms"))
        if message.header.get("session") != terms.session or self.node not in terms.roster:
            raise ProtocolError(f"the request is not for node {self.node}")
        with self.vault.locked():
            self.vault.close()
            mask, share = KeyPair.new(), KeyPair.new()
            self.vault.save(
                {
                    "terms": terms.to_json(),
                    "stage": KEYS,
                    "mask_secret": mask.secret.hex(),
                    "share_secret": share.secret.hex(),
                }
            )
        reply = Message.new(terms.session, KEYS)
        public = {"mask": mask.public, "share": share.public}
        reply.arrays.update(public)
        if self.identity is not None:
            reply.arrays["identity"] = self.identity.public
            reply.arrays["signature"] = self.identity.sign(terms, self.node, public)
        return reply

    def shares(self, request: Found) -> Message:
        """Share the secrets of this session with those whose keys came.

        Raises
        ------
        ProtocolError
            If they are too few, alike or not signed by peers, or this node's own are not as it sent them.
        """
        with self.vault.locked():
            session, terms, message = self._open(request, SHARES, after=KEYS)
            near = terms.holders(self.node)
            masks, shares = message.get("mask", near), message.get("share", near)
            own_mask = KeyPair.of(bytes.fromhex(session["mask_secret"]))
            own_share = KeyPair.of(bytes.fromhex(session["share_secret"]))
            if masks.get(self.node) != own_mask.public or shares.get(self.node) != own_share.public:
                raise ProtocolError("the server shows other keys of this node than it sent")
            if masks.keys() != shares.keys() or len({*masks.values(), *shares.values()}) < 2 * len(masks):
                raise ProtocolError("public keys of different nodes are missing or alike")
            _enough(len(masks), terms.threshold, "whose keys came")
            names: dict[int, str] = {}
            if self.peers is not None:
                identities, signatures = message.get("identity", near), message.get("signature", near)
                pairs = {node: {"mask": masks[node], "share": shares[node]} for node in masks}
                self.peers.check(
                    terms, {n: (keys, identities.get(n, b""), signatures.get(n, b"")) for n, keys in pairs.items()}
                )
                if terms.degree == len(terms.roster) - 1:
                    names = {node: hashlib.sha256(key).hexdigest() for node, key in identities.items()}
            seed, holders = secrets.token_bytes(SEED_BYTES), sorted(masks)
            seed_shares = dict(zip(holders, split(seed, terms.threshold, len(holders)), strict=True))
            key_shares = dict(zip(holders, split(own_mask.secret, terms.threshold, len(holders)), strict=True))
            channels = {node: own_share.agree(shares[node]) for node in holders if node != self.node}
            self.vault.save(
                {
                    **{name: session[name] for name in ("terms", "mask_secret")},
                    "stage": SHARES,
                    "seed": seed.hex(),
                    "own_share": seed_shares[self.node].hex(),
                    "names": names,
                    "channels": {node: key.hex() for node, key in channels.items()},
                    "masks": {node: masks[node].hex() for node in channels},
                }
            )
        reply = Message.new(terms.session, SHARES)
        reply.arrays["commitment"] = commitment(seed, terms, self.node)
        reply.put(
            "sealed",
            {
                node: seal(key, terms, self.node, node, seed_shares[node], key_shares[node])
                for node, key in channels.items()
            },
        )
        return reply

    def masked(self, request: Found, vector: Ints | Callable[[Terms], Ints]) -> Message:
        """Mask a vector, which leaves the node in this form alone.

        Parameters
        ----------
        request : (mapping, mapping)
        vector : ndarray of int64, shape ``[length]``, or a function of the terms that gives it
            Whatever must not leave the node has been checked in it; masked values cannot be inspected.

        Raises
        ------
        ProtocolError
            If too few nodes sent shares, one of them was altered, the vector is not of the declared length or was
            summed over others before.
        """
        with self.vault.locked():
            session, terms, message = self._open(request, INPUT, after=SHARES)
            channels = {int(node): bytes.fromhex(key) for node, key in session["channels"].items()}
            sealed = message.get("sealed", channels)
            _enough(len(sealed) + 1, terms.threshold, "who shared their secrets")
            held = {node: unseal(channels[node], terms, node, self.node, content) for node, content in sealed.items()}
            values = words(vector(terms) if callable(vector) else vector)
            if len(values) != terms.length:
                raise ProtocolError(f"a vector of {len(values)} where {terms.length} were declared")
            digest = hashlib.sha256(values.data).hexdigest()
            before = self.vault.released(_entry(session, terms, digest))
            full = terms.degree == len(terms.roster) - 1
            if before is not None and full and not set(before) <= set(_names(session, {self.node, *held})):
                raise _summed(before)
            own, seed = KeyPair.of(bytes.fromhex(session["mask_secret"])), bytes.fromhex(session["seed"])
            masks = [(mask_key(seed, terms, self.node, self.node), 1)]
            for node in held:
                agreed = own.agree(bytes.fromhex(session["masks"][str(node)]))
                masks.append((mask_key(agreed, terms, self.node, node), 1 if self.node < node else -1))
            # On disk before the vector is masked: these masks are never put on a second one.
            self.vault.save(
                {
                    "terms": session["terms"],
                    "stage": INPUT,
                    "vector": digest,
                    "names": session["names"],
                    "own_share": session["own_share"],
                    "held": {node: [share.hex() for share in pair] for node, pair in held.items()},
                }
            )
        add_masks(values, masks)
        reply = Message.new(terms.session, INPUT)
        reply.arrays["vector"] = values
        return reply

    def unmask(self, request: Found) -> Message:
        """Show shares of the seeds of those who stayed and of the keys of those who did not, and end the session.

        Of each node one of both is shown, whatever the server says: the request is a single list.

        Raises
        ------
        ProtocolError
            If this node is not among those who stayed, they are too few, one of them never shared its secrets, or the
            vector was summed over others before.
        """
        with self.vault.locked():
            session, terms, message = self._open(request, UNMASK, after=INPUT)
            stayed = message.header.get("stayed")
            if not isinstance(stayed, list) or any(type(node) is not int for node in stayed):
                raise ProtocolError("the list of those who stayed is missing")
            staying, near = frozenset(stayed), terms.holders(self.node)
            held = {int(node): (bytes.fromhex(a), bytes.fromhex(b)) for node, (a, b) in session["held"].items()}
            if len(staying) < len(stayed) or self.node not in staying or not staying <= frozenset(terms.roster):
                raise ProtocolError("the list of those who stayed does not fit the roster or this node")
            if not staying & near <= {self.node, *held}:
                raise ProtocolError("a node is said to have stayed that never shared its secrets")
            _enough(len(staying), terms.minimum, "who stayed")
            _enough(len(staying & near), terms.threshold, "who stayed near this one")
            entry, names = _entry(session, terms, session["vector"]), _names(session, staying)
            before = self.vault.released(entry)
            if before is not None and before != names:
                raise _summed(before)
            self.vault.release(entry, names)
            self.vault.close()
        reply = Message.new(terms.session, UNMASK)
        own = {self.node: bytes.fromhex(session["own_share"])}
        reply.put("seed", own | {node: pair[0] for node, pair in held.items() if node in staying})
        reply.put("key", {node: pair[1] for node, pair in held.items() if node not in staying})
        return reply

    def forget(self) -> None:
        """Delete what a session left, for instance when it was broken off."""
        with self.vault.locked():
            self.vault.close()

    def _open(self, request: Found, phase: str, *, after: str) -> tuple[dict[str, Any], Terms, Message]:
        """The open session, if the request is the next one of it."""
        session = self.vault.load()
        if session is None:
            raise ProtocolError(f"node {self.node} has no open session; it ended or was never begun")
        terms = Terms.from_json(session["terms"])
        message = Message.read(request, phase, terms.session)
        if session["stage"] != after:
            raise ProtocolError(
                f"request {phase!r} after {session['stage']!r}, where {after!r} must come before; "
                "no request is answered twice"
            )
        return session, terms, message


def _enough(found: int, least: int, who: str) -> None:
    if found < least:
        raise ProtocolError(f"{found} nodes {who}, expected at least {least}")


def _names(session: Mapping[str, Any], nodes: Iterable[int]) -> list[str]:
    """What nodes are called in the list of what was summed: by their long-lived keys, if those are pinned."""
    return sorted(session["names"].get(str(node), str(node)) for node in nodes)


def _entry(session: Mapping[str, Any], terms: Terms, digest: str) -> str:
    """A vector's name in that list; in each run numbers stand for other nodes, long-lived keys for the same ones."""
    return digest if session["names"] else f"{terms.run}:{digest}"


def _summed(before: list[str]) -> ProtocolError:
    return ProtocolError(
        f"these very values were summed over {len(before)} nodes before, not the same ones; a second sum would give "
        "single nodes away by subtraction",
        "bring the same nodes back and try again",
    )
