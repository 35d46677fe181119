"""One round of local training on a device, with NumPy alone: what a phone has to do, word for word.

    python train_on_device.py EXPORT --user 42 --rows EXPORT/rows/42.csv --round 31 --out round-31

EXPORT is a folder of `fedpa export`; docs/on-device.md says what is in it, what the upload is and what never leaves.
``round-31/upload.safetensors`` is what leaves; ``round-31/adapter.safetensors`` is the user's new adapter, which stays.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]


class Rows(NamedTuple):
    """Rows of the user's own, oldest first: arrays [rows], and the codes of the rows' own features by name."""

    item: Array  # place in items.npz
    click: Array
    time: Array
    train: Array  # whether the device may train on it
    counts: Array  # [rows, 4]: item_views, item_clicks, all_views, all_clicks, as they came with the item
    own: Arrays

    @property
    def before(self) -> Array:
        """How many rows are strictly older than each [rows]."""
        return np.searchsorted(self.time, self.time, side="left")


class Device:
    """What is on one user's device."""

    def __init__(self, folder: Path, user: str) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.card = json.loads((folder / "adapters" / f"{stem(user)}.json").read_text())
        self.items = dict(np.load(folder / "items.npz"))
        self.foundation, self.shared = (load_file(folder / f"{name}.safetensors") for name in ("foundation", "shared"))
        self.adapter = load_file(folder / "adapters" / f"{stem(user)}.safetensors") if self.card["adapter"] else {}
        self.parameters: dict[str, dict[str, Any]] = self.manifest["parameters"]

    def starts(self) -> Arrays:
        """All parameters of a user who has nothing of its own: what the server sent; of an unknown group, zeros."""
        table, features = self.foundation["tables.user.weight"], self.manifest["features"]["user"]
        found = {"user_embedding": embedded(table, features, self.card["user_codes"])}
        for name, facts in self.parameters.items():
            if facts["scope"] == "group":
                row = self.card["groups"][facts["group"]]["row"]
                found[name] = self.shared[name][row] if row >= 0 else np.zeros_like(self.shared[name][0])
            elif name != "user_embedding":
                found[name] = self.shared[name]
        return found

    def weights(self) -> Arrays:
        """All parameters; without an adapter those with which the model is the foundation itself."""
        starts = self.starts()
        if self.card["adapter"]:
            return starts | self.adapter
        plain = {name: self.foundation.get(name, np.zeros_like(value)) for name, value in starts.items()}
        return plain | {"user_embedding": starts["user_embedding"]}

    def rows(self, file: Path) -> Rows:
        """Read the user's own rows."""
        place = {str(item): number for number, item in enumerate(self.items["ids"])}
        with file.open(newline="", encoding="utf-8") as text:
            lines = sorted(csv.DictReader(text), key=lambda line: int(line["time"]))
        names = {name for line in lines for name in line} - {"item"}
        columns = {name: np.array([int(line[name]) for line in lines]) for name in names}
        none = np.zeros(len(lines), np.int64)
        counts = [columns.get(name, none) for name in ("item_views", "item_clicks", "all_views", "all_clicks")]
        return Rows(
            np.array([place[line["item"]] for line in lines], np.int64),
            columns.get("click", none),
            columns.get("time", none),
            columns.get("train", none + 1) == 1,
            np.stack(counts, 1),
            {name: column for name, column in columns.items() if name.startswith("row:")},
        )

    def inputs(self, rows: Rows, item: Array, before: Array, counts: Array, own: Arrays) -> Arrays:
        """What the graph reads of some candidates, each with how many of the user's `rows` are known by then.

        `item`, `before` [n] and `counts` [n, 4] as in `Rows`, `own` the codes of the row's own features [n].
        """
        found = {"item_codes": self.items["codes"][item].astype(np.int64)}
        clicks = np.append(0, np.cumsum(rows.click))[before]
        if self.manifest["features"]["context"]:
            found["context_codes"] = self._context(before, clicks, counts, own)
        if self.manifest["history"]:
            found["dense"] = self._history(rows, item, before, clicks, counts)
        return found

    def _context(self, before: Array, clicks: Array, counts: Array, own: Arrays) -> Array:
        """Codes of smoothed click rates and counts [n, features]."""
        item_views, item_clicks, all_views, all_clicks = counts.T.astype(np.float64)
        prior = (all_clicks + 1) / (all_views + 2)
        values = {
            "item_rate": (item_clicks + 20 * prior) / (item_views + 20),
            "item_views": item_views,
            "user_rate": (clicks + 5 * prior) / (before + 5),
            "user_views": before,
        }
        codes = []
        for feature in self.manifest["features"]["context"]:
            if feature["name"] not in values:
                codes.append(own.get(feature["name"], np.zeros_like(before)))
                continue
            value = np.log1p(values[feature["name"]]) if feature["transform"] == "log1p" else values[feature["name"]]
            codes.append(np.searchsorted(np.array(feature["edges"]), value, side="right") + 1)
        return np.stack(codes, 1).astype(np.int64)

    def _history(self, rows: Rows, item: Array, before: Array, clicks: Array, counts: Array) -> Array:
        """The light reader's numbers [n, width]: log-odds of click rates against what they refine, and log counts."""
        spec = self.manifest["history"]
        item_views, item_clicks, all_views, all_clicks = counts.T.astype(np.float64)
        overall = (all_clicks + 1) / (all_views + 2)
        user = (clicks + 5 * overall) / (before + 5)
        of_item = (item_clicks + 10 * overall) / (item_views + 10)
        columns = [logit(of_item) - logit(overall), np.log1p(item_views)]
        columns += [logit(user) - logit(overall), np.log1p(before)]
        kinds = [codes // step for codes, (_, step) in zip(self._compared().T, spec["kinds"], strict=True)]
        age = before[:, None] - 1 - np.arange(len(rows.item))  # of each own row, 0 for the latest
        weight = ((age >= 0) & (age < spec["length"])).astype(np.float64)
        if spec["half_life"] is not None:
            weight *= 0.5 ** (np.maximum(age, 0) / spec["half_life"])
        for kind in (*kinds, np.arange(len(self.items["ids"]))):
            same = weight * (kind[rows.item] == kind[item][:, None])
            rate = (same @ rows.click + 3 * user) / (same.sum(1) + 3)
            columns += [logit(rate) - logit(user), np.log1p(same.sum(1))]
        if spec.get("taste"):
            columns += self._taste(rows, item, before, weight > 0)
        evidence = (np.stack(columns, 1) - np.array(spec["mean"])) / np.array(spec["spread"])
        return evidence.astype(np.float32).astype(self.manifest["dtype"])

    def _compared(self) -> Array:
        """Codes of the item features that the reader compares [items, features]."""
        names = [name for name, _ in self.manifest["features"]["item"]]
        return self.items["codes"][:, [names.index(name) for name, _ in self.manifest["history"]["kinds"]]]

    def _taste(self, rows: Rows, item: Array, before: Array, known: Array) -> tuple[Array, Array]:
        """What the user likes, and how readily it clicks: ridge regression of its clicks on vectors of items."""
        spec, weights = self.manifest["history"], {n: v.astype(np.float64) for n, v in self.foundation.items()}
        codes, sizes = self._compared(), [(None, size) for size in spec["taste"]["sizes"]]
        found = embedded(weights["history.table.weight"], sizes, codes).reshape(*codes.shape, -1)
        vector, base = found.sum(1) / len(sizes) ** 0.5, found[..., -1].sum(1)
        vector[:, -1] = 1
        own, surprise = vector[rows.item], rows.click - 1 / (1 + np.exp(-base[rows.item]))
        _, first, moment = np.unique(before, return_index=True, return_inverse=True)
        counted = known[first].astype(np.float64)
        matrix = np.exp(weights["history.curvature"]) * np.einsum("mr,rd,re->mde", counted, own, own)
        matrix += np.diag(np.exp(weights["history.precision"]))
        taste = np.linalg.solve(matrix, ((counted * surprise) @ own)[..., None])[moment, :, 0]
        return (taste[:, :-1] * vector[item, :-1]).sum(1), taste[:, -1]


class Pass:
    """The adapted foundation on some rows: forward when made, then `gradient`."""

    def __init__(self, device: Device, weights: Arrays, rows: Arrays, item: Array) -> None:
        manifest, frozen = device.manifest, device.foundation
        self.weights, self.item, self.frozen = weights, item, frozen
        self.scale, self.gate_scale = manifest["alpha"] / manifest["rank"], manifest["gate_scale"]
        self.layers, self.branches, self.rank = manifest["layers"], manifest["branches"], manifest["rank"]
        self.parameters = device.parameters
        n = len(item)
        self.vectors = embedded(frozen["tables.item.weight"], manifest["features"]["item"], rows["item_codes"])
        parts = [np.broadcast_to(weights["user_embedding"], (n, len(weights["user_embedding"]))), self.vectors]
        if "context_codes" in rows:
            sizes = [[feature["name"], feature["size"]] for feature in manifest["features"]["context"]]
            parts.append(embedded(frozen["tables.context.weight"], sizes, rows["context_codes"]))
        x = np.concatenate([*parts, *([rows["dense"]] if "dense" in rows else [])], 1)
        self.kept: list[Arrays] = []
        for layer in range(self.layers):
            x = self._layer(f"layers.{layer}", x)
        self.last = x
        logits = x @ weights["head.weight"].T + weights["head.bias"]
        if "dense" in rows:
            logits = logits + rows["dense"] @ frozen["direct.weight"].T
        for name in self._wide:
            logits = logits + self.vectors @ weights[name].T
        if "item_bias" in weights:
            logits = logits + weights["item_bias"][item]
        self.logits: Array = logits[:, 0] + weights.get("user_bias", np.zeros(1, x.dtype))

    @property
    def _wide(self) -> list[str]:
        return [name for name in self.weights if name.startswith("wide.")]

    def _layer(self, name: str, x: Array) -> Array:
        """``g[0] M(x) + s sum_j g[1 + j] B_j A_j x`` with ``g = c softmax(W2 relu(W1 x + c1) + c2)``."""
        weights = self.weights
        linear = x @ self.frozen[f"{name}.weight"].T + self.frozen[f"{name}.bias"]
        kept = {"x": x, "linear": linear, "frozen": np.maximum(linear, 0)}
        self.kept.append(kept)
        if not self.branches:
            return kept["frozen"]
        kept["a"], kept["b"] = (np.concatenate([weights[f"{name}.{j}.{ab}"] for j in self.branches]) for ab in "ab")
        kept["down"] = x @ kept["a"].T
        kept["gate"] = np.ones((len(x), 1 + len(self.branches)), x.dtype)
        if f"{name}.gate.1.weight" in weights:
            kept["hidden"] = np.maximum(x @ weights[f"{name}.gate.0.weight"].T + weights[f"{name}.gate.0.bias"], 0)
            mixture = kept["hidden"] @ weights[f"{name}.gate.1.weight"].T + weights[f"{name}.gate.1.bias"]
            power = np.exp(mixture - mixture.max(1, keepdims=True))
            kept["gate"] = power / power.sum(1, keepdims=True) * x.dtype.type(self.gate_scale)
        kept["factor"] = np.repeat(kept["gate"][:, 1:], self.rank, 1) * x.dtype.type(self.scale)
        return kept["gate"][:, :1] * kept["frozen"] + (kept["down"] * kept["factor"]) @ kept["b"]

    def gradient(self, of_logits: Array) -> Arrays:
        """Gradients of all parameters, from those of the logits [rows]."""
        of_logits = of_logits[:, None]
        found = {"head.weight": of_logits.T @ self.last, "head.bias": of_logits.sum(0), "user_bias": of_logits.sum(0)}
        found |= dict.fromkeys(self._wide, of_logits.T @ self.vectors)
        if "item_bias" in self.weights:
            found["item_bias"] = np.zeros_like(self.weights["item_bias"])
            np.add.at(found["item_bias"], self.item, of_logits)
        of_x = of_logits @ self.weights["head.weight"]
        for layer in reversed(range(self.layers)):
            of_x = self._layer_gradient(f"layers.{layer}", self.kept[layer], of_x, found)
        found["user_embedding"] = of_x[:, : len(self.weights["user_embedding"])].sum(0)
        return {name: found[name] for name in self.parameters}

    def _layer_gradient(self, name: str, kept: Arrays, of_out: Array, found: Arrays) -> Array:
        """Gradient of a layer's input, from that of its output; those of its parameters go into `found`."""
        if not self.branches:
            return (of_out * (kept["linear"] > 0)) @ self.frozen[f"{name}.weight"]
        gate, down, factor = kept["gate"], kept["down"], kept["factor"]
        of_x = (of_out * gate[:, :1] * (kept["linear"] > 0)) @ self.frozen[f"{name}.weight"]
        of_scaled = of_out @ kept["b"].T
        of_b, of_down = (down * factor).T @ of_out, of_scaled * factor
        of_a = of_down.T @ kept["x"]
        of_x = of_x + of_down @ kept["a"]
        for place, branch in enumerate(self.branches):
            mine = slice(place * self.rank, (place + 1) * self.rank)
            found[f"{name}.{branch}.a"], found[f"{name}.{branch}.b"] = of_a[mine], of_b[mine]
        if "hidden" not in kept:
            return of_x
        of_frozen = (of_out * kept["frozen"]).sum(1, keepdims=True)
        of_others = (of_scaled * down).reshape(len(down), -1, self.rank).sum(2) * down.dtype.type(self.scale)
        of_gate = np.concatenate([of_frozen, of_others], 1)
        of_mixture = gate * (of_gate - (of_gate * gate).sum(1, keepdims=True) / gate.dtype.type(self.gate_scale))
        of_hidden = of_mixture @ self.weights[f"{name}.gate.1.weight"] * (kept["hidden"] > 0)
        found[f"{name}.gate.1.weight"], found[f"{name}.gate.1.bias"] = of_mixture.T @ kept["hidden"], of_mixture.sum(0)
        found[f"{name}.gate.0.weight"], found[f"{name}.gate.0.bias"] = of_hidden.T @ kept["x"], of_hidden.sum(0)
        return of_x + of_hidden @ self.weights[f"{name}.gate.0.weight"]


def train(device: Device, rows: Rows, number: int) -> tuple[Arrays, Arrays]:
    """The round of that number: what is uploaded, as integers by name, and the user's new adapter."""
    settings = device.manifest["training"]
    if settings["keep_optimizer"]:
        raise SystemExit("keep_optimizer: devices of this run keep moments from round to round, which no export has")
    local = Local(device, int(rows.train.sum()))
    chosen = np.flatnonzero(rows.train)
    own = {name: codes[chosen] for name, codes in rows.own.items()}
    inputs = device.inputs(rows, rows.item[chosen], rows.before[chosen], rows.counts[chosen], own)
    click, size = rows.click[chosen].astype(device.manifest["dtype"]), settings["batch_size"]
    losses = []
    for epoch in range(settings["epochs"]):
        order = np.arange(len(chosen))
        if len(chosen) > size:
            cells = key(device.card["user"]) + (order.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD1342543DE82EF95)
            draws = uniform(device.manifest["seed"], "shuffle", (number, epoch), cells)
            order = np.argsort(draws, kind="stable")
        for begin in range(0, len(order), size):
            batch = order[begin : begin + size]
            some = {name: value[batch] for name, value in inputs.items()}
            forward = Pass(device, local.weights, some, rows.item[chosen[batch]])
            losses.append(np.mean(np.logaddexp(0, forward.logits) - click[batch] * forward.logits))
            surprise = 1 / (1 + np.exp(-forward.logits)) - click[batch]
            local.step(forward.gradient(surprise / click.dtype.type(len(batch))))
    stays = {name for name, facts in device.parameters.items() if facts["scope"] == "personal"} | {"user_embedding"}
    return upload(device, rows, local.moved, float(losses[0])), {name: local.weights[name] for name in stays}


class Local:
    """A device's parameters in a round, and its optimiser: gradient descent, or a fresh Adam."""

    def __init__(self, device: Device, count: int) -> None:
        self.parameters, self.settings, self.count = device.parameters, device.manifest["training"], count
        self.start = device.starts()
        self.begun = self.start | device.adapter
        self.moved, self.mean, self.square = (
            {name: np.zeros_like(value) for name, value in self.begun.items()} for _ in range(3)
        )
        self.steps = 0

    @property
    def weights(self) -> Arrays:
        """All parameters as they are now."""
        return {name: value + self.moved[name] for name, value in self.begun.items()}

    def step(self, gradient: Arrays) -> None:
        """Move everything but what is frozen."""
        settings = self.settings
        self.steps += 1
        for name, facts in self.parameters.items():
            if facts["scope"] == "frozen":
                continue
            slope = gradient[name]
            if facts["scope"] != "personal":
                slope = slope + settings["proximal"] * self.moved[name]
            if settings["optimizer"] == "adam":
                slope = self._adam(name, slope)
            rate = settings["lr"] * facts["rate"]
            step = -rate * slope
            if facts["scope"] == "personal":  # drawn to its start by the implicit step of the prior
                pull = rate * settings["personal_decay"] / self.count
                distance = self.begun[name] - self.start[name] + self.moved[name] + step
                step = step - distance * (pull / (1 + pull))
            self.moved[name] = self.moved[name] + step

    def _adam(self, name: str, slope: Array) -> Array:
        beta_1, beta_2 = self.settings["adam_betas"]
        self.mean[name] = beta_1 * self.mean[name] + (1 - beta_1) * slope
        self.square[name] = beta_2 * self.square[name] + (1 - beta_2) * slope * slope
        spread = np.sqrt(self.square[name] / (1 - beta_2**self.steps)) + self.settings["adam_eps"]
        return self.mean[name] / (1 - beta_1**self.steps) / spread


def upload(device: Device, rows: Rows, moved: Arrays, loss: float) -> Arrays:
    """What leaves: changes of what is shared, as whole multiples of a unit, times the device's weight."""
    settings, unit = device.manifest["training"], 2.0 ** device.manifest["fraction_bits"]
    count = int(rows.train.sum())
    weight = count if settings["weighting"] == "rows" else 1
    found = {"weight": weight, "rows": count, "loss": round(loss * unit)}
    whole = {name: np.array([value], np.int64) for name, value in found.items()}
    for name, facts in device.parameters.items():
        unknown = facts["scope"] == "group" and device.card["groups"][facts["group"]]["row"] < 0
        if facts["scope"] in ("shared", "group") and not unknown:
            whole[name] = np.rint(moved[name].astype(np.float64) * unit).astype(np.int64) * weight
        if facts.get("table") and settings["table_mean"] == "touched":
            whole[f"{name}.weight"] = np.zeros(facts["shape"][0], np.int64)
            whole[f"{name}.weight"][rows.item[rows.train]] = weight
    return whole


def embedded(table: Array, features: list[Any], codes: Any) -> Array:
    """Concatenated embeddings [..., features x width] of codes [..., features]; the features share one table."""
    first = np.cumsum([0, *(size for _, size in features)])[:-1]
    found = table[np.asarray(codes, np.int64) + first.astype(np.int64)]
    return found.reshape(*found.shape[:-2], -1)


def logit(rate: Array) -> Array:
    """Log-odds."""
    return np.log(rate / (1 - rate))


def key(user: int | str) -> np.uint64:
    """The user's number in draws."""
    if isinstance(user, int):
        return np.uint64(user & (2**64 - 1))
    return np.uint64(int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8).digest(), "little"))


def uniform(seed: int, purpose: str, numbers: tuple[int, ...], keys: Array) -> Array:
    """Draws in [0, 1), a function of their arguments: SplitMix64 of the key and a seed of this purpose."""

    def mixed(x: Array) -> Array:
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    text = "/".join([str(seed), purpose, *map(str, numbers)])
    first = np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1)
    return (mixed(mixed(keys ^ first) + first) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def takes_part(device: Device, number: int) -> bool:
    """Whether the device is drawn for a round."""
    share, user = device.manifest["training"]["participation"], np.array([key(device.card["user"])])
    return share >= 1 or bool(uniform(device.manifest["seed"], "participate", (number,), user)[0] < share)


def stem(user: str) -> str:
    """Name of a user's files: its id, or a hash of an id that may be no file name."""
    plain = 0 < len(user) <= 64 and set(user) <= set("0123456789abcdefghijklmnopqrstuvwxyz_-")
    return user if plain else f"id.{hashlib.blake2b(user.encode(), digest_size=16).hexdigest()}"


def main() -> None:
    """Train, and write what leaves and what stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--user", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = Device(options.export, options.user)
    rows = device.rows(options.rows)
    if not rows.train.any() or not takes_part(device, options.round):
        raise SystemExit("nothing to do: the device has no rows to train on, or is not drawn for this round")
    sent, adapter = train(device, rows, options.round)
    options.out.mkdir(parents=True)
    about = {"foundation": device.card["foundation"], "round": str(options.round)}
    groups = {name: str(group["row"]) for name, group in device.card["groups"].items()}
    save_file(sent, options.out / "upload.safetensors", about | groups)
    save_file(adapter, options.out / "adapter.safetensors", about)


if __name__ == "__main__":
    main()
