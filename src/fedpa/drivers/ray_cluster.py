"""Ray of our own on this machine, or a cluster that was there before; left as it was found."""

from __future__ import annotations

import importlib
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedpa.errors import ConfigError

__all__ = ["Cluster", "import_ray", "missing"]

_log = logging.getLogger(__name__)
_ADDRESS = re.compile(r"auto|[^\s/]+:\d{1,5}")
_STORE_BYTES = 256 << 20
_REACH_SECONDS, _HEALTH_SECONDS = 5.0, 30.0
_PATH_LENGTH = 40  # a socket's path may have 107 characters, and Ray appends some 65
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_PREFIX = "fedpa-ray-"
_TOKEN = secrets.token_hex(32)


def import_ray() -> Any:
    """Ray, or an error that says how to install it.

    Raises
    ------
    ConfigError
    """
    try:
        import ray
    except ImportError:
        raise missing() from None
    return ray


def missing() -> ConfigError:
    """What is said where Ray is not installed."""
    return ConfigError("driver ray: needs Ray, which is not installed", 'pip install "fedpa[ray]"')


class Cluster:
    """A connection to Ray.

    Without an address it is the one that this process has, or Ray of our own: on loopback, with a token that only it
    knows, without dashboard and usage reports, and gone after `leave`. A cluster that was there before stays.

    Parameters
    ----------
    address : str or None
        ``auto`` for the cluster that runs on this machine, or ``host:port``.
    cpus : int
        How many the actors need together.

    Attributes
    ----------
    ray : module
    owned : bool
        Whether it was started here.

    Raises
    ------
    ConfigError
        If Ray is not installed, or there is no such cluster, or it is too small.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        if address is not None and not _ADDRESS.fullmatch(address):
            raise ConfigError(
                f"address {address!r}: expected auto or host:port, as `ray start --head` prints it",
                "run fedpa on a machine of the cluster; the Ray Client (ray://) is not used",
            )
        self._set: list[str] = []  # variables of the environment that were not there before
        self._folder: str | None = None
        self._print: Any = None
        self.owned = self._joined = False
        if address is None and not _is_connected():
            self._start(cpus)
            return
        self.ray = import_ray()
        if not self.ray.is_initialized():
            self._join(str(address))
        elif address not in (None, "auto", found := self.ray.get_runtime_context().gcs_address):
            raise ConfigError(f"address {address!r}: this process is connected to the Ray cluster at {found}")
        self._check(cpus)

    def leave(self, *, keep_logs: bool = False) -> None:
        """Disconnect, and end what was started here."""
        if self._joined:
            self.ray.shutdown()
            if self._print is not None:
                self.ray._private.worker.print_to_stdstream = self._print
            self._joined = False
        for key in self._set:
            os.environ.pop(key, None)
        self._set = []
        if self._folder is not None and keep_logs:
            _log.warning("Ray's logs, since actors died: %s", self._folder)
        elif self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _start(self, cpus: int) -> None:
        if "ray" in sys.modules and not _has_tokens():
            raise ConfigError(
                "this process imported Ray before it could be told to ask for a token",
                "set RAY_AUTH_MODE=token before that, or call ray.init yourself: the driver takes what is there",
            )
        # What has imported Ray before has read where it listens.
        wanted = {**({} if "ray" in sys.modules else _LOOPBACK), **_QUIET, "RAY_AUTH_MODE": "token"}
        for key, value in {**wanted, "RAY_AUTH_TOKEN": _TOKEN}.items():
            if key not in os.environ:
                os.environ[key] = value
                self._set.append(key)
        self._folder = _new_folder()
        try:
            self.ray = import_ray()
            self.ray.init(
                address="local",
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.WARNING,
                **({"_temp_dir": self._folder} if len(self._folder) <= _PATH_LENGTH else {}),
            )
        except BaseException:
            self.leave()
            raise
        self.owned = True
        self._hush()

    def _join(self, address: str) -> None:
        if address == "auto":
            address = _noted_address()
        _reach(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            self.ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            raise _unreachable(address, error) from error
        self._hush()

    def _hush(self) -> None:
        """Have what Ray says of dead processes in the log: it would print it among what a verb prints."""
        self._joined, worker = True, self.ray._private.worker
        self._print = getattr(worker, "print_to_stdstream", None)
        if self._print is not None:
            worker.print_to_stdstream = lambda data, *_, **__: _log.info("Ray: %s", "\n".join(data["lines"]))

    def _check(self, cpus: int) -> None:
        found = int(self.ray.cluster_resources().get("CPU", 0))
        if found < cpus:
            self.leave()
            raise ConfigError(
                f"the Ray cluster has {found} CPUs, the shards need {cpus}",
                "choose fewer shards or threads, or start more nodes with `ray start --address`",
            )


def _new_folder() -> str:
    """Room for Ray's sockets and logs; what processes that were killed have left is removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and left.stat().st_uid == os.getuid() and not _is_alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _noted_address() -> str:
    """Where `ray start` noted that the cluster is.

    Ray itself would also take one that another process has for itself alone, and wait for ever once that is gone.
    """
    file = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    try:
        return os.environ.get("RAY_ADDRESS") or file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _unreachable("auto", error) from error


def _reach(address: str) -> None:
    """Refuse an address where no cluster answers: Ray itself would end this process after minutes."""
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS).close()
        subprocess.run(command, capture_output=True, check=True, timeout=_HEALTH_SECONDS)
    except (OSError, OverflowError, subprocess.SubprocessError) as error:
        raise _unreachable(address, error) from error


def _has_tokens() -> bool:
    """Whether Ray, which reads this when it is imported, wants a token of whoever calls."""
    raylet: Any = importlib.import_module("ray._raylet")
    return bool(raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN)


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(import_ray().is_initialized())


def _unreachable(address: str, error: Exception) -> ConfigError:
    reason = (
        "it is no Ray cluster, or does not take our token" if isinstance(error, subprocess.SubprocessError) else error
    )
    return ConfigError(
        f"address {address!r}: no Ray cluster answers there ({reason})",
        "start one with `ray start --head`, and give the address that it prints",
    )
