"""Train a transformer reader's encoder on open users' sequences, all prefixes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpa.data.past import Past, Queries
from fedpa.draws import derive_seed, generator
from fedpa.evaluation.metrics import auc
from fedpa.models.history.encoder import Encoder
from fedpa.models.history.transformer import TransformerHistory
from fedpa.models.history.windows import Windows
from fedpa.models.snapshot import snapshot

if TYPE_CHECKING:
    from fedpa.models.pretrain import PretrainSettings

__all__ = ["Loss", "fit_encoder"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Sequences(NamedTuple):
    """Windows of users' pasts, and the rows to predict at their prefixes, window by window.

    Attributes
    ----------
    items, clicked, gaps : Tensor
        What was interacted with [windows, length], as `Windows.events` gives it.
    ends : Tensor
        How many of them there are [windows].
    first : Tensor
        The first row of each window, and at last the number of rows [windows + 1].
    prefix, target : Tensor
        How many interactions a row may read, and its item [rows].
    light : Tensor
        The light reader's evidence [rows, width].
    label : Tensor
        [rows, ...].
    """

    items: Tensor
    clicked: Tensor
    gaps: Tensor
    ends: Tensor
    first: Tensor
    prefix: Tensor
    target: Tensor
    light: Tensor
    label: Tensor

    @classmethod
    def of(
        cls, reader: TransformerHistory, past: Past, kinds: NDArray[np.integer], queries: Queries, label: Tensor
    ) -> Self:
        """The sequences behind some rows; the light evidence of each row stands beside it."""
        windows = Windows.of(queries, reader.encoder.length)
        order = np.argsort(windows.window, kind="stable")
        queries = queries.at(order)
        light = reader.light.read(past, reader.compared(kinds), queries)
        items, clicked, gaps = windows.events(past, reader.unit)
        first = np.searchsorted(windows.window[order], np.arange(len(windows) + 1))
        return cls(
            torch.from_numpy(items),
            torch.from_numpy(clicked),
            torch.from_numpy(gaps),
            torch.from_numpy(windows.end - windows.begin),
            torch.from_numpy(first),
            torch.from_numpy(windows.prefix[order]),
            torch.from_numpy(queries.items[:, 0].astype(np.int64)),
            torch.from_numpy(np.ascontiguousarray(light[:, 0])),
            label.float()[torch.from_numpy(order)],
        )

    def to(self, device: torch.device) -> Self:
        """On a device."""
        return type(self)(*(value.to(device) for value in self))

    def rows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Of some windows the rows, and the place among the windows of each."""
        first, counts = self.first[windows], self.first[windows + 1] - self.first[windows]
        place = torch.repeat_interleave(torch.arange(len(windows), device=first.device), counts)
        before = torch.cumsum(counts, 0) - counts
        return first[place] + torch.arange(len(place), device=first.device) - before[place], place


class _Clicks(nn.Module):
    """The encoder and, while it is trained, a linear map of the light evidence beside it.

    So the encoder learns what counts do not say.
    """

    def __init__(self, encoder: Encoder, codes: Tensor, light: int) -> None:
        super().__init__()
        self.encoder, self.codes = encoder, codes
        self.light = nn.Linear(light, 1, bias=False)

    def forward(self, rows: Sequences, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and labels of the rows of some windows."""
        chosen, place = rows.rows(windows)
        length = int(rows.ends[windows].max())
        items = rows.items[windows, :length]
        found, where = torch.unique(torch.cat([items.flatten(), rows.target[chosen]]), return_inverse=True)
        vectors = self.encoder.items(self.codes[found])[where]
        seen = vectors[: items.numel()].view(*items.shape, self.encoder.width)
        states = self.encoder(seen, rows.clicked[windows, :length], rows.gaps[windows, :length])
        logits = self.encoder.logits(states[place, rows.prefix[chosen]], vectors[items.numel() :])
        return logits + self.light(rows.light[chosen]).squeeze(-1), rows.label[chosen]


def fit_encoder(
    reader: TransformerHistory,
    past: Past,
    kinds: NDArray[np.integer],
    train: tuple[Queries, Tensor],
    held_out: tuple[Queries, Tensor],
    settings: PretrainSettings,
    *,
    loss: Loss = binary_cross_entropy_with_logits,
    seed: int,
    device: torch.device,
    advance: Callable[[str], None] = lambda state: None,
) -> dict[str, Any]:
    """Train a reader's encoder in place on clicks; it ends with the weights of the epoch of lowest held-out log-loss.

    Every window of a user's past is encoded once for all of its prefixes.

    Parameters
    ----------
    reader : TransformerHistory
    past : Past
    kinds : ndarray of int, shape ``[n_items, columns]``
        As the reader's `kinds_of` gives them.
    train, held_out : (Queries, Tensor)
        One candidate each, and labels [queries]; those trained on are whatever `loss` takes [queries, ...].
    settings : PretrainSettings
        A batch is as many windows as have `batch_size` rows on average.
    loss : callable
        Mean loss of logits [rows] and labels.
    seed : int
        For the order of windows and what is dropped.
    device : torch.device
        Where it is trained.
    advance : callable
        Takes a line after every epoch.

    Returns
    -------
    dict
        ``epochs``, ``best_epoch`` and ``held_out`` (``logloss``, ``auc``).
    """
    rows, judged = (Sequences.of(reader, past, kinds, *part).to(device) for part in (train, held_out))
    codes = torch.from_numpy(reader.encoded(kinds)).to(device)
    size = max(1, settings.batch_size * len(rows.ends) // len(rows.label))
    best = snapshot(reader.encoder)
    best_loss, best_auc, best_epoch, epoch = float("inf"), None, 0, 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "history/fit"))
        model = _Clicks(reader.encoder, codes, reader.light.width).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        for epoch in range(1, settings.epochs + 1):
            model.train()
            order = torch.randperm(len(rows.ends), generator=generator(seed, "history/shuffle", epoch))
            for windows in order.to(device).split(size):
                value = loss(*model(rows, windows))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            found, found_auc = _held_out(model, judged, size)
            advance(f"held-out logloss {found:.4f}")
            if found < best_loss:
                best_loss, best_auc, best_epoch = found, found_auc, epoch
                best = snapshot(reader.encoder)
            elif settings.patience and epoch - best_epoch >= settings.patience:
                break
    reader.encoder.load_state_dict(best)
    reader.encoder.cpu().eval().requires_grad_(False)
    return {"epochs": epoch, "best_epoch": best_epoch, "held_out": {"logloss": best_loss, "auc": best_auc}}


def _held_out(model: _Clicks, rows: Sequences, size: int) -> tuple[float, float | None]:
    model.eval()
    with torch.inference_mode():
        pieces = [model(rows, windows) for windows in torch.arange(len(rows.ends), device=rows.ends.device).split(size)]
        logits, labels = (torch.cat([piece[side] for piece in pieces]) for side in (0, 1))
        loss = float(binary_cross_entropy_with_logits(logits, labels))
    return loss, auc(labels.cpu().numpy(), logits.cpu().numpy())
