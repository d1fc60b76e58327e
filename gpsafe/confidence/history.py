"""Posteriors of all generations of a growing data set at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels


def is_prefix(old: GP, new: GP) -> bool:
    """Whether `new` is `old` with more data appended: same kernels, λ, first rows and noise scales (both exact
    posteriors).
    """
    if not isinstance(old, GP) or not isinstance(new, GP):
        return False
    if old is new:
        return True
    n = old.num_data
    if old.kernels != new.kernels or n > new.num_data or not torch.equal(old.regularizer, new.regularizer):
        return False
    if n == 0:
        return True
    assert old.inputs is not None and new.inputs is not None and old.targets is not None and new.targets is not None
    if old.noise_scale is not None or new.noise_scale is not None:
        one, other = (torch.ones(n) if m.noise_scale is None else m.noise_scale[:n].cpu() for m in (old, new))
        if not torch.equal(one.double(), other.double()):
            return False
    return torch.equal(old.inputs, new.inputs[:n]) and torch.equal(old.targets, new.targets[:n])


def posterior_history(model: GP, counts: Sequence[int], z: Tensor, *, chunk: int = 512) -> tuple[Tensor, Tensor]:
    """Mean and std of the posteriors on the first `counts` observations, z (*b, d) → (len(counts), *b, p)
    each.

    With L the factor of the whole data, V = L⁻¹k(X, z) and w = L⁻¹y: rows of L⁻¹ depend on earlier data only,
    so μ_n = Σ_{r ≤ n} w_r V_r and σ_n² = k(z, z) − Σ_{r ≤ n} V_r². One O(N²) product a point serves every n.

    Args:
        counts: increasing, each ≤ the model's number of data.
    """
    flat = z.reshape(-1, z.shape[-1])
    shape = (len(counts), *z.shape[:-1], model.num_outputs)
    parts = [_history(model, counts, part) for part in flat.split(chunk)]
    mean = torch.cat([part[0] for part in parts], dim=1).reshape(shape)
    return mean, torch.cat([part[1] for part in parts], dim=1).reshape(shape)


def _history(model: GP, counts: Sequence[int], z: Tensor) -> tuple[Tensor, Tensor]:
    prior = model.prior_variance(z)
    means = torch.zeros(len(counts), *prior.shape, dtype=prior.dtype, device=prior.device)
    explained = torch.zeros_like(means)
    if model.inputs is not None and model.targets is not None:
        top = max(counts)
        rows: dict[int, Tensor] = {}
        for j, i in enumerate(model._index):
            inverse = model._factors[i].inverse[:top, :top]
            if i not in rows:
                rows[i] = inverse @ kernels.cross(model.kernels[j], model.inputs[:top], z)
            white = inverse @ model.targets[:top, j]
            mean, square, start = torch.zeros_like(prior[:, 0]), torch.zeros_like(prior[:, 0]), 0
            for g, stop in enumerate(counts):
                block = rows[i][start:stop]
                mean = mean + white[start:stop] @ block
                square = square + block.square().sum(0)
                means[g, :, j], explained[g, :, j], start = mean, square, stop
    return means, (prior - explained).clamp_min(0.0).sqrt()
