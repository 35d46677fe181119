"""A run whose nodes are on Flower, from its run config to its folder."""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.serverapp import Grid

from fedpa.adaptation import Job
from fedpa.artifacts import to_json
from fedpa.continuing.handover import Handover
from fedpa.continuing.run import continued
from fedpa.continuing.start import write_start_of_server
from fedpa.data.dataset import Dataset, load_dataset
from fedpa.data.shard import shard_facts
from fedpa.device import open_device
from fedpa.drivers.flower.driver import FlowerDriver, Terms
from fedpa.drivers.flower.options import Options
from fedpa.drivers.flower.post import Post
from fedpa.durable import replace
from fedpa.errors import ArtifactError, ConfigError
from fedpa.federation.coordinator import Outcome, last_accepted
from fedpa.federation.device import gather, node_generations
from fedpa.federation.form import Message
from fedpa.federation.kept import load_message, save_message
from fedpa.federation.order import Base, Order
from fedpa.federation.rows import ShardRows
from fedpa.federation.rule import AdaptedModel
from fedpa.federation.shard import Shard
from fedpa.federation.wire import pack_order
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.source import open_foundation
from fedpa.origin import noted
from fedpa.run import Run, load_run
from fedpa.unfinished import claimed, is_begun, new_room, read_config, room_of, write_config

__all__ = ["FlowerJob", "run_on_nodes"]

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 30.0
_BEGIN = "begin.safetensors"
_SAME = ("method", "preset", "seed", "settings", "label", "dataset", "foundation")


def run_on_nodes(grid: Grid, options: Options) -> None:
    """Adapt a foundation to the users of Flower's nodes; a run that was stopped goes on.

    Raises
    ------
    ConfigError
        If an option is unknown or invalid, or the method has no federation.
    ArtifactError
        If a folder is missing or does not fit, or another run has the name of this one.
    """
    dataset = load_dataset(options.dataset)
    earlier = None if options.earlier is None else load_run(options.earlier)
    method, foundation, config = _anew(options, dataset) if earlier is None else _later(options, dataset, earlier)
    target, room = options.out, room_of(options.out)
    if not options.overwrite and target.is_dir():
        config = _agree(read_config(target), config, target)
        _log.info("%s: is finished already", target)
        FlowerJob(target, config, method, foundation, dataset, grid=grid, options=options).tell_again()
        return
    begun = is_begun(target) and not options.overwrite
    if begun:
        config = _agree(read_config(room), config, room)
    else:
        new_room(target, overwrite=options.overwrite)
    job = FlowerJob(room, config, method, foundation, dataset, grid=grid, options=options)
    with _alone(room):
        if not begun:
            job.write_start(earlier)
        _log.info("%s: is run %s", room, job.run_id)
        job.watch(options.metrics_file, options.metrics_port)
        job.run(target, progress=False)
    _log.info("%s: is finished", target)


_Origin = tuple[FederatedMethod, Foundation | None, dict[str, Any]]


def _anew(options: Options, dataset: Dataset) -> _Origin:
    """Method, foundation and config of a run that begins with a foundation."""
    foundation = None if options.foundation is None else open_foundation(options.foundation)
    method = find_method(options.method).configured(options.preset, options.settings, foundation)
    if not isinstance(method, FederatedMethod):
        raise ConfigError(f"method {method.name}: has no federation, so there is nothing for nodes to do")
    if foundation is None and method.reads_foundation:
        raise ConfigError(f"method {method.name}: needs a foundation", "name its folder in the run config")
    if foundation is not None:
        foundation.check(dataset)
    config = noted(options.method, options.preset, options.seed, method, dataset, foundation, options.foundation)
    return method, foundation, config | _engine(options)


def _later(options: Options, dataset: Dataset, earlier: Run) -> _Origin:
    """Method, foundation and config of a run that goes on from an earlier one."""
    if earlier.config.get("engine", {}).get("driver") != "flower":
        raise ArtifactError(
            f"{earlier.path}: was not made on Flower, so what devices kept of it is not on the nodes",
            "go on with it by fedpa adapt --continue",
        )
    given = None if options.foundation is None else open_foundation(options.foundation)
    method, foundation, config = continued(
        earlier, dataset, given, options.foundation, options.settings, migrate=options.migrate
    )
    return method, foundation, config | _engine(options)


def _engine(options: Options) -> dict[str, Any]:
    """How rounds are run, for ``config.yaml`` of a new run."""
    return {
        "engine": {
            "driver": "flower",
            "shards": 1,
            "device": options.device,
            "keep_rounds": options.keep_rounds,
            "secure": options.secure,
            # Another run of the same config must not take its nodes' generations for its own.
            "begun": secrets.token_hex(8),
        },
    }


def _agree(before: dict[str, Any], config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The config of a run that is there; refused if what is asked for now is another run."""
    differs = [key for key in _SAME if before[key] != config[key] and key not in ("dataset", "foundation")]
    differs += [key for key in ("dataset", "foundation") if _hash(before[key]) != _hash(config[key])]
    if before.get("continues", {}).get("id") != config.get("continues", {}).get("id"):
        differs.append("earlier run (continue)")
    if before["engine"].get("secure", False) != config["engine"]["secure"]:
        differs.append("answer to whether sums are secure")
    if differs:
        raise ArtifactError(
            f"{where}: is a run with another {', '.join(differs)}",
            "choose another folder (out), or start anew with overwrite=true",
        )
    return before


def _hash(origin: dict[str, Any] | None) -> str | None:
    return None if origin is None else origin["hash"]


@contextlib.contextmanager
def _alone(room: Path) -> Iterator[None]:
    """Be the only process that works on the run; one that is being stopped is waited for."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(claimed(room, "go on with flwr run, as it was started"))
            except ArtifactError:
                if time.monotonic() > end:
                    raise
            else:
                yield
                return
        time.sleep(0.5)


@dataclass
class FlowerJob(Job):
    """A job whose nodes are on Flower.

    Attributes
    ----------
    grid : Grid
    options : Options
    """

    grid: Grid | None = None
    options: Options | None = None

    def write_start(self, earlier: Run | None) -> None:
        """Write what the run is and, if it goes on from an earlier one, the server's state that it begins with."""
        if earlier is None:
            write_config(self.room, self.config)
            return
        method = cast(FederatedMethod, self.method)
        migrate = self.config["continues"]["migrate"]
        handover = Handover(earlier, method, self.dataset, self.foundation, migrate=migrate)
        server = handover.server()
        facts = handover.facts()  # what became of users is known to their nodes
        self.config["continues"] |= {key: facts[key] for key in ("items", "dropped", "began")}
        order = Order(self.run_id, self.config["continues"]["first_round"] + 1, tuple(server.state), train=False)
        save_message(self.room / _BEGIN, pack_order(handover.model.layout, order))
        write_start_of_server(self, server, [])

    def _federated(self, method: FederatedMethod, progress: bool) -> dict[str, Any]:
        assert self.options is not None
        place = open_device(self.config["engine"]["device"])
        model = method.model(self.foundation, self.dataset, self.config["seed"], place)
        if any(scope.sees == "rows" for scope in model.layout.scopes.values()):
            raise ConfigError(
                "the method's server tells users apart by their numbers, and every node numbers its users from 0",
                "adapt on the whole data set, or choose a method whose server sees sums alone",
            )
        server = method.server(model.layout)
        driver = self._flower(model)
        outcome = self.rounds(server, driver, driver.users, _log.info)
        self._nobody(method, model)
        summary = self._summary(outcome, model.layout.sizes_by_scope())
        return {
            **summary,
            "nodes_untold": self._tell(driver, outcome, summary),
            "private_users": sum(driver.users.values()),
            "answers_lost": dict(driver.counts),
        }

    def tell_again(self) -> None:
        """Have nodes that did not hear it keep what the run, which is finished, came to."""
        run = Run(self.room, foundation=self.foundation, dataset=self.dataset)
        missed = frozenset(run.summary["nodes_untold"])
        if not missed:
            return
        driver = self._flower(run.model, least=0, only=missed)
        driver.start()
        best, kept = run.summary["best_round"], last_accepted(self.room)
        outcome = Outcome(best, run.server.state, kept[best], kept, run.history, run.summary["interrupted"])
        untold = sorted(missed.intersection(self._tell(driver, outcome, run.summary)))
        _log.info("of nodes %s, %d were told", ", ".join(map(str, sorted(missed))), len(missed) - len(untold))
        replace(self.room / "summary.json", to_json(run.summary | {"nodes_untold": untold}).encode())

    def _flower(
        self, model: AdaptedModel, *, least: int | None = None, only: frozenset[int] | None = None
    ) -> FlowerDriver:
        assert self.options is not None and self.grid is not None
        facts = shard_facts(self.dataset)
        told = {key: self.config[key] for key in ("method", "preset", "seed", "settings", "label", "fedpa")}
        foundation = self.config["foundation"]
        told["foundation"] = None if foundation is None else {"hash": foundation["hash"]}
        told["source"] = None if facts is None else facts.source
        told["secure"] = self.options.secure
        begin: tuple[Message, ...] = ()
        if "continues" in self.config:
            told["continues"] = {name: self.config["continues"][name] for name in ("id", "migrate", "first_round")}
            begin = (load_message(self.room / _BEGIN),)
        terms = Terms(
            run=self.run_id,
            config=told,
            layout=model.layout,
            settings=self.method.settings,
            items=self.dataset.n_items,
            room=self.room,
            least=self.options.least if least is None else least,
            deadline=self.options.deadline,
            begin=begin,
            only=only,
        )
        post = Post(self.grid, ttl=max(60.0, 2 * self.options.deadline))
        if not self.options.secure:
            return FlowerDriver(post, terms)
        from fedpa.drivers.flower.secure import SecureDriver
        from fedpa.privacy.secagg.contents import Limits

        limits = Limits(self.options.secure_change, self.options.secure_users)
        return SecureDriver(post, terms, limits, threshold=self.options.secure_threshold)

    def _tell(self, driver: FlowerDriver, outcome: Outcome, summary: dict[str, Any]) -> list[int]:
        """Have nodes keep what the run came to; returns those that had a part in it and did not hear that."""
        bases = {
            node: Base(
                outcome.generations.get(node, 0),
                tuple(sorted({accepted.get(node, 0) for accepted in outcome.kept.values()})),
            )
            for node in driver.nodes
        }
        order = Order(self.run_id, outcome.best_round + 1, tuple(outcome.state), train=False)
        told = driver.finish(order, bases, summary, outcome.lines)
        return sorted(set(bases).union(*outcome.kept.values()) - set(told))

    def _nobody(self, method: FederatedMethod, model: AdaptedModel) -> None:
        """What devices keep is on the nodes; here is that of users who never took part, if there are any."""
        rows = ShardRows.of(self.dataset, dtype=method.settings.torch_dtype, device=open_device("cpu"))
        with tempfile.TemporaryDirectory(dir=self.room) as folder:
            store = Shard.new_store(model, rows, method.settings, Path(folder))
            store.begin_with_zeros(Shard.touched_rows(model, rows))
            gather([node_generations(Path(folder)).path(0)], self.room)
