"""Computed rows by key, in pages, within a budget of bytes."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["Budget", "Memory"]

_PAGE_BYTES = 1 << 20


class Budget:
    """Bytes that several memories may take together."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Take some bytes, if so many are left."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True


class Memory:
    """Rows of one shape by key; when the budget is spent, what is there stays and nothing is added.

    Were room made for the latest rows, a memory of fewer rows than come in turn would never hold one that comes.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._index = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._pages: list[Tensor] = []
        self._per_page = 0

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """Which of the keys are known [keys], and the rows of these in order; None where none is."""
        known, places = self._index
        if not len(known):
            return torch.zeros(len(keys), dtype=torch.bool), None
        at = torch.searchsorted(known, keys).clamp_(max=len(known) - 1)
        hit = known[at] == keys
        places = places[at[hit]]
        if not len(places):
            return hit, None
        found = self._pages[0].new_empty(len(places), *self._pages[0].shape[1:])
        page, line = places // self._per_page, places % self._per_page
        for number in page.unique().tolist():
            here = page == number
            found[here] = self._pages[number][line[here]]
        return hit, found

    def add(self, keys: Tensor, rows: Tensor) -> None:
        """Keep as many of the rows as there is room for, but for those that another thread has just kept."""
        with self._lock:
            known, places = self._index
            fresh = ~torch.isin(keys, known)
            keys, rows = keys[fresh], rows[fresh]
            size = rows[:1].numel() * rows.element_size()
            self._per_page = self._per_page or max(1, _PAGE_BYTES // max(1, size))
            begin, added = len(known), 0
            while added < len(keys):
                line = (begin + added) % self._per_page
                if line == 0 and not self._new_page(rows, size):
                    break
                piece = rows[added : added + self._per_page - line]
                self._pages[-1][line : line + len(piece)] = piece
                added += len(piece)
            known, order = torch.sort(torch.cat([known, keys[:added]]))
            self._index = known, torch.cat([places, torch.arange(begin, begin + added)])[order]

    def _new_page(self, rows: Tensor, size: int) -> bool:
        if not self._budget.take(size * self._per_page):
            return False
        self._pages.append(rows.new_empty(self._per_page, *rows.shape[1:]))
        return True
