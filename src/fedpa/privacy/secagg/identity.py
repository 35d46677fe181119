"""Long-lived keys of nodes: round keys are signed with them, so that a server cannot put its own in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpa.errors import ConfigError
from fedpa.privacy.secagg.terms import ProtocolError, Terms

try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from flwr.supercore.primitives.asymmetric import sign_message, verify_signature
except ImportError as error:
    raise ConfigError(f"secure aggregation needs Flower ({error})", "pip install fedpa[flower]") from error

__all__ = ["Identity", "Peers"]

_MAKE = "make a key with `ssh-keygen -t ecdsa -b 384 -N '' -f KEY`"


def _text(terms: Terms, node: int, keys: Mapping[str, bytes]) -> bytes:
    """What is signed: the terms, whose keys they are, and the keys."""
    parts = [b"fedpa secure aggregation round keys", terms.digest, str(node).encode(), *(keys[k] for k in sorted(keys))]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@dataclass(frozen=True)
class Identity:
    """A node's own long-lived key.

    Parameters
    ----------
    private : EllipticCurvePrivateKey
    """

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def read(cls, path: Path) -> Identity:
        """Read a private key without a passphrase, in OpenSSH's or PEM form; a SuperNode's own will do.

        Raises
        ------
        ConfigError
            If the file is missing or not an elliptic-curve private key.
        """
        content = _content(path)
        for load in (serialization.load_ssh_private_key, serialization.load_pem_private_key):
            try:
                key = load(content, None)
            except (ValueError, TypeError):
                continue
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return cls(key)
        raise ConfigError(f"{path}: not an elliptic-curve private key without a passphrase", _MAKE)

    @property
    def public(self) -> bytes:
        """Its public key, as a line of OpenSSH's form without comment."""
        return _line(self.private.public_key())

    def sign(self, terms: Terms, node: int, keys: Mapping[str, bytes]) -> bytes:
        """Sign a node's keys of a session."""
        return sign_message(self.private, _text(terms, node, keys))


@dataclass(frozen=True)
class Peers:
    """The long-lived public keys of all nodes that one is ready to be summed with.

    Parameters
    ----------
    keys : frozenset of bytes
        As `Identity.public` gives them.
    """

    keys: frozenset[bytes]

    @classmethod
    def read(cls, path: Path) -> Peers:
        """Read a file of public keys, one per line in OpenSSH's form: the nodes' ``.pub`` files, one after another.

        Raises
        ------
        ConfigError
            If the file is missing or a line is not an elliptic-curve public key; names the line.
        """
        keys = set()
        for number, line in enumerate(_content(path).splitlines(), 1):
            if not line.strip() or line.startswith(b"#"):
                continue
            keys.add(_line(_public(line, f"{path}, line {number}")))
        if not keys:
            raise ConfigError(f"{path}: holds no public key", "put the nodes' .pub files into it, one after another")
        return cls(frozenset(keys))

    def check(self, terms: Terms, signed: Mapping[int, tuple[Mapping[str, bytes], bytes, bytes]]) -> None:
        """Check that every node's keys are signed by a peer, each by another one.

        Parameters
        ----------
        terms : Terms
        signed : mapping of int to (mapping of str to bytes, bytes, bytes)
            By node: its keys, its long-lived public key, its signature.

        Raises
        ------
        ProtocolError
            Names the node whose keys are not.
        """
        seen: dict[bytes, int] = {}
        for node, (keys, public, signature) in signed.items():
            if public not in self.keys:
                raise ProtocolError(
                    f"node {node} is not among this node's peers",
                    "add its public key to the peers file of every node, if you know it",
                )
            if public in seen:
                raise ProtocolError(f"nodes {seen[public]} and {node} show the same long-lived key")
            seen[public] = node
            if not verify_signature(_public(public, f"node {node}"), _text(terms, node, keys), signature):
                raise ProtocolError(f"the keys of node {node} are not signed by it; they were replaced")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})", _MAKE) from None


def _public(line: bytes, where: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(line)
    except (ValueError, TypeError):
        key = None
    except Exception as error:  # cryptography's UnsupportedAlgorithm, for a key of another kind
        raise ConfigError(f"{where}: {error}", _MAKE) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{where}: not an elliptic-curve public key in OpenSSH's form", _MAKE)
    return key


def _line(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
