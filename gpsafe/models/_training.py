"""Maximum-likelihood training of all members at once: one flat parameter block, one Adam, batched products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gpsafe import _require
from gpsafe.models import _mlp
from gpsafe.models._mlp import MLP


@dataclass(frozen=True, slots=True)
class Training:
    """How an ensemble learns.

    Attributes:
        epochs: at most this many passes over the data.
        steps: at least this many gradient steps' worth of passes, so that small data sets are learnt too.
        batch: rows per gradient step.
        learning_rate: of Adam; falls to a tenth over the passes.
        held_out: fraction of the data never trained on, for early stopping; 0 trains for all epochs.
        patience: training ends when no member has had a new best held-out loss for this fraction of all passes.
        bootstrap: every member draws its own n rows with replacement; otherwise all see the same rows.
        restart: train from fresh weights at every `condition`; otherwise continue from the present ones.
    """

    epochs: int = 100
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 1e-2
    held_out: float = 0.2
    patience: float = 0.25
    bootstrap: bool = True
    restart: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            _require.count("Training", name, getattr(self, name))
        _require.count("Training", "steps", self.steps, minimum=0)
        _require.positive("Training", "learning_rate", self.learning_rate)
        _require.positive("Training", "patience", self.patience)
        if not 0.0 <= self.held_out < 1.0:
            raise _require.fail("Training", "held_out in [0, 1)", self.held_out)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What training did: loss of every member on the held-out rows (training rows if none), and passes made.

    The loss is the mean over rows and outputs of ½((y − μ)²/σ² + ln σ²), y normalised.
    """

    loss: Tensor
    epochs: int


def soft_clamp(raw: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Smooth clamp into [low, high + ln(1 + e^(low − high))], the published formula."""
    return low + softplus(high - softplus(high - raw) - low)


def train(
    network: MLP,
    data: tuple[Tensor, Tensor],
    held_out: Tensor,
    limits: tuple[Tensor, Tensor],
    training: Training,
    generator: torch.Generator,
) -> tuple[MLP, Fit]:
    """The trained networks.

    Args:
        network: start.
        data: normalised inputs (n, d) and targets (n, p).
        held_out: boolean (n,), the same rows for every member.
        limits: of the log-variance in normalised units, (p,) each.
        training: see the class.
        generator: source of bootstrap rows and order, a CPU generator.
    """
    inputs, targets = data
    members, device = network.members, inputs.device
    stopping = bool(held_out.any())
    rows = torch.nonzero(~held_out).flatten()
    test = torch.nonzero(held_out if stopping else ~held_out).flatten()
    n = rows.numel()
    if training.bootstrap:
        drawn = torch.randint(n, (members, n), generator=generator).to(device)
        rows = rows[drawn]
    else:
        rows = rows.expand(members, n)
    batch = min(training.batch, n)
    per_epoch = math.ceil(n / batch)
    epochs = max(training.epochs, math.ceil(training.steps / per_epoch))

    weights, biases = ([p.clone() for p in ps] for ps in (network.weights, network.biases))
    parameters = weights + biases
    optimizer = torch.optim.Adam(parameters, lr=training.learning_rate, fused=device.type == "cpu")
    test_z, test_y = inputs[test].expand(members, -1, -1), targets[test]

    best = torch.full((members,), math.inf, dtype=torch.float64, device=device)
    kept = [p.clone() for p in parameters]
    stale = torch.zeros(members, dtype=torch.int64, device=device)
    epoch = 0
    for epoch in range(1, epochs + 1):
        optimizer.param_groups[0]["lr"] = training.learning_rate * (0.55 + 0.45 * math.cos(math.pi * epoch / epochs))
        order = torch.argsort(torch.rand(members, n, dtype=torch.float32, generator=generator), dim=1).to(device)
        shuffled = torch.gather(rows, 1, order)
        z, y = inputs[shuffled], targets[shuffled]
        for start in range(0, n, batch):
            part = slice(start, start + batch)
            _, gradients = loss_and_gradient(weights, biases, z[:, part], y[:, part], limits)
            for w, b, (gw, gb) in zip(weights, biases, gradients, strict=True):
                w.grad, b.grad = gw, gb
            optimizer.step()
        value = loss_and_gradient(weights, biases, test_z, test_y, limits)[0]
        # Without held-out rows there is nothing to stop on: the last weights count.
        better = value < best if stopping else torch.ones_like(value, dtype=torch.bool)
        best = torch.where(better, value, best)
        kept = [
            torch.where(better.reshape(-1, *[1] * (p.ndim - 1)), p, k) for p, k in zip(parameters, kept, strict=True)
        ]
        stale = torch.where(better, torch.zeros_like(stale), stale + 1)
        if bool((stale >= training.patience * epochs).all()):
            break
    sound = torch.stack([torch.isfinite(k).flatten(1).all(1) for k in kept]).all(0) & torch.isfinite(best)
    if not bool(sound.all()):
        bad = torch.nonzero(~sound).flatten().tolist()
        raise _require.fail("Ensemble.condition", "finite weights after training", f"divergence in members {bad}")
    return MLP(tuple(kept[: len(weights)]), tuple(kept[len(weights) :])), Fit(best, epoch)


def loss_and_gradient(
    weights: Sequence[Tensor], biases: Sequence[Tensor], z: Tensor, y: Tensor, limits: tuple[Tensor, Tensor]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Loss of every member (M,) at z (M, n, d), y (*M, n, p), and its gradients (W, b) per layer, in closed form."""
    p = y.shape[-1]
    low, high = limits
    values = _mlp.forward(weights, biases, z)
    raw, gap = values[-1][..., p:], values[-1][..., :p] - y
    inner = high - softplus(high - raw)
    log_var = low + softplus(inner - low)
    pull = gap * torch.exp(-log_var)
    excess = 1.0 - gap * pull
    slope = torch.sigmoid(high - raw) * torch.sigmoid(inner - low)
    share = 1.0 / (gap.shape[-2] * p)
    cotangent = torch.cat([pull, 0.5 * excess * slope], dim=-1) * share
    loss = 0.5 * share * (1.0 - excess + log_var).sum((1, 2))
    return loss, _mlp.backward(weights, values, cotangent)
