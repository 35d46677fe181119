"""A process that is ready to run, and has children run in its place, some of which are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from crash.calls import Call, watched
from crash.world import World


class Ended(NamedTuple):
    """How a child ended.

    Attributes
    ----------
    killed : bool
        False: it finished the run.
    seconds : float
        That it lived.
    calls : list of str
        Kinds of the calls that it made, if it finished.
    """

    killed: bool
    seconds: float
    calls: list[str]


class Worker:
    """The other side of the process; see `ready`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, out: Path, *, at: int | None = None, half: bool = False, after: float | None = None, shards: int = 1
    ) -> Ended:
        """Have a child go on with a run, or begin it.

        Parameters
        ----------
        out : Path
        at : int, optional
            Number of a changing call, before which it kills itself.
        half : bool
            After half of that call, if it is a write.
        after : float, optional
            Seconds after which it is killed.
        shards : int
        """
        order = {"out": str(out), "at": at, "half": half, "after": after, "shards": shards}
        sent, answers = self._pipes
        sent.write(json.dumps(order) + "\n")
        sent.flush()
        answer = answers.readline()
        assert answer, "the worker is gone"
        found = json.loads(answer)
        assert found["failed"] is None, found["failed"]
        return Ended(found["killed"], found["seconds"], found["calls"])

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@contextmanager
def ready(world: World) -> Iterator[Worker]:
    """Start a worker and wait until it is warm."""
    command = [sys.executable, "-c", "from crash.worker import main; main()", str(world.folder)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        worker = Worker(process)
        assert worker._pipes[1].readline() == "ready\n"
        yield worker
        worker._pipes[0].close()


def main() -> None:
    """Read orders from standard input, one per line, until it ends."""
    torch.set_num_threads(1)  # a child has none of its parent's other threads
    world = World.open(Path(sys.argv[1]))
    for _ in range(2):
        with tempfile.TemporaryDirectory(prefix="fedpa-") as folder:
            world.adapt(Path(folder) / "run")
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_one(world, **json.loads(line))), flush=True)


def _one(world: World, *, out: str, at: int | None, half: bool, after: float | None, shards: int) -> dict[str, Any]:
    begin = time.perf_counter()
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        try:
            counted = _Counted(at, half=half)
            with watched(Path(out).parent, counted):
                world.go_on(Path(out), shards=shards)
            answer: dict[str, Any] = {"calls": counted.kinds}
        except BaseException:
            answer = {"failed": traceback.format_exc()}
        with os.fdopen(tell, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(tell)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(told) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return {
        "killed": os.WIFSIGNALED(status),
        "seconds": time.perf_counter() - begin,
        "calls": [],
        "failed": None,
        **(json.loads(text) if text else {}),
    }


class _Counted:
    """Counts the changing calls, and kills this process at one of them."""

    def __init__(self, at: int | None, *, half: bool) -> None:
        self.at, self.half = at, half
        self.kinds: list[str] = []

    def __call__(self, call: Call, act: Callable[..., Any]) -> Any:
        if call.changes:
            self.kinds.append(call.kind)
            if len(self.kinds) - 1 == self.at:
                if self.half and call.kind == "write":
                    act(call.data[: len(call.data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return None if call.kind == "sync" else act()  # what a killed process wrote is in the system's cache
