"""FedPA as a plain loop: one user, one batch, one ordinary PyTorch computation after another, in float64.

Nothing of the engine is used: not its layout, products, optimiser, draws, sums or store. `second_rounds.npz` holds a
problem, with all its starts, and three rounds of it by this loop. From the folder ``tests``::

    python -m golden.plain_loop

writes that file again, with the same numbers up to the rounding of the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Array = npt.NDArray[Any]
FILE = Path(__file__).with_name("second_rounds.npz")
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Rules:
    """The settings that the loop follows; names as in the package."""

    seed: int = 0
    rank: int = 2
    alpha: float = 1.0
    gate_scale: float = 1.0
    optimizer: str = "adam"
    lr: float = 0.02
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    epochs: int = 1
    batch_size: int = 1024
    participation: float = 1.0
    weighting: str = "users"


@dataclass(frozen=True)
class Problem:
    """Users, rows, a frozen foundation and the start of every parameter.

    Attributes
    ----------
    keys : list of int
        The users' ids.
    values : dict
        Per group key the value of every user, -1 where unknown.
    rows : list of ndarray
        Per user the numbers of its training rows, in time.
    items, context, labels : ndarray
        Of every row.
    user_codes, item_codes : ndarray
    tables : dict
        ``"user/0"`` and so on: one embedding table per feature.
    frozen : dict
        ``"layers.0.weight"`` and so on.
    starts : dict
        By name; group parameters and those of ``user`` as any user of the value, any user starts with them.
    """

    keys: list[int]
    values: dict[str, list[int]]
    rows: list[Array]
    items: Array
    context: Array
    labels: Array
    user_codes: Array
    item_codes: Array
    tables: dict[str, Tensor]
    frozen: dict[str, Tensor]
    starts: dict[str, Tensor]

    @property
    def layers(self) -> int:
        """Hidden layers of the foundation."""
        return sum(name.startswith("layers.") and name.endswith(".weight") for name in self.frozen)


@dataclass
class PlainLoop:
    """Server and devices of one federation.

    Attributes
    ----------
    shared : dict
        By parameter name.
    groups : dict
        By parameter name, then value.
    personal : list of dict
        Per user, by parameter name.
    """

    problem: Problem
    rules: Rules
    sizes: Mapping[str, int]
    shared: dict[str, Tensor] = field(init=False)
    groups: dict[str, list[Tensor]] = field(init=False)
    personal: list[dict[str, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        starts = self.problem.starts
        self.shared = {n: v.clone() for n, v in starts.items() if self._kind(n) == "shared"}
        self.groups = {
            n: [v.clone() for _ in range(self.sizes[self._key(n)])]
            for n, v in starts.items()
            if self._kind(n) == "group"
        }
        self.personal = [
            {"user_embedding": self._embedding("user", codes)}
            | {n: v.clone() for n, v in starts.items() if self._kind(n) == "personal"}
            for codes in self.problem.user_codes
        ]

    def round(self, number: int) -> dict[str, float]:
        """One round; returns the participants and their weights' sums."""
        changes: dict[str, list[tuple[int, float, Tensor]]] = {}
        took_part, first_losses = [], []
        for user, key in enumerate(self.problem.keys):
            rows = self.problem.rows[user]
            if not len(rows):
                continue
            share = self.rules.participation
            if share < 1 and uniform(self.rules.seed, "participate", [number], key) >= share:
                continue
            took_part.append(user)
            before = self._download(user)
            after, loss = self._train(before, rows, number, key)
            first_losses.append(loss)
            weight = float(len(rows)) if self.rules.weighting == "rows" else 1.0
            for name, value in after.items():
                if self._kind(name) == "personal":
                    self.personal[user][name] = value
                else:
                    where = 0 if self._kind(name) == "shared" else self.problem.values[self._key(name)][user]
                    changes.setdefault(name, []).append((where, weight, value - before[name]))
        for name, found in changes.items():
            for group in {where for where, _, _ in found if where >= 0}:
                mine = [(w, change) for where, w, change in found if where == group]
                mean = torch.stack([w * change for w, change in mine]).sum(0) / sum(w for w, _ in mine)
                if name in self.shared:
                    self.shared[name] = self.shared[name] + mean
                else:
                    self.groups[name][group] = self.groups[name][group] + mean
        return {"participants": len(took_part), "loss": float(np.mean(first_losses)) if took_part else 0.0}

    def scores(self, user: int, rows: Array) -> Tensor:
        """Click probabilities of some rows of a user."""
        weights = self._download(user)
        return torch.stack([self._logit(weights, row) for row in rows]).sigmoid()

    def _download(self, user: int) -> dict[str, Tensor]:
        """Everything that a device holds before it trains; of an unknown value, nothing but zeros."""
        found = dict(self.personal[user]) | dict(self.shared)
        for name, table in self.groups.items():
            value = self.problem.values[self._key(name)][user]
            found[name] = table[value] if value >= 0 else torch.zeros_like(table[0])
        return found

    def _train(self, start: dict[str, Tensor], rows: Array, number: int, key: int) -> tuple[dict[str, Tensor], float]:
        weights = {name: value.clone().requires_grad_() for name, value in start.items()}
        rules = self.rules
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(weights.values(), lr=rules.lr)
            if rules.optimizer == "sgd"
            else torch.optim.Adam(weights.values(), lr=rules.lr, betas=rules.adam_betas, eps=rules.adam_eps)
        )
        first = None
        for epoch in range(rules.epochs):
            draws = [
                uniform(rules.seed, "shuffle", [number, epoch], (key + (place + 1) * 0xD1342543DE82EF95) & _WORD)
                for place in range(len(rows))
            ]
            order = sorted(range(len(rows)), key=draws.__getitem__)
            for begin in range(0, len(rows), rules.batch_size):
                chosen = rows[order[begin : begin + rules.batch_size]]
                logits = torch.stack([self._logit(weights, row) for row in chosen])
                labels = torch.from_numpy(self.problem.labels[chosen]).double()
                loss = binary_cross_entropy_with_logits(logits, labels)
                first = float(loss.detach()) if first is None else first
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return {name: value.detach() for name, value in weights.items()}, first or 0.0

    def _logit(self, weights: Mapping[str, Tensor], row: int) -> Tensor:
        problem, rules = self.problem, self.rules
        parts = [weights["user_embedding"], self._embedding("item", problem.item_codes[problem.items[row]])]
        if problem.context.shape[1]:
            parts.append(self._embedding("context", problem.context[row]))
        x = torch.cat(parts)
        scale = rules.alpha / rules.rank
        for layer in range(problem.layers):
            name = f"layers.{layer}"
            hidden = torch.relu(weights[f"{name}.gate.0.weight"] @ x + weights[f"{name}.gate.0.bias"])
            gate = torch.softmax(weights[f"{name}.gate.1.weight"] @ hidden + weights[f"{name}.gate.1.bias"], 0)
            gate = gate * rules.gate_scale
            mixed = gate[0] * torch.relu(problem.frozen[f"{name}.weight"] @ x + problem.frozen[f"{name}.bias"])
            for branch, lora in enumerate(["user", *(f"group.{key}" for key in self.sizes)]):
                low = weights[f"{name}.{lora}.a"] @ x
                mixed = mixed + scale * gate[1 + branch] * (low @ weights[f"{name}.{lora}.b"])
            x = mixed
        logit = (weights["head.weight"] @ x + weights["head.bias"]).squeeze(0)
        return logit + weights["user_bias"].squeeze(0) if "user_bias" in weights else logit

    def _embedding(self, side: str, codes: Array) -> Tensor:
        return torch.cat([self.problem.tables[f"{side}/{n}"][int(code)] for n, code in enumerate(codes)])

    @staticmethod
    def _key(name: str) -> str:
        return name.split(".group.")[1].rsplit(".", 1)[0]

    @staticmethod
    def _kind(name: str) -> str:
        if ".group." in name:
            return "group"
        return "personal" if ".user." in name or name.startswith("user_") else "shared"


def uniform(seed: int, purpose: str, numbers: list[int], key: int) -> float:
    """The draw of one key, written down in whole numbers."""
    text = "/".join(map(str, [seed, purpose, *numbers]))
    start = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
    return (_mix((_mix(key ^ start) + start) & _WORD) >> 11) / 2**53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


# The second golden file

RULES = Rules(seed=5, rank=2, alpha=3.0, lr=0.03, epochs=2, batch_size=4, participation=0.6)
SIZES = {"kind": 3, "size": 2}
ROUNDS = 3
_USER_TABLES, _ITEM_TABLES, _WIDTH, _HIDDEN, _GATES = (3, 4), (5, 3), 3, (6, 4), (3, 2)


def random_problem(seed: int, users: int = 24, items: int = 15) -> tuple[Problem, Array]:
    """A problem without any zero in it, and the part of every row (2 to train on, 4 to be scored)."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.4) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape) * scale)

    counts = rng.integers(1, 14, users)
    counts[0] = 1
    trained = -(-counts * 3 // 5)
    ends = np.cumsum(counts)
    user_codes = np.stack([rng.integers(0, size, users) for size in _USER_TABLES], 1)
    widths = [_WIDTH * (len(_USER_TABLES) + len(_ITEM_TABLES)), *_HIDDEN]
    frozen: dict[str, Tensor] = {}
    starts: dict[str, Tensor] = {"head.weight": normal(1, widths[-1]), "head.bias": normal(1)}
    for layer, (into, out) in enumerate(pairwise(widths)):
        frozen[f"layers.{layer}.weight"] = normal(out, into)
        frozen[f"layers.{layer}.bias"] = normal(out)
        gate = _GATES[layer]
        for half, shape in enumerate([(gate, into), (2 + len(SIZES), gate)]):
            starts[f"layers.{layer}.gate.{half}.weight"] = normal(*shape)
            starts[f"layers.{layer}.gate.{half}.bias"] = normal(shape[0])
        for lora in ["user", *(f"group.{key}" for key in SIZES)]:
            starts[f"layers.{layer}.{lora}.a"] = normal(RULES.rank, into)
            starts[f"layers.{layer}.{lora}.b"] = normal(RULES.rank, out)
    part = np.full(ends[-1], 4)
    rows = [np.arange(end - count, end - count + n) for end, count, n in zip(ends, counts, trained, strict=True)]
    part[np.concatenate(rows)] = 2
    problem = Problem(
        keys=(np.arange(users) * 11 + 2).tolist(),
        values={"kind": user_codes[:, 0].tolist(), "size": rng.integers(0, 2, users).tolist()},
        rows=rows,
        items=rng.integers(0, items, ends[-1]),
        context=np.zeros((ends[-1], 0), np.int64),
        labels=rng.integers(0, 2, ends[-1]),
        user_codes=user_codes,
        item_codes=np.stack([rng.integers(0, size, items) for size in _ITEM_TABLES], 1),
        tables={f"user/{n}": normal(size, _WIDTH) for n, size in enumerate(_USER_TABLES)}
        | {f"item/{n}": normal(size, _WIDTH) for n, size in enumerate(_ITEM_TABLES)},
        frozen=frozen,
        starts=starts,
    )
    return problem, part


def to_arrays(problem: Problem, part: Array) -> dict[str, Array]:
    """A problem as arrays with names."""
    owner = np.full(len(part), -1)
    for user, rows in enumerate(problem.rows):
        owner[rows] = user
    for place in range(1, len(owner)):  # a user's scored rows follow its training rows
        owner[place] = owner[place - 1] if owner[place] < 0 else owner[place]
    found: dict[str, Array] = {
        "data/keys": np.array(problem.keys),
        "data/user": owner,
        "data/part": part,
        "data/item": problem.items,
        "data/label": problem.labels,
        "data/user_codes": problem.user_codes,
        "data/item_codes": problem.item_codes,
    }
    found |= {f"data/values/{key}": np.array(values) for key, values in problem.values.items()}
    for name in ("tables", "frozen", "starts"):
        found |= {f"{name}/{key}": value.numpy() for key, value in getattr(problem, name).items()}
    return found


def from_arrays(arrays: Mapping[str, Array]) -> Problem:
    """The problem of `to_arrays`."""
    owner, part = arrays["data/user"], arrays["data/part"]

    def tensors(name: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{name}/"): torch.from_numpy(value)
            for key, value in arrays.items()
            if key.startswith(f"{name}/")
        }

    return Problem(
        keys=arrays["data/keys"].tolist(),
        values={key: arrays[f"data/values/{key}"].tolist() for key in SIZES},
        rows=[np.flatnonzero((owner == user) & (part == 2)) for user in range(len(arrays["data/keys"]))],
        items=arrays["data/item"],
        context=np.zeros((len(owner), 0), np.int64),
        labels=arrays["data/label"],
        user_codes=arrays["data/user_codes"],
        item_codes=arrays["data/item_codes"],
        tables=tensors("tables"),
        frozen=tensors("frozen"),
        starts=tensors("starts"),
    )


def rounds(problem: Problem, owner: Array) -> dict[str, Array]:
    """The results of three rounds: server, personal parameters and the score of every row."""
    loop = PlainLoop(problem, RULES, SIZES)
    found: dict[str, Array] = {}
    for number in range(ROUNDS):
        facts = loop.round(number)
        found[f"round{number}/participants"] = np.array(facts["participants"])
        found |= {f"round{number}/server/{name}": value.numpy() for name, value in loop.shared.items()}
        found |= {f"round{number}/server/{name}": torch.stack(v).numpy() for name, v in loop.groups.items()}
        scores = [loop.scores(user, np.flatnonzero(owner == user)) for user in range(len(problem.keys))]
        found[f"round{number}/scores"] = torch.cat(scores).numpy()
    for name in loop.personal[0]:
        found[f"personal/{name}"] = torch.stack([mine[name] for mine in loop.personal]).numpy()
    return found


def main() -> None:
    """Write `FILE`."""
    problem, part = random_problem(1)
    arrays = to_arrays(problem, part)
    content: dict[str, Any] = arrays | rounds(problem, arrays["data/user"])
    np.savez_compressed(FILE, **content)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
