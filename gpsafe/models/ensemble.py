"""Ensembles of probabilistic networks (xmpsc.md §3): a dynamics model whose spread is a heuristic, calibrated or not at all.

Member m predicts x⁺ ~ N(μ_m(z), diag σ_m²(z)), z = (x, u), with μ_m(z) = prior(x, u) + offset_y + scale_y · net_m(z̃)[:nx],
z̃ = (z − offset_z)/scale_z, and ln σ_m² the softly clamped other half of the output. The same formulas train and plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.data import Transitions
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models._mlp import MLP
from gpsafe.models._normalizer import Normalizer
from gpsafe.models._prior import Prior, check_prior, identity_prior, known_part, linearised_prior, zero_prior
from gpsafe.models._training import Fit, Training, soft_clamp, train
from gpsafe.models.base import Prediction
from gpsafe.sets.box import Box


@short
@dataclass(frozen=True, slots=True, eq=False)
class Linearization:
    """All members at given points: mean and log-variance (M, *b, nx); Jacobian of the mean in z = (x, u), (M, *b, nx, nz)."""

    mean: Tensor
    log_var: Tensor
    jacobian: Tensor


@short
@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """M probabilistic tanh networks. Build with :meth:`create` or :meth:`from_weights`.

    Attributes:
        network: all members.
        nx, nu: dimensions.
        inputs, targets: normalisation of z and of the targets y = x⁺ − prior(x, u).
        log_var_limits: (2, nx), limits of the predicted log-variance of x⁺.
        clamp: "soft" (default), or "hard" as the published planner (not its training) has it.
        prior: known mean: identity for difference targets, zero for absolute ones, or any known part.
        training: how `condition` learns.
        frozen: `condition` leaves the normalisation as it is.
        seed: of all randomness of `condition`.
        data, held_out: what was learnt from and which rows only stop the training.
        fit: the last training's record.
    """

    network: MLP
    nx: int
    nu: int
    inputs: Normalizer
    targets: Normalizer
    log_var_limits: Tensor
    clamp: Literal["soft", "hard"] = "soft"
    prior: Prior = identity_prior
    training: Training = field(default_factory=Training)
    frozen: bool = False
    seed: int = 0
    data: Transitions | None = None
    held_out: Tensor | None = None
    fit: Fit | None = None

    def __post_init__(self) -> None:
        _require.count("Ensemble", "nx", self.nx)
        _require.count("Ensemble", "nu", self.nu, minimum=0)
        _require.one_of("Ensemble", "clamp", self.clamp, ("soft", "hard"))
        check_prior("Ensemble", self.prior, self.nx, self.nu)
        nz, sizes = self.nx + self.nu, self.network.sizes
        if (sizes[0], sizes[-1]) != (nz, 2 * self.nx):
            raise _require.fail(
                "Ensemble", f"networks from {nz} inputs to {2 * self.nx} outputs", (sizes[0], sizes[-1])
            )
        _require.shape("Ensemble", "inputs.offset", self.inputs.offset, (nz,))
        _require.shape("Ensemble", "targets.offset", self.targets.offset, (self.nx,))
        limits = _require.finite("Ensemble", "log_var_limits", self.log_var_limits)
        _require.shape("Ensemble", "log_var_limits", limits, (2, self.nx))
        if not bool((limits[0] < limits[1]).all()):
            raise _require.fail("Ensemble", "log_var_limits in increasing order", limits.tolist())
        object.__setattr__(self, "log_var_limits", limits.detach().clone())

    @staticmethod
    @plain_tensors
    def create(
        nx: int,
        nu: int,
        *,
        generator: torch.Generator,
        members: int = 5,
        hidden: Sequence[int] = (20, 20),
        std_limits: tuple[float, float] = (1e-3, 1e-1),
        prior: Prior = identity_prior,
        training: Training | None = None,
        normalizers: tuple[Normalizer, Normalizer] | None = None,
    ) -> Ensemble:
        """An ensemble without data: M random networks.

        Args:
            nx, nu: dimensions.
            generator: gives the initial weights and the seed of later training.
            members, hidden: M and the widths of the tanh layers.
            std_limits: limits of the predicted aleatoric standard deviation, in units of x (published: 1e-3 and 1e-1).
            prior: known mean.
            training: see :class:`Training`.
            normalizers: of inputs and targets; given ones are frozen, otherwise they follow the data.
        """
        _require.count("Ensemble", "members", members)
        for width in hidden:
            _require.count("Ensemble", "hidden width", width)
        low, high = _require.positive("Ensemble", "std_limits", list(std_limits)).tolist()
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        given = (Normalizer.identity(nx + nu), Normalizer.identity(nx)) if normalizers is None else normalizers
        return Ensemble(
            MLP.random(members, (nx + nu, *hidden, 2 * nx), generator),
            nx,
            nu,
            *given,
            2 * linalg.vector(low, high).log().unsqueeze(1).expand(2, nx).clone(),
            prior=prior,
            training=Training() if training is None else training,
            frozen=normalizers is not None,
            seed=seed,
        )

    @staticmethod
    def from_weights(
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        *,
        nx: int,
        nu: int,
        inputs: Normalizer | None = None,
        targets: Normalizer | None = None,
        log_var_limits: Tensor | None = None,
        clamp: Literal["soft", "hard"] = "soft",
        prior: Prior = identity_prior,
        training: Training | None = None,
        layout: Literal["in-out", "out-in"] = "in-out",
    ) -> Ensemble:
        """An instance with given parameters, for example a published one: layers (M, d_in, d_out) and (M, d_out).

        With ``layout="out-in"`` the weights are (M, d_out, d_in), as `torch.nn.Linear.weight` has them, stacked.

        The published networks predict absolute states (`prior=zero_prior` or their known part), with normalised inputs and
        plain outputs, log-variance within ln 1e-6 … ln 1e-2 (the default here), clamped hard in their planner.

        Raises:
            ValueError: on shapes that do not fit, or a member with NaN or infinite weights.
        """
        _require.one_of("Ensemble.from_weights", "layout", layout, ("in-out", "out-in"))
        if layout == "out-in":
            weights = [w.mT.contiguous() for w in weights]
        if log_var_limits is None:
            log_var_limits = linalg.vector(1e-6, 1e-2).log().unsqueeze(1).expand(2, nx).clone()
        return Ensemble(
            MLP(
                tuple(_require.floats("Ensemble", "weights", w).detach() for w in weights),
                tuple(_require.floats("Ensemble", "biases", b).detach() for b in biases),
            ),
            nx,
            nu,
            Normalizer.identity(nx + nu) if inputs is None else inputs,
            Normalizer.identity(nx) if targets is None else targets,
            log_var_limits,
            clamp=clamp,
            prior=prior,
            training=Training() if training is None else training,
            frozen=True,
        )

    # ------------------------------------------------------------------ basics
    @property
    def members(self) -> int:
        """M."""
        return self.network.members

    @property
    def outputs(self) -> tuple[int, ...]:
        """Indices of the learned states: all."""
        return tuple(range(self.nx))

    def freeze(self) -> Ensemble:
        """The same model whose normalisation no later data change."""
        return replace(self, frozen=True)

    def to(self, device: torch.device | str) -> Ensemble:
        """The same model on another device (its data stay where they are until it learns again)."""
        moved = self.inputs.to(device), self.targets.to(device), self.log_var_limits.to(device)
        return replace(
            self, network=self.network.to(device), inputs=moved[0], targets=moved[1], log_var_limits=moved[2]
        )

    def member(self, m: int) -> Ensemble:
        """The ensemble of member m alone."""
        weights, biases = self.network.weights, self.network.biases
        return replace(self, network=MLP(tuple(w[m : m + 1] for w in weights), tuple(b[m : m + 1] for b in biases)))

    # -------------------------------------------------------------- evaluation
    def _rows(self, x: Tensor, u: Tensor, paired: bool) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """x, u, normalised rows (M, n, nz), and the batch shape (*b,)."""
        x, u = _require.points("Ensemble", "x", x, self.nx), _require.points("Ensemble", "u", u, self.nu)
        batch = _require.batch(x, u)
        if paired and (not batch or batch[0] != self.members):
            raise _require.fail("Ensemble", f"x or u of shape ({self.members}, *b, d) where paired", f"batch {batch}")
        x, u = x.expand(*batch, self.nx), u.expand(*batch, self.nu)
        z = self.inputs(torch.cat([x, u], dim=-1))
        if paired:
            return x, u, z.reshape(self.members, math.prod(batch[1:]), z.shape[-1]), batch[1:]
        return x, u, z.reshape(1, math.prod(batch), z.shape[-1]).expand(self.members, -1, -1), batch

    def _log_var(self, raw: Tensor) -> Tensor:
        """ln σ² of x⁺ from the second half of the outputs."""
        physical, (low, high) = raw + 2 * self.targets.scale.log(), self.log_var_limits
        if self.clamp == "hard":
            return torch.minimum(torch.maximum(physical, low), high)
        return soft_clamp(physical, low, high)

    def mean(self, x: Tensor, u: Tensor, *, paired: bool = False) -> Tensor:
        """Mean of every member, (M, *b, nx), as in :meth:`evaluate`."""
        x, u, rows, batch = self._rows(x, u, paired)
        return self._mean(x, u, self.network(rows).reshape(self.members, *batch, 2 * self.nx))

    def _mean(self, x: Tensor, u: Tensor, out: Tensor) -> Tensor:
        return self._plus(known_part("Ensemble", self.prior, x, u), out)

    def _plus(self, known: Tensor, out: Tensor) -> Tensor:
        return known + self.targets.offset + self.targets.scale * out[..., : self.nx]

    def evaluate(self, x: Tensor, u: Tensor, *, paired: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and aleatoric std of every member, (M, *b, nx) each.

        Args:
            x, u: (*b, nx), (*b, nu), seen by all members; with `paired`, (M, *b, nx) and (M, *b, nu) (one of them may lack
                leading axes): member m sees block m.
        """
        x, u, rows, batch = self._rows(x, u, paired)
        out = self.network(rows).reshape(self.members, *batch, 2 * self.nx)
        return self._mean(x, u, out), torch.exp(0.5 * self._log_var(out[..., self.nx :]))

    def predict(self, x: Tensor, u: Tensor) -> Prediction:
        """Moments of the equal mixture of the members, split: mean and std of the means, root mean variance.

        std² + noise_std² is the variance of the mixture. With M = 1 the std is 0: one member knows no doubt.
        """
        mean, noise = self.evaluate(x, u)
        average = mean.mean(0)
        std = linalg.safe_sqrt((mean - average).square().mean(0))
        return Prediction(average, std, noise.square().mean(0).sqrt())

    def linearize(self, x: Tensor, u: Tensor, *, paired: bool = False) -> Linearization:
        """Means, their exact Jacobians, and log-variances in one sweep; arguments as in :meth:`evaluate`.

        The known part's own `jacobian` is used if it has one; else it is differentiated.
        """
        x, u, rows, batch = self._rows(x, u, paired)
        out, jacobian = self.network.linearize(rows, self.nx)
        out = out.reshape(self.members, *batch, 2 * self.nx)
        value, slope = linearised_prior("Ensemble", self.prior, x, u)
        jacobian = jacobian.reshape(self.members, *batch, self.nx, self.nx + self.nu)
        jacobian = slope + self.targets.scale.unsqueeze(-1) / self.inputs.scale * jacobian
        return Linearization(self._plus(value, out), self._log_var(out[..., self.nx :]), jacobian)

    def hessian_bound(self, box: Box) -> Tensor:
        """H (M, nx, nz, nz) ≥ |∂²μ_m,i/∂z_j∂z_l| over a box of z = (x, u): rigorous, rounding included.

        Layerwise midpoint–radius ranges: h = tanh(a) has ∂²h = tanh''(a) ∂a∂aᵀ + tanh'(a) ∂²a, with the exact range of
        tanh'' (at most 4/(3√3)) over the range of a. Tight on small boxes, loose on large ones: split those. The known part
        adds its own `hessian_bound`; the identity and zero have none.

        Raises:
            ValueError: if the known part states no bound on its second derivatives.
        """
        _require.shape("Ensemble.hessian_bound", "box.lower", box.lower, (self.nx + self.nu,))
        corners = torch.stack([box.lower, box.upper])
        # Normalising rounds: widen by more than the rounding of a difference and a quotient.
        slack = 1e-15 * (corners.abs().amax(0) + self.inputs.offset.abs()) / self.inputs.scale
        low, high = self.inputs(corners)
        scale = self.inputs.scale
        ranges = self.network.ranges((low - slack).unsqueeze(0), (high + slack).unsqueeze(0))
        bound = ranges.hessian[:, 0, : self.nx] / (scale.unsqueeze(-1) * scale)
        bound = self.targets.scale.reshape(-1, 1, 1) * bound * (1 + 1e-12)
        if self.prior is zero_prior or self.prior is identity_prior:
            return bound
        known = getattr(self.prior, "hessian_bound", None)
        if known is None:
            raise _require.fail("Ensemble.hessian_bound", "a prior that has a hessian_bound", type(self.prior).__name__)
        known = _require.shape("Ensemble.hessian_bound", "the prior's hessian_bound", known, tuple(bound.shape[1:]))
        return bound + known.to(bound.device)

    # ---------------------------------------------------------------- learning
    @plain_tensors
    def condition(self, data: Transitions) -> Ensemble:
        """Trained on everything seen so far plus `data`; deterministic. This model is unchanged.

        Held-out rows are chosen when data arrive and stay held out. Without `freeze`, the normalisation follows the data;
        continued training (`Training.restart` off) starts from the same function, re-expressed in the new one.

        Raises:
            ValueError: on data of other dimensions, or if a member diverges (the message names it).
        """
        seen, held, residual, generator = self._absorbed("Ensemble.condition", data)
        inputs, targets = self._normalizers(seen, residual)
        if self.training.restart:
            start = MLP.random(self.members, self.network.sizes, generator).to(seen.x.device)
        else:
            start = self._reexpressed(inputs, targets)
        limits = self.log_var_limits.to(seen.x.device) - 2 * targets.scale.log()
        network, fit = train(
            start,
            (inputs(seen.z), targets(residual)),
            held.to(seen.x.device),
            (limits[0], limits[1]),
            self.training,
            generator,
        )
        learnt = replace(self, network=network, inputs=inputs, targets=targets, data=seen, held_out=held, fit=fit)
        return replace(learnt, log_var_limits=self.log_var_limits.to(seen.x.device))

    def _absorbed(
        self, where: str, data: Transitions | None, held_out: float | None = None, steps: int = 0
    ) -> tuple[Transitions, Tensor, Tensor, torch.Generator]:
        """All transitions, which of them are held out (n,), their residuals (n, nx), and the randomness of learning from them.

        Args:
            where: for errors.
            data: new transitions, if any.
            held_out: fraction of the new ones; default that of `training`.
            steps: made since the start, in training that goes on.
        """
        if data is None and self.data is None:
            raise _require.fail(where, "transitions to learn from", "none, now or before")
        if data is not None and (data.x.shape[-1], data.u.shape[-1]) != (self.nx, self.nu):
            got = (data.x.shape[-1], data.u.shape[-1])
            raise _require.fail(where, f"transitions with (nx, nu) = ({self.nx}, {self.nu})", got)
        fraction = self.training.held_out if held_out is None else held_out
        if not 0.0 <= fraction < 1.0:
            raise _require.fail(where, "held_out in [0, 1)", held_out)
        old = 0 if self.data is None else len(self.data)
        seen = data if self.data is None else self.data if data is None else self.data + data
        assert seen is not None
        new = len(seen) - old
        generator = torch.Generator().manual_seed((self.seed + 0x9E3779B97F4A7C15 * (len(seen) + steps)) % 2**63)
        fresh = torch.rand(new, dtype=torch.float32, generator=generator) < fraction
        if old == 0:
            fresh[0] = False  # at least one row to train on
            if fraction > 0 and new > 1:
                fresh[-1] = fresh[-1] | ~fresh.any()  # and one to stop on
        held = fresh if self.held_out is None else torch.cat([self.held_out, fresh])
        return seen, held, seen.x_next - known_part(where, self.prior, seen.x, seen.u), generator

    def _normalizers(self, seen: Transitions, residual: Tensor) -> tuple[Normalizer, Normalizer]:
        """Of inputs and targets: those of the data, or the present ones where frozen."""
        return (self.inputs, self.targets) if self.frozen else (Normalizer.of(seen.z), Normalizer.of(residual))

    def _reexpressed(self, inputs: Normalizer, targets: Normalizer) -> MLP:
        """The networks of the same functions under other normalisers."""
        weights, biases = list(self.network.weights), list(self.network.biases)
        shift = ((inputs.offset - self.inputs.offset) / self.inputs.scale).reshape(1, 1, -1)
        biases[0] = biases[0] + (shift @ weights[0]).squeeze(1)
        weights[0] = weights[0] * (inputs.scale / self.inputs.scale).unsqueeze(-1)
        ratio = self.targets.scale / targets.scale
        moved = (self.targets.offset - targets.offset) / targets.scale
        gain = torch.cat([ratio, torch.ones_like(ratio)])
        weights[-1] = weights[-1] * gain
        biases[-1] = biases[-1] * gain + torch.cat([moved, 2 * ratio.log()])
        return MLP(tuple(weights), tuple(biases))
