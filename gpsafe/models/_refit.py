"""Continued training of an ensemble: one Adam over many refits, a step in half the time of one of `condition`.

The loss is that of `condition` (xmpsc.md §3.2 up to a factor 2, to which Adam is blind). With q = e^(high − raw) and
R = e^(high − low) the soft clamp is ln σ² = low + ln(1 + R/(1 + q)), so that

    σ⁻² = e^(−low)(1 + q)/(1 + q + R),   ∂ ln σ²/∂raw = q/(1 + q) · R/(1 + q + R),

and a step needs one exponential and no logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._threads import one_blas_thread
from gpsafe.data import Transitions
from gpsafe.models import _flat
from gpsafe.models._flat import Adam, Array
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models._mlp import MLP
from gpsafe.models._training import Fit, loss_and_gradient
from gpsafe.models.ensemble import Ensemble

_FAR = 80.0  # e^80 is finite in float32, and beyond it the clamp is `low` to the last bit


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What Adam remembers between refits: its moments (M, P) and its number of steps."""

    first: Array
    second: Array
    steps: int

    def state(self) -> dict[str, Array]:
        """Plain arrays."""
        return {"first": self.first, "second": self.second, "steps": np.array(self.steps)}

    @staticmethod
    def of(state: Mapping[str, Any]) -> Memory:
        """From what `state` gave."""
        return Memory(np.array(state["first"]), np.array(state["second"]), int(state["steps"]))


@one_blas_thread()
@plain_tensors
def refit(
    ensemble: Ensemble,
    data: Transitions | None = None,
    memory: Memory | None = None,
    *,
    epochs: int = 1,
    held_out: float | None = None,
    dtype: Any = np.float32,
) -> tuple[Ensemble, Memory]:
    """The ensemble trained on, from its present weights, over everything seen so far plus `data`; deterministic.

    `epochs` passes, each member in an order of its own, with the batch size and the (constant) learning rate of
    `ensemble.training`; its other settings are those of `condition`. Without `freeze` the normalisation follows the data, the
    function being re-expressed in the new one (an ensemble that has learnt nothing keeps its weights instead); Adam's moments
    stay as they are. The given ensemble is unchanged.

    Args:
        ensemble: start.
        data: new transitions; None trains on with the old ones.
        memory: Adam's, from the last refit; None starts anew.
        epochs: passes.
        held_out: fraction of the new rows that is never trained on and gives `fit.loss`; default that of `ensemble.training`.
        dtype: of the arithmetic.

    Raises:
        ValueError: on data of other dimensions, memory of another ensemble, or if a member diverges (the message names it).
    """
    _require.count("refit", "epochs", epochs)
    steps = 0 if memory is None else memory.steps
    seen, held, residual, generator = ensemble._absorbed("refit", data, held_out, steps)
    inputs, targets = ensemble._normalizers(seen, residual)
    network = ensemble.network if ensemble.data is None else ensemble._reexpressed(inputs, targets)
    limits = ensemble.log_var_limits.to(seen.x.device) - 2 * targets.scale.log()
    z, y = inputs(seen.z), targets(residual)
    flat = flattened(network).astype(dtype)
    adam = Adam(flat.shape, dtype)
    if memory is not None:
        adam.load(memory.state())
    rows, batch = ~held.cpu(), ensemble.training.batch
    arrays = tuple(v.cpu()[rows].numpy().astype(dtype) for v in (z, y))
    core = Trainer(flat, network.sizes, limits.cpu().numpy().astype(dtype))
    for _ in range(epochs):
        order = torch.argsort(
            torch.rand(ensemble.members, len(arrays[0]), dtype=torch.float32, generator=generator), dim=1
        ).numpy()
        for start in range(0, order.shape[1], batch):
            part = order[:, start : start + batch]
            with np.errstate(over="ignore", invalid="ignore"):  # divergence is found below, and named
                core.gradient(arrays[0][part], arrays[1][part])
                adam.step(flat, core.slope, ensemble.training.learning_rate)
    bad = np.flatnonzero(~np.isfinite(flat).all(-1)).tolist()
    if bad:
        raise _require.fail("refit", "finite weights after training", f"divergence in members {bad}")
    network = unflattened(flat, network.sizes).to(seen.x.device)
    judged = held if bool(held.any()) else ~held
    rows_z = z[judged].expand(ensemble.members, -1, -1)
    loss, _ = loss_and_gradient(network.weights, network.biases, rows_z, y[judged], (limits[0], limits[1]))
    learnt = replace(ensemble, network=network, inputs=inputs, targets=targets, data=seen, held_out=held)
    learnt = replace(learnt, fit=Fit(loss, epochs), log_var_limits=ensemble.log_var_limits.to(seen.x.device))
    return learnt, Memory(adam.first, adam.second, adam.steps)


class Trainer:
    """The gradient of the loss of all members with respect to their parameters `flat` (M, P), written to `slope`.

    Args:
        flat: parameters, read at every call.
        sizes: of the networks.
        limits: of ln σ², (2, p).
    """

    def __init__(self, flat: Array, sizes: tuple[int, ...], limits: Array) -> None:
        self.layers, self.slope = _flat.layers(flat, sizes), np.empty_like(flat)
        self._slopes, (self._low, self._high) = _flat.layers(self.slope, sizes), limits
        self._ratio, self._weight = np.exp(self._high - self._low), np.exp(-self._low)

    def gradient(self, z: Array, y: Array) -> None:
        """At normalised inputs z (M, n, d) and targets y (M, n, p)."""
        values = [z]
        for i, (w, b) in enumerate(self.layers):
            values.append(np.matmul(values[-1], w))
            values[-1] += b
            if i < len(self.layers) - 1:
                np.tanh(values[-1], out=values[-1])
        out, p = values[-1], y.shape[-1]
        q = np.exp(np.minimum(self._high - out[..., p:], _FAR))
        whole = 1 + q
        wide = whole + self._ratio
        gap = out[..., :p] - y
        share = 1.0 / (y.shape[1] * p)
        cotangent = np.empty_like(out)
        pull = np.multiply(gap, self._weight * (whole / wide), out=cotangent[..., :p])
        np.multiply(1 - gap * pull, (0.5 * q / whole) * (self._ratio / wide), out=cotangent[..., p:])
        cotangent *= share
        for i in reversed(range(len(self.layers))):
            weight, bias = self._slopes[i]
            np.matmul(values[i].swapaxes(-1, -2), cotangent, out=weight)
            _flat.sum_rows(cotangent, bias)
            if i > 0:
                cotangent = np.matmul(cotangent, self.layers[i][0].swapaxes(-1, -2))
                cotangent *= 1 - values[i] * values[i]


def flattened(network: MLP) -> Array:
    """Parameters (M, P), layer after layer."""
    parts = [p.detach().cpu().flatten(1) for pair in zip(network.weights, network.biases, strict=True) for p in pair]
    return torch.cat(parts, 1).numpy()


def unflattened(flat: Array, sizes: tuple[int, ...]) -> MLP:
    """The networks of parameters (M, P)."""

    def tensor(values: Array) -> Tensor:
        return torch.from_numpy(values.astype(np.float64))

    parts = _flat.layers(flat, sizes)
    return MLP(tuple(tensor(w) for w, _ in parts), tuple(tensor(b[:, 0]) for _, b in parts))
