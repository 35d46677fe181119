"""FedPA as one writes it first: one user after another, each with its own small model and optimiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedpa.federation.rows import Batch
from fedpa.models.adapted import AdaptedMLP


class Client(nn.Module):
    """One user's adapted foundation in ordinary PyTorch.

    Parameters
    ----------
    model : AdaptedMLP
        Gives the frozen weights and the settings.
    blocks : dict
        This user's parameters, one tensor per block.
    """

    def __init__(self, model: AdaptedMLP, blocks: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.blocks = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(b.clone()) for name, b in blocks.items()})

    def forward(self, batch: Batch) -> Tensor:
        """Logits [rows] of one user's rows."""
        settings, model = self.model.settings, self.model
        block = {name.replace("/", "."): value for name, value in self.blocks.items()}
        weight, _ = model.frozen[0]
        item = model.items[batch.items[0], : -len(weight)]
        context = nn.functional.embedding(batch.context[0] + model.context_offsets, model.context_table).flatten(-2)
        parts = [block["user_embedding"].expand(len(item), -1), item, context]
        x = torch.cat(parts if batch.dense is None else [*parts, batch.dense[0]], 1)
        for layer, (weight, bias) in enumerate(model.frozen):
            name = f"layers.{layer}"
            down, up = block[f"{name}.down"], block[f"{name}.up"]
            rank = settings.rank
            adapters = (model.branches - 1) * rank
            hidden = torch.relu(nn.functional.linear(x, down[adapters:], block[f"{name}.gate.0.bias"]))
            scores = nn.functional.linear(hidden, block[f"{name}.gate.1.weight"], block[f"{name}.gate.1.bias"])
            gate = torch.softmax(scores, -1) * model.gate_scale
            mixed = gate[:, :1] * torch.relu(nn.functional.linear(x, weight, bias))
            for branch in range(model.branches - 1):
                part = slice(branch * rank, (branch + 1) * rank)
                scale = settings.alpha / rank * gate[:, branch + 1 : branch + 2]
                mixed = mixed + scale * (x @ down[part].T @ up[part])
            x = mixed
        return nn.functional.linear(x, block["head.weight"], block["head.bias"]).squeeze(-1)


def train_user(model: AdaptedMLP, blocks: dict[str, Tensor], batch: Batch, labels: Tensor) -> dict[str, Tensor]:
    """One local epoch in one batch with a fresh Adam; returns the change of every block."""
    client = Client(model, blocks)
    settings = model.settings
    optimizer = torch.optim.Adam(client.parameters(), settings.lr, settings.adam_betas, settings.adam_eps)
    loss = nn.functional.binary_cross_entropy_with_logits(client(batch), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {name: client.blocks[name.replace(".", "/")].detach() - before for name, before in blocks.items()}
