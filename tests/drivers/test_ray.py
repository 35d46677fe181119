"""Nodes on Ray, with real processes: the bytes of one machine, and no round lost when some of them die or are late."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from fedpa.adaptation import adapt, resume
from fedpa.continuing.run import continue_run
from fedpa.drivers.driver import Plan
from fedpa.drivers.local import LocalDriver
from fedpa.drivers.ray import RayDriver
from fedpa.drivers.ray_actor import Seal, convert_report, facts_of, to_array
from fedpa.drivers.ray_cluster import Cluster
from fedpa.errors import ArtifactError, ConfigError, FedpaError
from fedpa.federation.order import Base, Order
from fedpa.federation.server import Server
from fedpa.methods import FederatedMethod, find_method
from fedpa.run import load_run
from fedpa.unfinished import room_of
from on_ray import SETTINGS, actors, below, found, remove_room_of, run, started, wait_for_round
from prepared import Small, small
from processes import last_round, still_running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Ray of our own, which drivers of this process find and leave as it is."""
    cluster = Cluster(None, 8)
    yield cluster
    family = below("ray")
    cluster.leave()
    assert family
    assert still_running(family, within=30) == []


@pytest.fixture(scope="module")
def expected(made: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that nothing disturbed, in this process."""
    return run(made, tmp_path_factory.mktemp("local") / "run", "local")


def engine(made: Small, folder: Path, **options: Any) -> tuple[RayDriver, LocalDriver, Server, Plan]:
    """Two nodes on Ray, the same two here, and a server."""
    method = cast(FederatedMethod, find_method("fedpa").configured("default", SETTINGS, made.foundation))
    plan = Plan(
        method="fedpa",
        settings=method.settings.model_dump(mode="json"),
        dataset=str(made.dataset.path),
        foundation=str(made.foundation_path),
        seed=0,
        shards=2,
        folder=str(folder / "ray"),
    )
    here = replace(plan, folder=str(folder / "here"))
    server = method.server(method.model(made.foundation, made.dataset, 0, torch.device("cpu")).layout)
    return RayDriver(plan, **options), LocalDriver([here.node(index) for index in range(2)]), server, plan


def order(server: Server, number: int) -> Order:
    return Order("0" * 16, number, tuple(server.state), server.downlink)


def same_upload(one: Any, other: Any) -> bool:
    first, second = (convert_report(report, to_array).upload for report in (one, other))
    arrays = zip((*first.sums, *first.weights), (*second.sums, *second.weights), strict=True)
    return all((a == b).all() for a, b in arrays) and (first.rows, first.loss) == (second.rows, second.loss)


@pytest.mark.parametrize("shards", [1, 2, pytest.param(7, marks=pytest.mark.slow)])
def test_shards_on_ray_give_the_bytes_of_one_process(
    made: Small, cluster: Cluster, expected: dict[str, Any], tmp_path: Path, shards: int
) -> None:
    assert run(made, tmp_path / "run", shards=shards) == expected


@pytest.mark.slow
def test_actors_compute_on_several_threads(
    made: Small, cluster: Cluster, expected: dict[str, Any], tmp_path: Path
) -> None:
    assert run(made, tmp_path / "run", shards=2, threads=2) == expected


@pytest.mark.slow
def test_a_run_goes_on_with_later_data_on_ray(made: Small, cluster: Cluster, tmp_path: Path) -> None:
    run(made, tmp_path / "run", "local")
    for driver in ("local", "ray"):
        options: dict[str, Any] = {"driver": driver, "shards": 3, "rounds": 2, "lr": 0.3}
        continue_run(load_run(tmp_path / "run"), made.dataset, out=tmp_path / driver, **options)
    assert found(tmp_path / "ray") == found(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedmf", "gpfedrec"])
def test_tables_and_downlinks_go_to_actors_and_back(made: Small, cluster: Cluster, tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"rounds": 2, "patience": 0, "participation": 0.6, "method": method}
    outs = [tmp_path / driver for driver in ("local", "ray")]
    for out in outs:
        adapt(None, made.dataset, out=out, driver=out.name, shards=1 + (out.name == "ray"), **options)
    files = [
        sorted((f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in out.glob("*.safetensors")) for out in outs
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_actors_killed_at_any_moment_lose_no_round(
    made: Small, cluster: Cluster, tmp_path: Path, kills: int, caplog: pytest.LogCaptureFixture
) -> None:
    draw, over, out = random.Random(kills), threading.Event(), tmp_path / "run"
    rounds, killed = 5 * kills + 10, list[int]()

    def kill() -> None:
        """Actors, each some time after a round, or while it loads what it needs; not so often that one is given up.

        However fast rounds are, there are some left after the last kill.
        """
        for number in range(kills):
            wait_for_round(out, killed[-1] + 1 if number % 4 else 0, lambda: not over.is_set())
            seconds = draw.uniform(0, 0.3 if number % 4 else 3)
            wait_for_round(out, last_round(out) + 2, lambda: not over.is_set(), within=seconds)
            while not over.is_set() and not (there := actors()):
                time.sleep(0.005)
            if not over.is_set():
                with contextlib.suppress(psutil.NoSuchProcess):
                    draw.choice(there).kill()
                    killed.append(last_round(out))

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.WARNING):
        try:
            result = run(made, out, shards=2, rounds=rounds)
        finally:
            over.set()
            killer.join()
    assert len(killed) == kills
    assert "died and is started anew" in caplog.text
    assert result == run(made, tmp_path / "local", "local", rounds=rounds)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_driver_killed_at_any_moment_goes_on_where_it_was(made: Small, tmp_path: Path, kills: int) -> None:
    draw, out, family, rounds = random.Random(kills), tmp_path / "run", list[psutil.Process](), 2 * kills + 10
    for number in range(kills):
        process = started(made, out, settings={"rounds": rounds})
        try:
            wait_for_round(out, number - number % 4, lambda: process.poll() is None)  # noqa: B023
            # Some seconds later, but however fast rounds are, before the last ones.
            seconds = draw.uniform(0, 0.5 if number % 3 else 6)
            wait_for_round(out, 2 * number + 3, lambda: process.poll() is None, within=seconds)  # noqa: B023
            assert process.poll() is None
            family += psutil.Process(process.pid).children(recursive=True)
        finally:
            process.kill()
            process.communicate()
            remove_room_of(process.pid)
    assert not out.exists()
    assert room_of(out).exists()
    resume(out)
    assert found(out) == run(made, tmp_path / "local", "local", rounds=rounds)
    assert still_running(family, within=60) == [], "Ray ends with the process that started it"


def test_a_straggler_is_left_out_of_its_round_and_comes_back(
    made: Small, cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver, local, server, _ = engine(made, tmp_path, deadline=120.0)
    try:
        assert driver.start() == local.start()
        bases = {0: Base(), 1: Base()}
        assert [*driver.train(order(server, 1), bases)] == [0, 1]
        local.train(order(server, 1), bases)
        pid = driver._ray.get(driver._actors[1].facts.remote())["pid"]
        driver._deadline = 15.0
        os.kill(pid, signal.SIGSTOP)
        try:
            bases = dict.fromkeys(bases, Base(1, (0, 1)))
            with caplog.at_level(logging.WARNING):
                assert [*driver.train(order(server, 2), bases)] == [0]
            assert "left out nodes 1" in caplog.text
            assert driver.counts == {"late": 1}
        finally:
            os.kill(pid, signal.SIGCONT)
        local.train(order(server, 2), bases)
        # Node 1 finishes round 2, which was not counted, and starts round 3 from round 1.
        driver._deadline = 120.0
        bases = {0: Base(2, (1, 2)), 1: Base(1, (1,))}
        third = order(server, 3)
        scored, trained = driver.evaluate(third, bases), driver.train(third, bases)
        assert [*scored] == [*trained] == [0, 1]
        counts = [{node: one["val"].histogram.tolist() for node, one in local.evaluate(third, bases).items()}]
        counts.append({node: one["val"].histogram.tolist() for node, one in scored.items()})
        assert counts[0] == counts[1]
        there = local.train(third, bases)
        assert [same_upload(trained[node], there[node]) for node in (0, 1)] == [True, True]
        assert driver.counts == {"late": 1}
    finally:
        driver.close()


@pytest.mark.slow
def test_a_node_that_never_answers_is_started_anew(made: Small, cluster: Cluster, tmp_path: Path) -> None:
    driver, _, server, _ = engine(made, tmp_path, deadline=120.0)
    try:
        driver.start()
        pid = driver._ray.get(driver._actors[1].facts.remote())["pid"]
        stopped = psutil.Process(pid)
        stopped.suspend()
        driver._deadline = 10.0
        first, bases = order(server, 1), {0: Base(), 1: Base()}
        for _ in range(6):
            assert [*driver.evaluate(first, bases)] == [0]
        driver._deadline = 120.0
        assert [*driver.evaluate(first, bases)] == [0, 1]
        assert still_running([stopped], within=10) == []
    finally:
        driver.close()


def test_the_state_is_put_once_for_a_round(made: Small, cluster: Cluster, tmp_path: Path) -> None:
    driver, _, server, _ = engine(made, tmp_path)
    try:
        driver.start()
        first = order(server, 1)
        driver.evaluate(first, {0: Base(), 1: Base()})
        sent = driver._sent
        driver.train(first, {0: Base(), 1: Base()})
        assert driver._sent is sent
        driver.evaluate(order(server, 2), {0: Base(1), 1: Base(1)})
        assert driver._sent is not sent
        mine = actors()
        assert len(mine) == 2
    finally:
        driver.close()
    assert still_running(mine, within=30) == []


def test_an_error_of_ours_in_an_actor_is_raised_as_it_was(made: Small, cluster: Cluster, tmp_path: Path) -> None:
    driver, _, server, _ = engine(made, tmp_path)
    try:
        driver.start()
        with pytest.raises(ArtifactError, match="000009"):
            driver.train(order(server, 1), {0: Base(9), 1: Base(9)})
    finally:
        driver.close()


_DIES = """
import os
from fedpa.methods.fedpa import FedPA
class Dies(FedPA):
    name = "dies"
    def tally(self, dataset, rows):
        os._exit(1)
"""


@pytest.mark.slow
def test_a_node_that_dies_again_and_again_ends_the_run(made: Small, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(_DIES)
    _, _, _, plan = engine(made, tmp_path)
    driver = RayDriver(replace(plan, method=f"{tmp_path / 'dies.py'}:Dies", shards=1))
    try:
        with pytest.raises(FedpaError, match="node 0: died 4 times at one call") as raised:
            driver.start()
        assert "--resume" in str(raised.value.fix)
    finally:
        driver.close()


def test_a_folder_that_is_not_shared_is_refused(made: Small, tmp_path: Path) -> None:
    _, _, _, plan = engine(made, tmp_path)
    facts = facts_of(plan)
    file = tmp_path / "seal"
    file.write_text("mine")
    Seal(str(file), "mine", facts).check(plan)
    with pytest.raises(ConfigError, match="is not the same folder on") as raised:
        Seal(str(file), "yours", facts).check(plan)
    assert "on storage that all nodes of the Ray cluster share" in str(raised.value)
    with pytest.raises(ConfigError, match="is not the same folder on"):
        Seal(str(tmp_path / "absent"), "mine", facts).check(plan)
    for name in ("data set", "foundation", "fedpa"):
        with pytest.raises(ConfigError, match=f"its {name} is not that of the machine where the run was started"):
            Seal(str(file), "mine", facts | {name: "other"}).check(plan)
    with pytest.raises(ConfigError, match="put data set and foundation where all nodes see them"):
        Seal(str(file), "mine", facts).check(replace(plan, dataset=str(tmp_path / "nowhere")))


def test_two_processes_never_write_to_one_node(
    made: Small, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedpa.drivers import ray_actor

    driver, _, _, plan = engine(made, tmp_path)
    try:
        driver.start()
        monkeypatch.setattr(ray_actor, "_LOCK_SECONDS", 0.2)
        assert driver._seal is not None
        second = ray_actor.ShardActor(plan, 1, torch.get_num_threads(), driver._seal)
        with pytest.raises(ArtifactError, match="another process still writes to it"):
            second.tally()
        driver._ray.kill(driver._actors[1])
        monkeypatch.setattr(ray_actor, "_LOCK_SECONDS", 20.0)
        assert second.tally() is not None
    finally:
        driver.close()


def test_without_ray_the_error_says_what_to_install(
    made: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, _, _, _ = engine(made, tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray, which is not installed") as raised:
        driver.start()
    assert raised.value.fix == 'pip install "fedpa[ray]"'
    driver.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": 0.0}, "deadline: found 0.0"),
        ({"deadline": float("nan")}, "deadline: found nan"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_options_out_of_range_are_refused(made: Small, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(made, tmp_path, **options)


def test_another_cluster_than_the_one_at_hand_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="this process is connected to the Ray cluster at"):
        Cluster("127.0.0.1:1", 1)
    with pytest.raises(ConfigError, match="CPUs, the shards need 1000000"):
        Cluster("auto", 10**6)
    assert cluster.ray.is_initialized(), "refused, but not closed"
