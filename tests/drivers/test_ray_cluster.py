"""Clusters of Ray: the one that was there before stays, a machine that dies is replaced, a wrong address is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from fedpa.drivers.ray_cluster import Cluster
from fedpa.errors import ConfigError
from on_ray import ROUNDS, SETTINGS, actors, found, run, started
from prepared import Small, small
from processes import free_port, still_running, until

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Ray on loopback, with a token and a folder of its own."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {
        **os.environ,
        "HOME": folder,
        "RAY_TMPDIR": folder,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
    }
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def head(environment: dict[str, str]) -> Iterator[tuple[str, psutil.Process]]:
    """The head of a cluster, as a person starts it."""
    port = free_port()
    options = ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    command = [*RAY, "start", "--head", "--block", *options, "--object-store-memory=100000000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    try:
        healthy = [*RAY, "health-check", "--address", f"127.0.0.1:{port}"]

        def up() -> bool:
            asked = subprocess.run(healthy, env=environment, check=False, capture_output=True, timeout=120)
            return asked.returncode == 0

        until(up, 180, "the head of the cluster", pause=0.5)
        yield f"127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        family += psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(30)
        for child in still_running(family, within=30):
            child.kill()


@pytest.mark.slow
def test_a_cluster_that_was_there_before_stays(made: Small, environment: dict[str, str], tmp_path: Path) -> None:
    expected = run(made, tmp_path / "local", "local")
    with head(environment) as (address, process):
        for name, given in (("given", address), ("auto", "auto")):
            process_of_run = started(made, tmp_path / name, given, env=environment, stderr=subprocess.PIPE)
            out, err = process_of_run.communicate(timeout=300)
            assert (out, process_of_run.returncode) == ("finished\n", 0), err
            assert found(tmp_path / name) == expected
            assert still_running(actors(process.pid), within=30) == []
        subprocess.run(
            [*RAY, "health-check", "--address", address], env=environment, check=True, capture_output=True, timeout=120
        )
        stranger = started(
            made, tmp_path / "stranger", address, env=environment | {"RAY_AUTH_TOKEN": "1" * 64}, stderr=subprocess.PIPE
        )
        assert "it is no Ray cluster, or does not take our token" in stranger.communicate(timeout=300)[1]


_TWO_MACHINES = """
import sys, threading, time
from pathlib import Path
import psutil
from ray.cluster_utils import Cluster
from fedpa import load_dataset, load_foundation
from fedpa.adaptation import adapt
from on_ray import actors, wait_for_round

dataset, foundation, out, options = sys.argv[1:]
out, over = Path(out), threading.Event()
small = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
machines = [cluster.add_node(**small) for _ in range(2)]

def lose_a_machine():
    wait_for_round(out, 2, lambda: not over.is_set())
    with_actor = [one for one in machines if actors(one.all_processes["raylet"][0].process.pid)]
    cluster.remove_node(with_actor[0], allow_graceful=False)
    print("lost", flush=True)

thread = threading.Thread(target=lose_a_machine)
thread.start()
adapt(load_foundation(foundation), load_dataset(dataset), out=out, foundation_path=foundation, driver="ray", shards=2,
      address=cluster.address, **eval(options))
over.set()
thread.join()
cluster.shutdown()
print("finished")
"""


@pytest.mark.slow
def test_a_machine_that_dies_is_replaced_by_another(made: Small, environment: dict[str, str], tmp_path: Path) -> None:
    arguments = [made.dataset.path, made.foundation_path, tmp_path / "run", repr({"rounds": ROUNDS, **SETTINGS})]
    done = subprocess.run(
        [sys.executable, "-c", _TWO_MACHINES, *map(str, arguments)],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["lost", "finished"]
    assert "died and is started anew" in done.stderr
    assert found(tmp_path / "run") == run(made, tmp_path / "local", "local")


@pytest.mark.slow
def test_ray_of_our_own_leaves_nothing_behind(made: Small, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = started(made, tmp_path / "run", env=environment | {"HOME": str(tmp_path)}, stderr=subprocess.PIPE)
    listening: list[Any] = []
    family: list[psutil.Process] = []
    while process.poll() is None and len(actors(process.pid)) < 2:
        time.sleep(0.1)
    family += psutil.Process(process.pid).children(recursive=True)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            listening += [one.laddr.ip for one in child.net_connections("inet") if one.status == "LISTEN"]
    out, err = process.communicate(timeout=300)
    assert (out, err, process.returncode) == ("finished\n", "", 0)
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert listening
    assert still_running(family, within=20) == []
    assert not [*Path(tempfile.gettempdir()).glob(f"fedpa-ray-{process.pid}-*")]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "somewhere", "http://127.0.0.1:8265", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected auto or host:port"):
        Cluster(address, 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_where_nothing_answers_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"address '{address}': no Ray cluster answers there"):
        Cluster(address, 1)


@pytest.mark.slow
def test_an_address_where_something_else_answers_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConfigError, match="it is no Ray cluster"):
        Cluster(f"127.0.0.1:{other.getsockname()[1]}", 1)


def test_without_a_cluster_there_is_no_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="address 'auto': no Ray cluster answers there"):
        Cluster("auto", 1)


def test_a_cluster_that_was_noted_and_is_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    with pytest.raises(ConfigError, match=r"address '127\.0\.0\.1:1': no Ray cluster answers there"):
        Cluster("auto", 1)


_IMPORTS = """
import ray
from fedpa.drivers.ray_cluster import Cluster
Cluster(None, 1).leave()
"""


@pytest.mark.parametrize("mode", [pytest.param("token", marks=pytest.mark.slow), "disabled"])
def test_a_process_that_imported_ray_before_has_a_token_or_is_told_why_not(mode: str) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": mode}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (mode == "token"), done.stderr
    assert ("this process imported Ray before" in done.stderr) == (mode != "token")
