"""The adapted foundation as one ONNX graph: what is frozen is in it, what adapts it are inputs by their names.

Nothing is merged, so one graph serves every user. Needs `onnx`, which is an extra; import this module only to export.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from torch import Tensor

from fedpa.federation.parameters import Layout
from fedpa.models.adapted import AdaptedMLP
from fedpa.models.mlp import MLP

__all__ = ["IR_VERSION", "OPSET", "adapted_graph"]

OPSET, IR_VERSION = 17, 8
"""Old enough for runtimes on phones: ONNX Runtime reads it since 1.12."""

Shape = Sequence[int | str]
ROWS = "rows"


def adapted_graph(mlp: MLP, model: AdaptedMLP, layout: Layout) -> tuple[bytes, dict[str, list[int | str]]]:
    """The graph of an adapted foundation.

    Parameters
    ----------
    mlp : MLP
        The foundation's backbone.
    model : AdaptedMLP
        Its settings say which adapters there are.
    layout : Layout
        Of the whole model: that of `model`, perhaps with the personal bias.

    Returns
    -------
    graph : bytes
        An ONNX file. Its output ``score`` [rows] is a click probability.
    inputs : dict
        Shape of every input by name; the axis ``"rows"`` is free. ``item_codes`` and ``context_codes`` are int64,
        ``dense`` and every parameter of the layout of the settings' dtype.
    """
    rows = mlp.width("item") + mlp.width("context") + mlp.dense
    graph = _Graph(np.dtype(model.settings.dtype), (mlp.width("user"), rows))
    sides = {side: graph.embedded(mlp, side) for side in ("item", "context") if mlp.features[side]}
    dense = [graph.input("dense", (ROWS, mlp.dense))] if mlp.dense else []
    x = [graph.add("Concat", *sides.values(), *dense, axis=1)]
    if mlp.width("user"):
        user = graph.input("user_embedding", (mlp.width("user"),))
        x.insert(0, graph.add("Reshape", user, graph.integers("one_row", [1, -1])))
    for parameter in layout.parameters():
        if parameter.size and parameter.name != "user_embedding":
            graph.input(parameter.name, parameter.shape)
    members = {block.name: [parameter.name for parameter in block.parameters] for block in layout.blocks}

    for place, layer in enumerate(mlp.layers):
        name = f"layers.{place}"
        weight, bias = (graph.constant(f"{name}.{part}", layer.get_parameter(part)) for part in ("weight", "bias"))
        frozen = graph.add("Relu", graph.linear(x, weight, bias))
        x = [_mixed(graph, model, members, name, x, frozen) if f"{name}.up" in members else frozen]
    logits = graph.linear(x, "head.weight", "head.bias")
    if mlp.dense:
        logits = graph.add("Gemm", "dense", graph.constant("direct.weight", mlp.direct.weight), logits, transB=1)
    if "wide" in members and "item" in sides:
        taste = graph.add("Sum", *members["wide"])
        logits = graph.add("Gemm", sides["item"], taste, logits, transB=1)
    for table in layout.tables:
        logits = graph.add("Add", logits, graph.input(table.name, (ROWS, table.width)))
    if "user_bias" in members:
        logits = graph.add("Add", logits, "user_bias")
    score = graph.add("Reshape", graph.add("Sigmoid", logits), graph.integers("one_axis", [-1]))
    return graph.finished(score), graph.inputs


def _mixed(
    graph: _Graph,
    model: AdaptedMLP,
    members: dict[str, list[str]],
    name: str,
    x: Sequence[str],
    frozen: str,
) -> str:
    """A layer's frozen output [rows, out] with its branches added; see `fedpa.models.branches`."""
    rank, scale = model.settings.rank, model.settings.alpha / model.settings.rank
    adapters = len(members[f"{name}.up"])
    down = graph.linear(x, graph.stacked(members[f"{name}.down"][:adapters]), None)
    up = graph.stacked(members[f"{name}.up"])
    if f"{name}.gate.1.weight" not in members:
        return graph.add("Gemm", down, up, frozen, alpha=scale)
    hidden = graph.add("Relu", graph.linear(x, f"{name}.gate.0.weight", f"{name}.gate.0.bias"))
    mixture = graph.linear([hidden], f"{name}.gate.1.weight", f"{name}.gate.1.bias")
    factor = graph.constant("gate_scale", np.array(model.gate_scale))
    gate = graph.add("Mul", graph.add("Softmax", mixture, axis=1), factor)
    first, others = graph.split(gate, [1, adapters], 1)
    units = graph.constant("gate_units", scale * np.repeat(np.eye(adapters), rank, 1))
    scaled = graph.add("Mul", down, graph.add("MatMul", others, units))
    return graph.add("Gemm", scaled, up, graph.add("Mul", first, frozen))


class _Graph:
    """Nodes and constants of an ONNX graph, in the order in which they are added.

    Of the first layer's input, `widths` are those of the user's and of the rows' part.
    """

    def __init__(self, dtype: np.dtype[Any], widths: Sequence[int]) -> None:
        self.dtype, self.widths = dtype, widths
        self.inputs: dict[str, list[int | str]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._declared: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, kind: npt.DTypeLike | None = None) -> str:
        """Declare an input; by default of the graph's dtype."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype if kind is None else kind))
        self.inputs[name] = list(shape)
        self._declared.append(helper.make_tensor_value_info(name, element, list(shape)))
        return name

    def constant(self, name: str, value: Tensor | npt.NDArray[Any]) -> str:
        """A constant of the graph's dtype, once for each name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array, self.dtype), name)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant of integers."""
        self._constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        return self._node(operator, inputs, 1, attributes)[0]

    def split(self, value: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Cut a value along an axis."""
        name = self.integers("sizes_" + "_".join(map(str, sizes)), sizes)
        return self._node("Split", [value, name], len(sizes), {"axis": axis})

    def stacked(self, names: Sequence[str]) -> str:
        """Values one below the other."""
        return names[0] if len(names) == 1 else self.add("Concat", *names, axis=0)

    def linear(self, x: Sequence[str], weight: str, bias: str | None) -> str:
        """``x W^T + b`` [rows, out] of an input [rows, in], or of a user's part [1, in] beside the rows' part."""
        pieces = [weight] if len(x) == 1 else self.split(weight, self.widths, 1)
        total = bias
        for part, piece in zip(x, pieces, strict=True):
            total = self.add("Gemm", part, piece, *([] if total is None else [total]), transB=1)
        return str(total)

    def embedded(self, mlp: MLP, side: str) -> str:
        """Concatenated embeddings [rows, features x embedding] of the codes of a side, which are an input."""
        codes = self.input(f"{side}_codes", (ROWS, len(mlp.features[side])), np.int64)
        offsets = self.integers(f"offsets_{side}", mlp.get_buffer(f"offsets_{side}").tolist())
        table = self.constant(f"tables.{side}", mlp.tables[side].get_parameter("weight"))
        return self.add("Flatten", self.add("Gather", table, self.add("Add", codes, offsets)), axis=1)

    def finished(self, output: str) -> bytes:
        """The graph as a file, its only output named ``score``."""
        self._nodes.append(helper.make_node("Identity", [output], ["score"]))
        score = helper.make_tensor_value_info("score", helper.np_dtype_to_tensor_dtype(self.dtype), [ROWS])
        graph = helper.make_graph(self._nodes, "fedpa", self._declared, [score], list(self._constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="fedpa", opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _node(self, operator: str, inputs: Sequence[str], outputs: int, attributes: dict[str, Any]) -> list[str]:
        place = len(self._nodes)
        names = [f"{operator.lower()}_{place}" + (f"_{k}" if outputs > 1 else "") for k in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names
