"""With a peers file, a server on the path of the key exchange cannot put keys of its own in their place."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedpa.errors import ConfigError
from fedpa.privacy.secagg.identity import Identity, Peers
from fedpa.privacy.secagg.keys import KeyPair
from fedpa.privacy.secagg.message import INPUT, KEYS, SHARES, Message
from fedpa.privacy.secagg.terms import AbortError
from secured import Nodes, added, drawn

VECTORS = dict(enumerate(drawn(5, 6).values()))
IDENTITIES = {node: Identity(ec.generate_private_key(ec.SECP384R1())) for node in VECTORS}
PEERS = Peers(frozenset(one.public for one in IDENTITIES.values()))


def test_signed_keys_of_peers_are_accepted(tmp_path: Path) -> None:
    total, stayed = Nodes(tmp_path, VECTORS, identities=IDENTITIES, peers=PEERS).sum()
    assert stayed == [0, 1, 2, 3, 4]
    assert total.tolist() == added(VECTORS, stayed).tolist()


def in_the_middle(phase: str, node: int, message: Message) -> Message:
    """Every node is shown the server's keys in the place of node 3's."""
    if phase == SHARES and node != 3:
        message.arrays["mask/3"], message.arrays["share/3"] = KeyPair.new().public, KeyPair.new().public
    return message


def test_a_server_in_the_middle_is_found_by_pinned_keys(tmp_path: Path) -> None:
    group = Nodes(tmp_path, VECTORS, requests=in_the_middle, identities=IDENTITIES, peers=PEERS)
    with pytest.raises(AbortError):
        group.sum()
    assert all("the keys of node 3 are not signed by it" in str(error) for _, _, error in group.errors)
    assert len(group.errors) == 4


def stranger(phase: str, node: int, message: Message) -> Message:
    if phase == KEYS and node == 4:
        del message.arrays["identity"], message.arrays["signature"]
    return message


def doubled(phase: str, node: int, message: Message) -> Message:
    """A node of the server's own, behind another node's long-lived key."""
    if phase == SHARES and node != 4:
        for kind in ("identity", "signature"):
            message.arrays[f"{kind}/4"] = message.arrays[f"{kind}/3"]
    return message


def moved(phase: str, node: int, message: Message) -> Message:
    """Two nodes' keys with their signatures in each other's place."""
    if phase == SHARES and node not in (3, 4):
        for kind in ("mask", "share", "identity", "signature"):
            arrays = message.arrays
            arrays[f"{kind}/3"], arrays[f"{kind}/4"] = arrays[f"{kind}/4"], arrays[f"{kind}/3"]
    return message


@pytest.mark.parametrize(
    ("answers", "requests", "reason"),
    [
        (stranger, None, "not among this node's peers"),
        (None, doubled, "same long-lived key"),
        (None, moved, "not signed by it"),
    ],
)
def test_nodes_that_nobody_vouches_for_are_refused(tmp_path: Path, answers, requests, reason: str) -> None:  # type: ignore[no-untyped-def]
    given = {name: value for name, value in (("answers", answers), ("requests", requests)) if value}
    group = Nodes(tmp_path, VECTORS, identities=IDENTITIES, peers=PEERS, **given)
    with pytest.raises(AbortError):
        group.sum()
    assert any(reason in str(error) for _, _, error in group.errors)


def test_signatures_are_of_one_session(tmp_path: Path) -> None:
    first = Nodes(tmp_path, VECTORS, identities=IDENTITIES, peers=PEERS)
    first.sum()
    old = first.said(KEYS)[3]

    def replay(phase: str, node: int, message: Message) -> Message:
        return Message(message.header, dict(old.arrays)) if (phase, node) == (KEYS, 3) else message

    group = Nodes(tmp_path, VECTORS, identities=IDENTITIES, peers=PEERS, answers=replay)
    with pytest.raises(AbortError):
        group.sum()
    assert any("the keys of node 3 are not signed" in str(error) for _, node, error in group.errors if node != 3)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.OpenSSH, serialization.PrivateFormat.PKCS8])
def test_keys_are_read_as_they_are_made(tmp_path: Path, form: serialization.PrivateFormat) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    path = tmp_path / "key"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    identity = Identity.read(path)
    peers = tmp_path / "peers"
    peers.write_bytes(b"# our nodes\n\n" + identity.public + b" node@here\n" + IDENTITIES[0].public + b"\n")
    assert Peers.read(peers).keys == {identity.public, IDENTITIES[0].public}


def test_files_that_hold_no_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match="cannot be read"):
        Identity.read(path)
    other = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigError, match="elliptic-curve private key"):
        Identity.read(path)
    public = other.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    for content in (b"nonsense\n", public):
        path.write_bytes(IDENTITIES[0].public + b"\n" + content)
        with pytest.raises(ConfigError, match="line 2: not an elliptic-curve public key"):
            Peers.read(path)
    path.write_bytes(b"# nothing\n")
    with pytest.raises(ConfigError, match="no public key"):
        Peers.read(path)


def test_a_node_that_checks_others_must_be_known_itself(tmp_path: Path) -> None:
    for identities in ({}, {0: Identity(ec.generate_private_key(ec.SECP384R1()))}):
        with pytest.raises(ConfigError, match="its own key is not among theirs"):
            Nodes(tmp_path, VECTORS, identities=identities, peers=PEERS).node(0)


def test_the_same_vector_is_not_summed_over_others_in_another_run(tmp_path: Path) -> None:
    """Pinned keys tell nodes apart whatever their numbers; in another run they are numbered anew."""
    Nodes(tmp_path, VECTORS, identities=IDENTITIES, peers=PEERS).sum()
    group = Nodes(tmp_path, VECTORS, {INPUT: {4}}, identities=IDENTITIES, peers=PEERS)
    with pytest.raises(AbortError):
        group.sum(run="0123")
    assert {str(error).split(",")[0] for _, _, error in group.errors} == {
        "secure aggregation: these very values were summed over 5 nodes before"
    }
    for number in range(5):
        (tmp_path / f"node-{number}").rename(tmp_path / f"moved-{number}")
    turned = {node: (node + 1) % 5 for node in range(5)}
    for old, new in turned.items():
        (tmp_path / f"moved-{old}").rename(tmp_path / f"node-{new}")
    same = {turned[node]: vector for node, vector in VECTORS.items()}
    others = {turned[node]: identity for node, identity in IDENTITIES.items()}
    total, _ = Nodes(tmp_path, same, identities=others, peers=PEERS).sum(run="4567")
    assert total.tolist() == added(VECTORS, [0, 1, 2, 3, 4]).tolist()
