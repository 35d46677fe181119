"""Nodes join, leave, straggle and restart, the server crashes and resumes: no upload is lost or counted twice."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import ItemsView, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from arrays import toy, toy_foundation
from fedpa.federation.coordinator import Coordinator, checkpoints
from fedpa.federation.form import Message, Reason
from fedpa.federation.node import Node
from fedpa.federation.order import Base, Order, Report, Sums
from fedpa.federation.server import Server
from fedpa.federation.upload import Upload, vector_name
from fedpa.federation.wire import pack_order, pack_report, pack_sums, unpack_order, unpack_report, unpack_sums
from fedpa.methods import FederatedMethod, find_method

RUN, NODES, USERS = "5afe", 3, 10
DATA = toy(USERS, np.arange(USERS) % 4 + 4)
PARTS = np.array_split(np.arange(USERS), NODES)
WHO = st.integers(0, NODES - 1)


class Crash(Exception):  # noqa: N818
    """The server's process ends here."""


class Mail(dict[int, Report]):
    """Reports as they arrive: some twice, some of an earlier round."""

    def __init__(self, arrived: Sequence[tuple[int, Report]]) -> None:
        super().__init__(arrived)
        self._arrived = arrived

    def items(self) -> ItemsView[int, Report]:  # type: ignore[override]
        return cast(ItemsView[int, Report], self._arrived)


class Carrier:
    """A driver whose messages all go through their wire form, and whose nodes do as they are told."""

    def __init__(self, folder: Path, method: FederatedMethod) -> None:
        self.folder, self.method = folder, method
        self.foundation = toy_foundation(DATA)
        self.model = method.model(self.foundation, DATA, 0, torch.device("cpu"))
        self.layout = self.model.layout
        self.members = [self.new(node) for node in range(NODES)]
        self.present, self.straggling = set(range(NODES)), set[int]()
        self.twice = set[int]()
        self.crash_after: int | None = None
        self.held: list[tuple[int, Report]] = []
        self.seen: list[Message] = []
        self.counted: list[int] = []

    def new(self, node: int, folder: Path | None = None) -> Node:
        place = (folder or self.folder) / f"node-{node}"
        return Node(
            self.method,
            self.foundation,
            DATA,
            seed=0,
            folder=place,
            index=node,
            users=PARTS[node],
            model=self.model,
            sync=False,
        )

    @property
    def nodes(self) -> Sequence[int]:
        return list(range(NODES))

    def start(self) -> dict[int, list[int]]:
        return {node.index: node.start(None) for node in self.members}

    apart = False

    def refusals(self) -> list[tuple[int, Reason]]:
        return []

    def close(self) -> None:
        """Nothing was started."""

    def arrived(self, message: Message) -> Message:
        """Note a message as an observer of the network would, and hand it on."""
        header, arrays = message
        self.seen.append(message)
        return json.loads(json.dumps(header)), {name: one.copy() for name, one in arrays.items()}

    def ordered(self, order: Order, base: Base) -> tuple[Order, Base]:
        return unpack_order(self.layout, self.method.settings, *self.arrived(pack_order(self.layout, order, base)))

    def evaluate(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Sums]:
        found = {}
        for node in sorted(self.present):
            sums = self.members[node].evaluate(*self.ordered(order, bases[node]))
            message = self.arrived(pack_sums(RUN, order.number, node, sums))
            found[node] = unpack_sums(RUN, order.number, node, *message)
        return found

    def train(self, order: Order, bases: Mapping[int, Base]) -> dict[int, Report]:
        layout, chosen = self.layout, self.method.settings
        arrived, self.held = self.held, []
        self.counted = sorted(self.present - self.straggling)
        for place, node in enumerate(sorted(self.present)):
            if self.crash_after == place:
                raise Crash
            report = self.members[node].train(*self.ordered(order, bases[node]))
            back = unpack_report(layout, chosen, *self.arrived(pack_report(layout, chosen, report)))
            if node in self.straggling:
                self.held.append((node, back))
            else:
                arrived += [(node, back)] * (2 if node in self.twice else 1)
        if self.crash_after is not None:
            raise Crash
        return Mail(arrived)


class Rounds(RuleBasedStateMachine):
    """Beside the run a plain loop that trains exactly the nodes that were counted."""

    @initialize(spec=st.sampled_from(["fedpa", "gpfedrec"]))
    def begin(self, spec: str) -> None:
        self.folder = Path(tempfile.mkdtemp())
        values: dict[str, Any] = {"patience": 0, "dtype": "float32", "item_counts": 0}
        self.method = cast(FederatedMethod, find_method(spec).configured("default", values))
        self.carrier = Carrier(self.folder / "run", self.method)
        self.number = 0
        self.plain = [self.carrier.new(node, self.folder / "plain") for node in range(NODES)]
        for node in self.plain:
            node.start(None)
        self.server = self.new_server()
        self.bases = dict.fromkeys(range(NODES), 0)
        self.numbers = [0]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def new_server(self) -> Server:
        return self.method.server(self.carrier.layout)

    def started(self) -> Coordinator:
        """A new process of the server, which is to do one more round."""
        chosen = self.method.settings.model_copy(update={"rounds": self.number + 1})
        users = {node: len(part) for node, part in enumerate(PARTS)}
        return Coordinator(
            self.new_server(), self.carrier, chosen, self.folder / "run", run=RUN, sync=False, users=users
        )

    @rule(node=WHO)
    def leave(self, node: int) -> None:
        self.carrier.present.discard(node)

    @rule(node=WHO)
    def join(self, node: int) -> None:
        self.carrier.present.add(node)

    @rule(node=WHO)
    def restart(self, node: int) -> None:
        self.carrier.members[node] = self.carrier.new(node)

    @rule(after=st.integers(0, NODES))
    def crash(self, after: int) -> None:
        """In the middle of a round, when so many nodes have trained, or all and the server did not hear of it."""
        self.carrier.crash_after = after
        with pytest.raises(Crash):
            self.started().run(lambda *_: None)
        self.carrier.crash_after = None

    @rule(straggling=st.sets(WHO, max_size=2), twice=st.sets(WHO))
    def round(self, straggling: set[int], twice: set[int]) -> None:
        """Go on from the disk alone, for one round."""
        carrier = self.carrier
        carrier.straggling, carrier.twice = straggling, twice
        late = len(carrier.held)
        coordinator = self.started()
        outcome = coordinator.run(lambda *_: None)
        carrier.straggling, carrier.twice = set(), set()
        self.number += 1
        self.numbers.append(coordinator.number)
        # Between the last round and this one a crash may have taken what was held.
        refused = Counter(outcome.lines[-1].get("refused", {}))
        assert refused == +Counter(late=late, repeated=len(twice & set(carrier.counted)))
        self.follow(carrier.counted)
        assert [line["round"] for line in outcome.lines] == list(range(self.number + 1))
        assert outcome.lines[-1]["participants"] == sum(len(PARTS[node]) for node in carrier.counted)

    def follow(self, counted: Sequence[int]) -> None:
        """The same round in the plain loop."""
        order = Order(RUN, self.number, tuple(self.server.state), self.server.downlink)
        total = Upload.empty(self.carrier.layout, self.method.settings)
        for node in counted:
            total += self.plain[node].train(order, Base(self.bases[node], tuple(range(self.number + 1)))).upload
            self.bases[node] = self.number
        self.server.step(total)

    @invariant()
    def rounds_only_move_forward(self) -> None:
        if hasattr(self, "numbers"):
            assert self.numbers == list(range(self.number + 1))

    @invariant()
    def the_run_is_the_plain_loop(self) -> None:
        """What a new process finds on the disk is the plain loop's state, so every upload was counted once."""
        if not hasattr(self, "numbers") or not self.number:
            return
        found = self.new_server()
        (saved,) = (checkpoints(self.folder / "run") / "server" / f"{self.number:06d}").glob("*.safetensors")
        found.restore(safetensors.torch.load_file(saved))
        assert bits(found.state) == bits(self.server.state)

    @invariant()
    def nothing_personal_was_on_the_wire(self) -> None:
        if not hasattr(self, "numbers"):
            return
        layout = self.carrier.layout
        sizes = {vector_name(vector): vector.values * vector.size for vector in layout.uploaded}
        assert layout.personal_size
        for header, arrays in self.carrier.seen:
            names = {name.partition("/")[2] for name in arrays}
            if header["kind"] == "sums":
                assert names <= {"train", "val", "test"}
                continue
            assert names == set(sizes)
            part = "state" if header["kind"] == "order" else "sum"
            assert {name.removeprefix(f"{part}/"): one.size for name, one in arrays.items() if part in name} == sizes
        self.carrier.seen.clear()


def bits(state: Sequence[Tensor]) -> list[bytes]:
    return [one.numpy().tobytes() for one in state]


Rounds.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRounds = Rounds.TestCase
