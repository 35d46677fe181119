"""The folder that Flower's commands take is one that Flower accepts, and its keys are good for what they are for."""

from __future__ import annotations

import io
import ipaddress
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key, load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve
from typer.testing import CliRunner

from fedpa.cli.flower import flower_verbs
from fedpa.drivers.flower.keys import make_keys
from fedpa.drivers.flower.options import DEFAULTS, Options
from fedpa.drivers.flower.project import new_project
from fedpa.errors import ArtifactError, ConfigError

GIVEN = {"dataset": "data", "out": "run", "foundation": "foundation", "settings": "lr=0.1 groups=[a,b]"}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_flower_accepts_the_project(tmp_path: Path) -> None:
    folder = new_project(tmp_path / "app", GIVEN, superlink="127.0.0.1:9000", ca=None)
    config, warnings = load_and_validate(folder / "pyproject.toml", check_module=True)
    assert not warnings
    apps = config["tool"]["flwr"]["app"]["components"]
    assert apps["serverapp"] == "fedpa.drivers.flower.server:app"
    found = config["tool"]["flwr"]["app"]["config"]
    assert found.keys() == DEFAULTS.keys()
    options = Options.of(found)
    assert options.out == Path("run").resolve() and options.foundation == str(Path("foundation").resolve())
    assert options.settings == {"lr": 0.1, "groups": ["a", "b"]}
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder)))
    assert "pyproject.toml" in bundle.namelist()
    assert not [name for name in bundle.namelist() if "config.toml" in name], "where the SuperLink is stays here"


def test_rounds_are_a_setting() -> None:
    assert Options.of(GIVEN | {"rounds": 3}).settings["rounds"] == 3
    assert Options.of(GIVEN | {"deadline": 5}).deadline == 5.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "dataset is empty"),
        ({"color": "red"}, "unknown keys color"),
        ({"seed": "1"}, "seed is '1', expected int"),
        ({"overwrite": 1}, "overwrite is 1, expected bool"),
        ({"min-nodes": 0}, "min-nodes is 0, expected 1 or more"),
        ({"deadline": 0.0}, "deadline is 0.0"),
        ({"log": "xml"}, "expected text or json"),
        ({"settings": "lr='0.1"}, "settings cannot be read"),
    ],
)
def test_odd_options_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Options.of(GIVEN | changes)


def test_keys_are_a_chain_that_names_the_hosts(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", nodes=2, hosts=["127.0.0.1", "localhost"])
    root, leaf = (
        x509.load_pem_x509_certificate((tmp_path / "keys" / n).read_bytes()) for n in ("ca.crt", "server.pem")
    )
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    own = load_pem_private_key((tmp_path / "keys" / "server.key").read_bytes(), None)
    assert own.public_key() == leaf.public_key()
    for node in range(2):
        private = load_ssh_private_key((tmp_path / "keys" / f"node-{node}").read_bytes(), None)
        public = load_ssh_public_key((tmp_path / "keys" / f"node-{node}.pub").read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey) and uses_nist_ec_curve(public)
        assert private.public_key() == public
        assert (tmp_path / "keys" / f"node-{node}").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ArtifactError, match="already exists"):
        make_keys(tmp_path / "keys", nodes=1, hosts=["127.0.0.1"])
    with pytest.raises(ConfigError, match="0 hosts"):
        make_keys(tmp_path / "other", nodes=1, hosts=[])


def test_verbs_write_what_they_say(tmp_path: Path) -> None:
    done = CliRunner().invoke(flower_verbs, ["keys", str(tmp_path / "keys"), "--nodes", "1"])
    assert done.exit_code == 0, done.output
    line = [
        "new",
        tmp_path / "app",
        "--dataset",
        "d",
        "--out",
        "r",
        "--set",
        "adam_betas=[0.9, 0.99]",
        "--min-nodes",
        4,
    ]
    more = ["--ca", tmp_path / "keys" / "ca.crt", "--superlink", "h:1", "--json"]
    done = CliRunner().invoke(flower_verbs, [str(part) for part in [*line, *more]])
    assert done.exit_code == 0, done.output
    made = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert (made["min-nodes"], made["foundation"]) == (4, "")
    assert Options.of(made).settings == {"adam_betas": [0.9, 0.99]}
    where = tomllib.loads((tmp_path / "app" / ".flwr" / "config.toml").read_text())["superlink"]
    assert where[where["default"]] == {"address": "h:1", "root-certificates": str(tmp_path / "keys" / "ca.crt")}
