"""Keys and certificates for a SuperLink and its SuperNodes, for a first deployment.

A CA of one's own signs the SuperLink's certificate, and is then thrown away: whoever has it could stand in for the
SuperLink. Every node gets a key on the curve that Flower asks for; its private half belongs on the node alone.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpa.artifacts import publish
from fedpa.errors import ConfigError

__all__ = ["make_keys"]

_PRIVATE = 0o600


def make_keys(
    out: Path, *, nodes: int, hosts: Sequence[str], days: int = 365, overwrite: bool = False
) -> dict[str, Path]:
    """Write ``ca.crt``, ``server.pem``, ``server.key`` and, per node, ``node-0`` and ``node-0.pub``.

    Parameters
    ----------
    out : Path
        Folder to write.
    nodes : int
    hosts : sequence of str
        Names and addresses under which nodes reach the SuperLink.
    days : int
        For how long the certificates are good.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    dict of str to Path
        The files by name.

    Raises
    ------
    ConfigError
        If a number is out of range or there is no host.
    ArtifactError
        If `out` exists or cannot be written.
    """
    if nodes < 0 or days < 1 or not hosts:
        raise ConfigError(
            f"keys: {nodes} nodes, {len(hosts)} hosts, {days} days: expected 0 or more, 1 or more, 1 or more"
        )
    ca, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    root = _certificate("fedpa CA", ca.public_key(), "fedpa CA", ca, days, authority=True)
    leaf = _certificate(hosts[0], server.public_key(), "fedpa CA", ca, days, hosts=hosts)
    files: dict[str, tuple[bytes, int]] = {
        "ca.crt": (root.public_bytes(Encoding.PEM), 0o644),
        "server.pem": (leaf.public_bytes(Encoding.PEM), 0o644),
        "server.key": (server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _PRIVATE),
    }
    for node in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        files[f"node-{node}"] = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), _PRIVATE
        files[f"node-{node}.pub"] = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), 0o644
    with publish(out, overwrite=overwrite) as room:
        for name, (content, mode) in files.items():
            path = room / name
            path.touch(mode=mode)
            path.write_bytes(content)
    return {name: out / name for name in files}


def _certificate(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
    *,
    authority: bool = False,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    usage = {
        "digital_signature": not authority,
        "key_cert_sign": authority,
        "crl_sign": authority,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA384())


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
