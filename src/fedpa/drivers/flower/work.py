"""What a node does for each kind of letter. A protocol with stages of its own adds its handlers to `HANDLERS`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpa.artifacts import FORMAT_VERSION, to_json
from fedpa.data.dataset import load_dataset
from fedpa.data.shard import shard_facts
from fedpa.device import open_device
from fedpa.drivers.flower.desk import Desk, Handler, Unfit
from fedpa.drivers.flower.handed import take_over
from fedpa.drivers.flower.letter import UNSTARTED, Letter
from fedpa.drivers.flower.prepared import PreparedNode
from fedpa.durable import make_folder, replace
from fedpa.errors import ArtifactError
from fedpa.federation.coordinator import checkpoints, write_lines, write_shared
from fedpa.federation.device import gather, node_generations
from fedpa.federation.kept import EVERYBODY, TALLY, load_message, save_message
from fedpa.federation.node import Node
from fedpa.federation.tally import Tally
from fedpa.federation.wire import pack_report, pack_sums, pack_tally, unpack_order, unpack_tally
from fedpa.methods import FederatedMethod, find_method
from fedpa.models.foundation import Foundation
from fedpa.models.wrap.source import open_foundation
from fedpa.origin import noted_path
from fedpa.own_code import absolute, is_own_code
from fedpa.unfinished import finish, read_config, write_config

__all__ = ["HANDLERS", "opened"]


def prepare(desk: Desk, letter: Letter) -> Letter:
    """Count its users' rows; nothing is written."""
    node = _node(desk, _config(desk, letter), letter.head)
    tally = node.tally()
    parts = () if tally is None else (pack_tally(letter.head["run"], node.index, tally),)
    return Letter("prepare", {"users": len(node.users)}, parts)


def start(desk: Desk, letter: Letter) -> Letter:
    """Note the run's config and everybody's item counts; says which generations it holds."""
    run, config = letter.head["run"], _config(desk, letter)
    room, target = desk.room(run), desk.target(run)
    if target.is_dir() and not room.exists():
        target.rename(room)  # the server goes on with a run that this node took for finished
    make_folder(room)
    parts = {header.get("kind"): (header, arrays) for header, arrays in letter.parts}
    if "tally" in parts:
        save_message(room / TALLY, parts["tally"])
    node = _node(desk, config, letter.head)
    node.forget_rows()
    tally = _tally(room, run, node)
    if "continues" in config:
        config["continues"] |= take_over(desk, run, node, config["continues"], parts.get("order"), tally)
    held = node.start(tally)
    write_config(room, config)
    handed = "users" in config.get("continues", {})
    return Letter("start", {"users": len(node.users), "held": held, "handed": handed})


def round_(desk: Desk, letter: Letter) -> Letter:
    """Score with the order's state, then train from it."""
    run = letter.head["run"]
    node = opened(desk, run, letter.head)
    layout, settings = node.shard.layout, node.method.settings
    order, asked = unpack_order(layout, settings, *letter.parts[0])
    base = node.base_of(asked)
    parts = [pack_sums(run, order.number, node.index, node.evaluate(order, base))]
    if order.train:
        parts.append(pack_report(layout, settings, node.train(order, base)))
    return Letter("round", {"round": order.number, "from": base.generation}, tuple(parts))


def finish_(desk: Desk, letter: Letter) -> Letter:
    """Keep what the run came to as a run of this node's users, with what their devices keep of its best round."""
    run = letter.head["run"]
    room, target = desk.room(run), desk.target(run)
    if target.is_dir() and not room.exists():
        return Letter("finish", {})
    node = opened(desk, run, letter.head)
    order, base = unpack_order(node.shard.layout, node.method.settings, *letter.parts[0])
    lines = json.loads(letter.parts[1][1]["lines"].tobytes())
    base = node.base_of(base)
    server = node.method.server(node.shard.layout)
    server.state = list(order.state)
    write_shared(room, server, node.foundation.hash if node.foundation else None)
    generations = node_generations(node.folder)
    gather([generations.path(base.generation)], room)
    generations.keep({*base.keep, base.generation})
    write_lines(room, lines)
    config = read_config(room)
    summary = {
        **letter.head["summary"],
        "kind": "run",
        "format_version": FORMAT_VERSION,
        "dataset": node.dataset.manifest["source"],
        "method": node.method.name,
        "preset": config["preset"],
        "seed": config["seed"],
        "private_users": len(node.users),
        **({"continues": config["continues"]} if "continues" in config else {}),
    }
    replace(room / "summary.json", to_json(summary).encode())
    finish(room, target, sync=True)
    return Letter("finish", {})


HANDLERS: dict[str, Handler] = {"prepare": prepare, "start": start, "round": round_, "finish": finish_}


def opened(desk: Desk, run: str, head: Mapping[str, Any]) -> PreparedNode:
    """The node of a run that was started here, ready to work.

    Raises
    ------
    Unfit
        If it was not started, or what it needs is lost.
    """
    room = desk.room(run)
    try:
        config = read_config(room)
    except ArtifactError:
        raise Unfit(UNSTARTED) from None
    node = _node(desk, config, head)
    node.open(_tally(room, run, node))
    return node


def _config(desk: Desk, letter: Letter) -> dict[str, Any]:
    """The run's config as this node has it: the server's, with what is here in place of what is there."""
    config = letter.head.get("config")
    if not isinstance(config, dict):
        raise Unfit("the server sent no config")
    dataset = load_dataset(Path(desk.dataset))
    foundation = _foundation(desk, config)
    here = None if foundation is None else {"path": noted_path(desk.foundation), "hash": foundation.hash}
    facts = shard_facts(dataset)
    if facts is not None and config["source"] is not None and facts.source != config["source"]:
        raise Unfit("its data set is a shard of another one than the server's")
    if dataset.label_name != config["label"]:
        raise Unfit(f"its data set has the label {dataset.label_name}, the run is for {config['label']}")
    return {
        **{key: config[key] for key in ("preset", "seed", "settings", "label", "fedpa", "continues") if key in config},
        "method": _method(desk, config["method"]),
        "dataset": {"path": str(dataset.path.resolve()), "hash": dataset.hash},
        "foundation": here,
        "engine": {"driver": "flower", "node": letter.head["node"], "shards": 1, "device": desk.device},
    }


def _foundation(desk: Desk, config: Mapping[str, Any]) -> Foundation | None:
    if config["foundation"] is None:
        return None
    if desk.foundation is None:
        raise Unfit("was given no foundation")
    found = open_foundation(desk.foundation)
    if found.hash != config["foundation"]["hash"]:
        raise Unfit(f"has foundation {found.hash[:12]}, the run has {config['foundation']['hash'][:12]}")
    return found


def _method(desk: Desk, name: str) -> str:
    """A method of the package by its name; code of one's own only from where this node says that it is."""
    if not is_own_code(name):
        return name
    if desk.method is None:
        raise Unfit("the run's method is not one of the package", 'add method="my_file.py:MyMethod" to --node-config')
    return absolute(desk.method)


def _node(desk: Desk, config: Mapping[str, Any], head: Mapping[str, Any]) -> PreparedNode:
    method = find_method(config["method"])
    if not issubclass(method, FederatedMethod):
        raise Unfit(f"method {method.name}: has no federation")
    foundation = _foundation(desk, config)
    dataset = load_dataset(Path(desk.dataset))
    if foundation is not None:
        foundation.check(dataset)
    return PreparedNode(
        method(method.settings_type.checked(config["settings"], f"method {method.name}")),
        foundation,
        dataset,
        seed=config["seed"],
        folder=checkpoints(desk.room(head["run"])) / "node-0",
        index=head["node"],
        device=open_device(desk.device),
    )


def _tally(room: Path, run: str, node: Node) -> Tally | None:
    """Everybody's item counts, as the server sent them."""
    periods = node.method.settings.item_counts
    if not periods:
        return None
    try:
        header, arrays = load_message(room / TALLY)
    except ArtifactError:
        raise Unfit(UNSTARTED) from None
    return unpack_tally(run, EVERYBODY, periods, node.dataset.n_items, header, arrays)
