r"""What a user likes, read from its clicks by ridge regression on vectors of items that open users taught.

Item :math:`i` has a vector :math:`k_i`, whose last component is 1, and a base :math:`h_i`, its log-odds for a user of
no taste, both sums of embeddings of its features. After interactions :math:`j` with clicks :math:`y_j` the taste is

.. math::
    z = \Big(\Lambda + c \sum_j k_j k_j^\top\Big)^{-1} \sum_j (y_j - \sigma(h_j))\, k_j,

one Newton step from zero towards the most probable weights of a logistic regression with the prior precision
:math:`\Lambda`, at a curvature :math:`c` that is learnt too. The two sums are all that a device need keep of the past,
and they grow by addition. A candidate is told :math:`\langle z, k_i \rangle` in two parts: taste, and how readily the
user clicks. Open users teach vectors, bases and precision through all their prefixes at once, as in meta-learning of
Bayesian regression (Harrison et al., *Meta-Learning Priors for Efficient Online Bayesian Regression*, WAFR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Taste"]

Floats = NDArray[np.float64]


class Taste(nn.Module):
    """Vectors and bases of items, precision and curvature.

    Parameters
    ----------
    sizes : sequence of int
        Numbers of codes of the item features.
    width : int
        Of the vectors, without the component that is 1.
    """

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.sizes, self.width = tuple(sizes), width
        self.table = nn.Embedding(sum(sizes), width + 1)
        self.precision = nn.Parameter(torch.zeros(width + 1))
        self.curvature = nn.Parameter(torch.tensor(-1.6))  # that of a click rate of 0.28, before it is learnt
        nn.init.normal_(self.table.weight, std=0.3)
        with torch.no_grad():
            self.table.weight[:, -1] = 0.0
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)

    def items(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [..., width + 1] and bases [...] of items with codes [..., features]."""
        found: Tensor = self.table(codes + self.get_buffer("offsets"))
        vector = found[..., :-1].sum(-2) / len(self.sizes) ** 0.5
        return torch.cat([vector, torch.ones_like(vector[..., :1])], -1), found[..., -1].sum(-1)

    def prefixes(self, vector: Tensor, base: Tensor, click: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The sums after none, one, two, ... of each user's interactions.

        Parameters
        ----------
        vector, base, click, real : Tensor
            [users, rows, width + 1], [users, rows], [users, rows], [users, rows].

        Returns
        -------
        moment : Tensor
            [users, rows + 1, width + 1].
        matrix : Tensor
            [users, rows + 1, width + 1, width + 1], without the prior's precision.
        """
        surprise = ((click - torch.sigmoid(base)) * real)[..., None] * vector
        weight = (self.curvature.exp() * real)[..., None, None]
        outer = weight * vector[..., :, None] * vector[..., None, :]
        pad = (0, 0, 1, 0)
        return nn.functional.pad(surprise.cumsum(1), pad), nn.functional.pad(outer.cumsum(1), (0, 0, *pad))

    def solve(self, moment: Tensor, matrix: Tensor) -> Tensor:
        """Tastes [..., width + 1] of sums."""
        weights: Tensor = torch.linalg.solve(matrix + torch.diag(self.precision.exp()), moment)
        return weights

    def read(
        self,
        vectors: Floats,
        bases: Floats,
        items: NDArray[np.int64],
        clicks: NDArray[np.bool_],
        real: NDArray[np.bool_],
        candidates: NDArray[np.integer],
    ) -> tuple[Floats, Floats]:
        """What the taste says of candidates.

        Parameters
        ----------
        vectors, bases : ndarray, shapes ``[n_items, width + 1]`` and ``[n_items]``
            Of the whole catalogue, as `items` gives them.
        items, clicks, real : ndarray, shape ``[queries, rows]``
            Own rows; where `real` is false there is none.
        candidates : ndarray of int, shape ``[queries, candidates]``

        Returns
        -------
        taste, lean : ndarray of float64, shapes ``[queries, candidates]`` and ``[queries]``
            Log-odds by what the user likes, and by how readily it clicks.
        """
        own = vectors[items] * real[..., None]
        surprise = clicks - 1 / (1 + np.exp(-bases[items]))
        moment = np.einsum("qr,qrd->qd", surprise, own)
        matrix = float(self.curvature.detach().exp()) * np.einsum("qrd,qre->qde", own, own)
        matrix += np.diag(self.precision.detach().double().exp().numpy())
        weights = np.linalg.solve(matrix, moment[..., None])[..., 0]
        taste = np.einsum("qd,qcd->qc", weights[:, :-1], vectors[candidates][..., :-1])
        return taste, weights[:, -1]
