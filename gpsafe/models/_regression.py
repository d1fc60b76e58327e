"""Least-squares training of one tanh network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models._mlp import MLP


def fit_network(
    inputs: Tensor,
    targets: Tensor,
    *,
    hidden: Sequence[int],
    generator: torch.Generator,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    dropout: float = 0.0,
    batch: int = 128,
) -> MLP:
    """A network (one member) fitted to normalised rows (n, d), (n, p) by Adam with a cosine schedule.

    Minimises mean ½(y − f(z))² + ½ weight_decay ‖W‖²/n over weights and biases; with dropout every hidden value is dropped
    with that probability, independently for every row and step, and the others scaled up.
    """
    n = inputs.shape[0]
    network = MLP.random(1, (inputs.shape[1], *hidden, targets.shape[1]), generator).to(inputs.device)
    weights, biases = ([p.clone().requires_grad_(True) for p in ps] for ps in (network.weights, network.biases))
    optimizer = torch.optim.Adam([*weights, *biases], lr=learning_rate)
    size = min(batch, n)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (0.51 + 0.49 * math.cos(math.pi * step / steps))
        rows = torch.randperm(n, generator=generator)[:size].to(inputs.device)
        value = inputs[rows].unsqueeze(0)
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            if i > 0:
                value = torch.tanh(value)
                if dropout > 0:
                    kept = torch.rand(value.shape, dtype=torch.float64, generator=generator).to(value.device) >= dropout
                    value = value * kept / (1 - dropout)
            value = torch.baddbmm(b.unsqueeze(1), value, w)
        penalty = torch.stack([w.square().sum() for w in weights]).sum() * weight_decay / n
        loss = 0.5 * ((value[0] - targets[rows]).square().sum(-1).mean() + penalty)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not all(bool(torch.isfinite(p).all()) for p in (*weights, *biases)):
        raise _require.fail("fit_network", "finite weights after training", "divergence")
    return MLP(tuple(w.detach() for w in weights), tuple(b.detach() for b in biases))
