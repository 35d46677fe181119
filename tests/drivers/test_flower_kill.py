"""SIGKILL on either side at random moments: the run goes on, and comes to what it comes to when left alone.

Each kill costs up to a minute, by Flower's own constants: it takes a SuperNode back, and says that a ClientApp died,
when two heartbeats of half a minute are missing.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from drivers.flower_net import Net, network
from drivers.flower_world import world
from processes import last_round

KILLS = int(os.environ.get("FEDPA_KILLS", "4"))
"""``make test-all`` has 20 of them."""

NODES = 2
_QUIET_SECONDS = (1.0, 12.0)
_END_SECONDS = 900.0


class Killer:
    """Kills one process at a time, and does what a person or a supervisor would do then."""

    def __init__(self, net: Net, app: Path, seed: int) -> None:
        self.net, self.app, self.random = net, app, random.Random(seed)
        self.runs = [net.run(app)]
        self.done: list[str] = []

    def superlink(self) -> bool:
        """It is started again with its database file; the ServerApp, whose parent is another process, goes on."""
        self.net.kill("superlink")
        time.sleep(self.random.uniform(0, 2))
        self.net.superlink()
        return True

    def serverapp(self) -> bool:
        """The run is submitted again, and goes on from its folder."""
        found = self.net.below("superexec", "flwr-serverapp")
        for process in found:
            process.kill()
        if found:
            self.runs.append(self.net.run(self.app))
        return bool(found)

    def supernode(self) -> bool:
        """It is started again until the SuperLink takes it back."""
        name = f"node-{self.random.randrange(NODES)}"
        if self.net.processes[name].poll() is not None:
            return False
        self.net.kill(name)
        return True

    def clientapp(self) -> bool:
        """Flower tells the server, which asks again."""
        found = self.net.below(f"node-{self.random.randrange(NODES)}", "flwr-clientapp")
        for process in found:
            process.kill()
        return bool(found)

    @property
    def ways(self) -> Mapping[str, Callable[[], bool]]:
        """What can be killed, server and node in turn."""
        return {
            "superlink": self.superlink,
            "supernode": self.supernode,
            "serverapp": self.serverapp,
            "clientapp": self.clientapp,
        }


@pytest.mark.parametrize("kills", [1, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_a_run_outlives_every_process(tmp_path_factory: pytest.TempPathFactory, kills: int) -> None:
    made = world(tmp_path_factory, NODES)
    rounds = kills + 4
    local = made.local(rounds=rounds)
    with network(made.folder / "net", NODES, apart=True) as net:
        made.start(net, range(NODES))
        out = made.folder / "run"
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        killer = Killer(net, made.app(net, out, set={"rounds": rounds}), seed)
        for way in itertools.islice(itertools.cycle(killer.ways), kills):
            quiet = time.monotonic() + killer.random.uniform(*_QUIET_SECONDS)
            latest = len(killer.done) + 2  # however fast rounds are, there are some left after the last kill
            net.wait(
                lambda quiet=quiet, latest=latest: time.monotonic() > quiet or last_round(out) >= latest,  # type: ignore[misc]
                _END_SECONDS,
                "a moment",
            )
            net.wait(lambda way=way: out.exists() or killer.ways[way](), _END_SECONDS, way)  # type: ignore[misc]
            if out.exists():
                break
            killer.done.append(way)
            print(f"killed {way}")
        net.wait(out.exists, _END_SECONDS, f"run, after {killer.done}", pause=1.0)
        assert len(killer.done) == kills
        made.same(net, out, local)
