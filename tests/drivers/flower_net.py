"""A SuperLink and SuperNodes as real processes on this machine, with TLS and node authentication."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from fedpa.drivers.flower.keys import make_keys
from fedpa.drivers.flower.project import new_project
from processes import free_port, still_running, until

__all__ = ["BIN", "Net", "network"]

BIN = Path(sys.executable).parent
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # How often a process looks for something to start: Flower's default is a second.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
}


class Net:
    """Flower's processes, each in a session of its own with a log, ended by the ids of those that were started.

    Parameters
    ----------
    folder : Path
        For keys, logs, the SuperLink's database and Flower's own files.
    nodes : int
        For how many nodes there are keys.
    apart : bool
        Whether the ServerApp's parent is a process of its own, so that it outlives the SuperLink.
    """

    def __init__(self, folder: Path, nodes: int, *, apart: bool = False) -> None:
        self.folder, self.apart = folder, apart
        self.port = free_port()
        self.keys = folder / "keys"
        make_keys(self.keys, nodes=nodes, hosts=["127.0.0.1"])
        (folder / "logs").mkdir()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.nodes: dict[str, Sequence[object]] = {}
        self._orphans: list[psutil.Process] = []
        self.apps = 0

    @property
    def address(self) -> str:
        """Where the SuperLink is."""
        return f"127.0.0.1:{self.port}"

    def environment(self, name: str) -> dict[str, str]:
        """Of one of the processes; each has Flower's own files in a folder of its own."""
        home = self.folder / "home" / name
        home.mkdir(parents=True, exist_ok=True)
        return {**os.environ, **_QUIET, "PATH": f"{BIN}:{os.environ['PATH']}", "FLWR_HOME": str(home)}

    def start(self, name: str, command: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        """Start a process, whose log goes on if it was started before."""
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(environment or self.environment(name)),
                start_new_session=True,
            )

    def superlink(self) -> None:
        """Start the SuperLink, with its database file, and wait until it listens."""
        command: list[object] = [BIN / "flower-superlink", "--host", "127.0.0.1", "--port", self.port]
        command += ["--ssl-ca-certfile", self.keys / "ca.crt", "--ssl-certfile", self.keys / "server.pem"]
        command += ["--ssl-keyfile", self.keys / "server.key", "--enable-supernode-auth"]
        command += ["--database", self.folder / "superlink.db", "--disable-runtime-dependency-installation"]
        command += ["--isolation", "process" if self.apart else "subprocess"]
        self.start("superlink", command)
        until(self._listens, 60, "the SuperLink")
        if self.apart and "superexec" not in self.processes:
            self.superexec()

    def superexec(self) -> None:
        """Start the process that starts the ServerApp, where it is one of its own."""
        command: list[object] = [BIN / "flower-superexec", "--runtime-api-address", self.address]
        self.start("superexec", [*command, "--root-certificates", self.keys / "ca.crt"], self.environment("superlink"))

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
            return True
        return False

    def register(self, node: int) -> None:
        """Tell the SuperLink the public key of a node."""
        self.flwr("supernode", "register", self.keys / f"node-{node}.pub", "fedpa", "--name", f"node-{node}")

    def node(self, node: int, config: Mapping[str, object], *, key: int | None = None) -> None:
        """Start a SuperNode."""
        text = " ".join(f'{name}="{value}"' for name, value in config.items())
        command: list[object] = [
            BIN / "flower-supernode",
            "--superlink",
            self.address,
            "--root-certificates",
            self.keys / "ca.crt",
        ]
        command += ["--auth-supernode-private-key", self.keys / f"node-{node if key is None else key}"]
        command += ["--host", "127.0.0.1", "--port", free_port(), "--node-config", text]
        self.nodes[f"node-{node}"] = command
        self.start(f"node-{node}", command)

    def tend(self) -> None:
        """Start SuperNodes that have ended, as a supervisor does: Flower takes one back after a minute of silence."""
        for name, command in self.nodes.items():
            if name in self.processes and self.processes[name].poll() is not None:
                self.start(name, command)

    def wait(self, ready: Callable[[], Any], seconds: float, what: str, pause: float = 0.1) -> Any:
        """What `ready` gives as soon as it is true; SuperNodes are tended meanwhile."""

        def found() -> Any:
            self.tend()
            return ready()

        return until(found, seconds, what, pause)

    def app(self, **options: Any) -> Path:
        """A folder for ``flwr run``, whose config the command line's connection is taken from."""
        self.apps += 1
        folder = self.folder / f"app-{self.apps}"
        return new_project(
            folder,
            {key.replace("_", "-"): value for key, value in options.items()},
            superlink=self.address,
            ca=self.keys / "ca.crt",
        )

    def flwr(self, *command: object, check: bool = True) -> str:
        """Run Flower's command line and return what it prints."""
        home = self.folder / "home" / "cli"
        environment = self.environment("cli")
        connection = f'[superlink]\ndefault = "fedpa"\n[superlink.fedpa]\naddress = "{self.address}"\n'
        (home / "config.toml").write_text(f'{connection}root-certificates = "{self.keys / "ca.crt"}"\n')
        line = [str(BIN / "flwr"), *map(str, command)]
        done = subprocess.run(line, check=False, env=environment, capture_output=True, text=True, timeout=300)
        if check and done.returncode:
            raise AssertionError(f"flwr {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def run(self, app: Path, overrides: str = "") -> str:
        """Submit a run and return its id."""
        more = ["-c", overrides] if overrides else []
        found = re.search(r'"run-id":\s*"(\d+)"', self.flwr("run", app, "fedpa", "--format", "json", *more))
        assert found is not None
        return found[1]

    def facts(self, run: str) -> dict[str, Any]:
        """What the SuperLink says of a run: ``status``, ``network-traffic`` and so on."""
        text = self.flwr("list", "fedpa", "--run-id", run, "--format", "json")
        found: dict[str, Any] = json.loads(text[text.index("{") :])["runs"][0]
        return found

    def finished(self, run: str, seconds: float) -> dict[str, Any]:
        """The facts of a run once it has ended."""

        def ended() -> dict[str, Any] | None:
            found = self.facts(run)
            return found if str(found["status"]).startswith("finished") else None

        facts: dict[str, Any] = self.wait(ended, seconds, f"run {run}", pause=3.0)
        return facts

    def completed(self, app: Path, overrides: str = "", *, seconds: float = 900) -> dict[str, Any]:
        """Run an app to its end, which must be a good one."""
        run = self.run(app, overrides)
        facts = self.finished(run, seconds)
        assert facts["status"] == "finished:completed", f"{facts}\n{self.log(run)}"
        return facts

    def log(self, run: str) -> str:
        """The log of a run's ServerApp."""
        return self.flwr("log", run, "fedpa", "--show", check=False)

    def logs(self) -> str:
        """The ends of all logs, for a failure."""
        pieces = []
        for path in sorted((self.folder / "logs").iterdir()):
            lines = [line for line in path.read_text(errors="replace").splitlines() if "uvicorn.access" not in line]
            pieces.append("\n".join([f"--- {path.name}", *lines[-60:]]))
        return "\n".join(pieces)

    def tree(self, name: str) -> list[psutil.Process]:
        """A process and all that it has started, youngest first."""
        try:
            parent = psutil.Process(self.processes[name].pid)
            return [*reversed(parent.children(recursive=True)), parent]
        except psutil.NoSuchProcess:
            return []

    def below(self, name: str, command: str) -> list[psutil.Process]:
        """Processes that one has started whose command line names a command."""
        found = []
        for process in self.tree(name):
            with contextlib.suppress(psutil.Error):
                if any(command in part for part in process.cmdline()[:3]):
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """SIGKILL a process alone; what it has started notices by itself."""
        self._orphans += self.tree(name)[:-1]
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, *names: str) -> None:
        """End processes, as a person would, and all that they have started."""
        trees = [process for name in names for process in self.tree(name)]
        for name in names:
            self.nodes.pop(name, None)
            with contextlib.suppress(ProcessLookupError):
                self.processes[name].send_signal(signal.SIGTERM)
        _end(trees, patience=8)
        for name in names:
            self.processes.pop(name).wait()

    def close(self) -> None:
        """End everything at once."""
        trees = [process for name in self.processes for process in self.tree(name)]
        _end([*trees, *self._orphans], patience=0)
        for process in self.processes.values():
            process.wait()


def _end(processes: Sequence[psutil.Process], patience: float) -> None:
    """Wait for processes to end, and then see to it."""
    alive = still_running(processes, within=patience)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    still_running(alive, within=5)


@contextlib.contextmanager
def network(folder: Path, nodes: int, *, apart: bool = False) -> Iterator[Net]:
    """A SuperLink that knows the keys of some nodes; after a failure the logs are shown."""
    folder.mkdir(parents=True, exist_ok=True)
    net = Net(folder, nodes, apart=apart)
    try:
        net.superlink()
        for node in range(nodes):
            net.register(node)
        yield net
    except BaseException:
        print(net.logs())
        raise
    finally:
        net.close()
