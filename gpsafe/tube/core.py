"""Ellipsoidal tubes of a plan with feedback, for all members of a model at once (theory §6.2, xmpsc.md §1.3).

The plant is x⁺ = f(x, u) + w. A plan is T inputs ū_0 … ū_{T−1} and gains K_k. Member m has a nominal path x̄ and error
ellipsoids E(0, Q_k), Q_k = L_k L_kᵀ, with F = A + B K the closed loop linearised on the nominal path:

    x̄_{k+1} = μ_m(x̄_k, v_k),        Q_{k+1} ⊇ F_k Q_k F_kᵀ ⊕ W_m(x̄_k, v_k) ⊕ R_k,

⊕ the trace-minimal outer Minkowski sum of all summands: (Σ s_j) Σ Q_j/s_j with s_j = √tr Q_j.

*paper*: Q_0 = 1e-12 I, W = diag(predicted variance), no R, every member gets v_k = ū_k: the published tube. Not a bound.

*sound*: Q_0 = 0; W and R are chosen by the model so that, under the assumptions it lists,

    f(z) + w ∈ μ_m(z̄) + A e + B K e + E(0, diag W) + {|r_i| ≤ R_i}     for z = z̄ + (e, Ke), e ∈ E(0, Q_k),          (1)

and the input is the affine law u = ū_k + K_k (x − c_k) around ONE reference path, c_k = mean over members of x̄_k, since a robot
can follow only one: seen from member m this is v_k + K_k e with v_k = ū_k + K_k (x̄_k − c_k), which is its nominal input.

Theorem. Let (1) hold at every step for one member (which one need not be known). Then, under the affine law from x_0, the
plant is in x̄_k + E(0, Q_k) of that member for k = 0 … T, and its inputs in v_k + E(0, K_k Q_k K_kᵀ).
Proof. Induction. x_0 = x̄_0 = c_0. If x_k = x̄_k + e with e ∈ E(0, Q_k), then u_k = v_k + K_k e, and by (1) x_{k+1} − x̄_{k+1}
is a sum of points of F E(0, Q_k), E(0, diag W) and of the box R, that is of nx segments of half-length R_i; the outer sum
contains it. □

**Gaussian noise, summed exactly.** A model with `growth(k)` says that W = ρ²Σ is that of independent w_k ~ N(0, Σ_k), not
chosen by anybody, and that growth(k)²ρ² is the (1 − δ/T)-quantile of χ² with min(nx, kr) degrees of freedom, r the number of
noisy states. Then Q_{k+1} ⊇ growth(k+1)²N_{k+1} ⊕ Z_{k+1} with N_{k+1} = F_kN_kF_kᵀ + W (N_0 = 0) and Z_{k+1} ⊇ F_kZ_kF_kᵀ ⊕
R_k, R for e ∈ E(0, Q_k): of order √k where the sum of ellipsoids is of order k. Theorem. If (1) holds without w, the plant is
in all x̄_k + E(0, Q_k), k ≤ T, with probability ≥ 1 − δ. Proof. e_k = ν_k + ζ_k with ν_{k+1} = F_kν_k + w_k, ν_0 = 0. F_k
depends on x_0 and the plan alone, so ν_k ~ N(0, N_k/ρ²), of rank at most min(nx, kr), and ν_k ∈ E(0, growth(k)²N_k) for all k
≤ T but with probability δ. While that holds, ζ_k ∈ E(0, Z_k) by induction, as above. □ It says nothing of noise that an
adversary chooses within E(0, W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Believed
from gpsafe.sets.ellipsoid import Ellipsoid

Mode = Literal["paper", "sound"]
MODES: tuple[Mode, ...] = ("paper", "sound")
START = 1e-6  # half-axis of the first ellipsoid in paper mode, as published: Q_0 = 1e-12 I
CLAIMED = 2e-14  # share of 1 + |x̄| within which a claimed nominal path must be right: fifty times less than `ROUNDING`
ROUNDING = 1e-12  # sound tubes widen by this share of all `sizes` in every step: more than the rounding of one step


@short
@dataclass(frozen=True, slots=True, eq=False)
class Linearisation:
    """All members at one point each.

    Attributes:
        mean: μ_m(x, u), (*b, M, nx).
        A, B: its Jacobians, (*b, M, nx, nx) and (*b, M, nx, nu).
        variance: squared half-axes of the disturbance ellipsoid W, scaled as the mode asks, (*b, M, nx).
    """

    mean: Tensor
    A: Tensor
    B: Tensor
    variance: Tensor


class TubeModel(Protocol):
    """What a tube needs of a model with M members (a Gaussian process has one).

    It may also have `mean(x, u)`, what `linearise` gives as mean alone, for (x, u) as there; `growth(k)`, see the module;
    `boxes(x, u, factor, gain)`, boxes that add up to R, each of which is to be enclosed in its least ellipsoid (`around_box`);
    `unseen(reach, moved)`, see `sizes`; and `edited`, what it expects to be as when made and is no longer, None if all is.
    """

    @property
    def nx(self) -> int: ...
    @property
    def nu(self) -> int: ...
    @property
    def num_members(self) -> int: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What containment rests on."""
        ...

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """At x (*b, M, nx) and u (*b, M or 1, nu): member m at its own point."""
        ...

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """R of (1), (*b, M, nx) ≥ 0, for e ∈ E(0, LLᵀ), L = factor (*b, M, nx, m), and K = gain (nu, nx). Zero in paper mode.

        +inf or NaN where the model can claim nothing: no certificate is given there.
        """
        ...


@short
@dataclass(frozen=True, slots=True, eq=False)
class Tube:
    """A plan's tube. T steps, M members.

    Attributes:
        center: x̄, (*b, M, T+1, nx).
        factor: L with Q = LLᵀ, (*b, M, T+1, nx, nx).
        inputs: nominal input v of every member, (*b, M, T, nu); equal among members in paper mode.
        reference: c, the centre of the affine law u = ū_k + K_k(x − c_k), (*b, T+1, nx).
        gain: K, (T, nu, nx).
        mode: how it was made.
    """

    center: Tensor
    factor: Tensor
    inputs: Tensor
    reference: Tensor
    gain: Tensor
    mode: Mode

    @property
    def steps(self) -> int:
        """T."""
        return self.inputs.shape[-2]

    @property
    def num_members(self) -> int:
        """M."""
        return self.center.shape[-3]

    @property
    def shape(self) -> Tensor:
        """Q, (*b, M, T+1, nx, nx)."""
        return self.factor @ self.factor.mT

    @property
    def ellipsoids(self) -> Ellipsoid:
        """All cross-sections as one batch (*b, M, T+1). Refuses a tube that is not finite."""
        return Ellipsoid(self.center, self.factor)

    def at(self, stage: int) -> Ellipsoid:
        """The cross-sections of one stage, (*b, M). Refuses ones that are not finite."""
        if _require.index("Tube.at", "stage", stage) > self.steps:
            raise _require.fail("Tube.at", f"a stage in 0..{self.steps}", stage)
        return Ellipsoid(self.center[..., stage, :], self.factor[..., stage, :, :])

    def state_support(self, H: Tensor) -> Tensor:
        """max of H_i x over every cross-section, H_i x̄ + √(H_i Q H_iᵀ), (*b, M, T+1, k) for H (k, nx)."""
        return self.center @ H.mT + (H @ self.factor).norm(dim=-1)

    def input_support(self, H: Tensor) -> Tensor:
        """max of H_i u over the inputs of the affine law, H_i v + √(H_i K Q Kᵀ H_iᵀ), (*b, M, T, k) for H (k, nu)."""
        return self.inputs @ H.mT + (H @ self.gain @ self.factor[..., :-1, :, :]).norm(dim=-1)


def gains(gain: Tensor, steps: int, nx: int, nu: int) -> Tensor:
    """K for every step, (T, nu, nx), from (nu, nx) or (T, nu, nx)."""
    gain = _require.finite("propagate", "gain", gain)
    if tuple(gain.shape) not in ((nu, nx), (steps, nu, nx)):
        raise _require.fail("propagate", f"gain of shape {(nu, nx)} or {(steps, nu, nx)}", f"shape {tuple(gain.shape)}")
    return gain.expand(steps, nu, nx)


def sizes(model: TubeModel, local: Linearisation, reach: Tensor, u: Tensor, gain: Tensor) -> Tensor:
    """|μ| + |A| ρ + |B| v + unseen, v = |u| + |K| ρ, (*b, M, nx): what the rounding of a step is a share of, for states of size
    ρ = reach.

    The terms, not their sum: they may cancel. Inner terms of networks, Gaussian processes and known parts are not seen here:
    `unseen` (ρ, v) of the model stands for them, in its own units so that these do not matter, and 1 where a model has none.
    """
    moved = u.abs() + reach @ gain.abs().mT
    terms = local.A.abs() @ reach.unsqueeze(-1) + local.B.abs() @ moved.unsqueeze(-1)
    unseen = getattr(model, "unseen", None)
    return local.mean.abs() + terms.squeeze(-1) + (1.0 if unseen is None else unseen(reach, moved))


def outer_sum(factors: list[Tensor], box: Tensor | None = None) -> Tensor:
    """A square factor of the trace-minimal outer Minkowski sum of E(0, L_jL_jᵀ) and of the box |r_i| ≤ box_i.

    The box is the sum of its nx segments. Differentiable where the sum has full rank. (*b, d, m_j), (*b, d) → (*b, d, d).
    """
    factors = [_require.floats("outer_sum", "factors", factor) for factor in factors]
    box = None if box is None else _require.floats("outer_sum", "box", box)
    # A flat summand of size 0 gets the size 1e-150: its columns stay 0, and no 0/0 arises here or in derivatives.
    sizes = [torch.linalg.vector_norm(factor, dim=(-2, -1), keepdim=True).clamp_min(1e-150) for factor in factors]
    total = sum(sizes[1:], start=sizes[0])
    if box is not None:
        total = total + box.sum(-1)[..., None, None]
    columns = [(total / size).sqrt() * factor for size, factor in zip(sizes, factors, strict=True)]
    if box is not None:
        columns.append(torch.diag_embed(total.squeeze(-1).sqrt() * box.sqrt()))  # their product may underflow
    return _square(torch.cat(columns, dim=-1))


def around_box(box: Tensor) -> Tensor:
    """A factor of the least ellipsoid that contains |r_i| ≤ box_i, Q = n diag(box_i²): (*b, n) → (*b, n, n)."""
    return math.sqrt(box.shape[-1]) * torch.diag_embed(box)


def _square(factor: Tensor) -> Tensor:
    """A square L with the LLᵀ of a wide one."""
    return torch.linalg.qr(factor.mT)[1].mT


def propagate(model: TubeModel, x0: Tensor, inputs: Tensor, gain: Tensor, path: Tensor | None = None) -> Tube:
    """The tube of a plan, see the module.

    NaN and overflow stay in the result as NaN or inf: a diverging plan is a value, judged by whoever reads the tube.

    A nominal path goes from stage to stage, which takes most of the time. A claimed one, y, is checked at all stages at once
    instead (paper mode, models with `mean`): with r_k = μ(y_k, ū_k) − y_{k+1} and A_k at y_k, the path is y + e with

        e_0 = x_0 − y_0,   e_{k+1} = r_k + A_k e_k + O(|e_k|²).

    If |e| ≤ `CLAIMED` (1 + |y|), y + e is taken: what it misses is of second order, far below rounding; A_k and W are those at
    y. Any other claim has no effect.

    Args:
        model: gives the mode.
        x0: measured state, (nx,) or (*b, nx).
        inputs: ū, (*b, T, nu); differentiable in paper mode with an ensemble.
        gain: K, (nu, nx) or (T, nu, nx).
        path: claimed by anybody, (*b, M, T+1, nx); the tube is differentiable without one only.

    Raises:
        ValueError: on wrong shapes.
    """
    _require.last_dim("propagate", "x0", x0, model.nx)
    _require.last_dim("propagate", "inputs", inputs, model.nu)
    if inputs.ndim < 2 or inputs.shape[-2] == 0:
        raise _require.fail("propagate", f"inputs of shape (*b, T, {model.nu})", f"shape {tuple(inputs.shape)}")
    steps, members, nx = inputs.shape[-2], model.num_members, model.nx
    gain = gains(gain, steps, nx, model.nu)
    batch = tuple(_require.batch(x0, inputs[..., 0, :]))
    start, plan = x0.to(torch.float64).expand(*batch, nx), inputs.to(torch.float64).expand(*batch, steps, model.nu)
    found = None
    if path is not None:
        _require.shape("propagate", "path", path, (*batch, members, steps + 1, nx))
        if model.mode == "paper" and hasattr(model, "mean"):
            found, close = _claimed(model, start, plan, path.detach().to(torch.float64))
            if not bool(close.all()):
                found = _either(close, found, _followed(model, start, plan, gain))
    if found is None:
        found = _followed(model, start, plan, gain)
    return Tube(
        found.centers.movedim(0, -2).contiguous(),
        _factors(model, found, gain).movedim(0, -3).contiguous(),
        found.nominal.movedim(0, -2),
        found.references.movedim(0, -2),
        gain,
        model.mode,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Paths:
    """Stages first: x̄ (T+1, *b, M, nx), v (T, *b, M, nu), c (T+1, *b, nx), and the model at all (x̄, v), (T, *b, M, …)."""

    centers: Tensor
    nominal: Tensor
    references: Tensor
    local: Linearisation


def _either(close: Tensor, one: _Paths, other: _Paths) -> _Paths:
    """The paths of `one` where `close` (*b,), else of `other`: no plan of a batch notices another's claim."""

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(close.reshape(*close.shape, *(a.ndim - 1 - close.ndim) * [1]), a, b)

    return _Paths(
        chosen(one.centers, other.centers),
        chosen(one.nominal, other.nominal),
        chosen(one.references, other.references),
        Linearisation(*(chosen(getattr(one.local, k), getattr(other.local, k)) for k in Linearisation.__slots__)),
    )


def _claimed(model: TubeModel, x0: Tensor, plan: Tensor, path: Tensor) -> tuple[_Paths, Tensor]:
    """Paths in paper mode from a claim, see `propagate`, and where it is close enough, (*b,)."""
    y, u = path.movedim(-2, 0), plan.movedim(-2, 0).unsqueeze(-2)
    u = u.expand(*u.shape[:-2], y.shape[-2], u.shape[-1])
    local = model.linearise(y[:-1], u)
    away = [(x0.unsqueeze(-2) - y[0]).reshape(-1, model.nx, 1)]
    gaps = (local.mean - y[1:]).reshape(len(u), -1, model.nx, 1)
    for gap, A in zip(gaps.unbind(), local.A.reshape(len(u), -1, model.nx, model.nx).unbind(), strict=True):
        away.append(torch.baddbmm(gap, A, away[-1]))
    e = torch.stack(away).reshape(y.shape)
    close = (e.abs() < CLAIMED * (1.0 + y.abs())).movedim(0, -1).flatten(-3).all(-1)  # not where y is infinite
    centers = y + e
    centers[0] = x0.unsqueeze(-2)
    return _Paths(centers, u, centers.mean(-2), local), close


def _followed(model: TubeModel, x0: Tensor, plan: Tensor, gain: Tensor) -> _Paths:
    """Paths from stage to stage.

    They need means alone. Where the model gives them, all stages are then linearised in one call: a Jacobian costs three times
    what a mean does, and the time of few members is that of calls, not of numbers.
    """
    members, mean = model.num_members, getattr(model, "mean", None)
    apart = model.mode == "sound" and members > 1
    centers, nominal, references = [x0.unsqueeze(-2).expand(*x0.shape[:-1], members, -1)], [], [x0]
    local: list[Linearisation] = []
    for k, u in enumerate(plan.unbind(-2)):
        u = u.unsqueeze(-2).expand(*u.shape[:-1], members, -1)
        if apart and k > 0:
            u = u + (centers[-1] - references[-1].unsqueeze(-2)) @ gain[k].mT
        if mean is None:
            local.append(model.linearise(centers[-1], u))
        centers.append(local[-1].mean if mean is None else mean(centers[-1], u))
        nominal.append(u)
        references.append(centers[-1].mean(-2))
    x, v = torch.stack(centers), torch.stack(nominal)
    if mean is None:
        whole = Linearisation(*(torch.stack([getattr(at, name) for at in local]) for name in Linearisation.__slots__))
    else:
        whole = model.linearise(x[:-1], v)
    return _Paths(x, v, torch.stack(references), whole)


def _factors(model: TubeModel, paths: _Paths, gain: Tensor) -> Tensor:
    """L of all stages, (T+1, *b, M, nx, nx)."""
    local, nx = paths.local, model.nx
    loops = local.A + local.B @ gain.reshape(len(gain), *(local.A.ndim - 3) * [1], model.nu, nx)
    noises = torch.diag_embed(local.variance.sqrt())
    eye = torch.eye(nx, dtype=torch.float64, device=loops.device).expand(loops.shape[1:])
    if model.mode == "paper":
        flat, factors = (
            (len(gain), -1, nx, nx),
            [START * eye.reshape(-1, nx, nx)],
        )  # few operations: each costs as much as its call
        for loop, noise in zip(loops.reshape(flat).unbind(), noises.reshape(flat).unbind(), strict=True):
            factors.append(outer_sum([torch.bmm(loop, factors[-1]), noise]))
        return torch.stack(factors).reshape(-1, *eye.shape)
    factors = [0.0 * eye]
    growth, boxes = getattr(model, "growth", None), getattr(model, "boxes", None)
    sure = drawn = factor = factors[0]
    for k, (loop, noise) in enumerate(zip(loops.unbind(), noises.unbind(), strict=True)):
        at = Linearisation(paths.centers[k + 1], local.A[k], local.B[k], local.variance[k])
        x, u, carried = paths.centers[k], paths.nominal[k], loop @ factor
        parts = None if boxes is None else boxes(x, u, factor, gain[k])
        rest = model.remainder(x, u, factor, gain[k]) if parts is None else torch.stack(parts).sum(0)
        reach = x.abs() + paths.references[k].abs().unsqueeze(-2) + factor.abs().sum(-1)
        size = sizes(model, at, reach, u, gain[k]) + carried.abs().sum(-1) + rest
        rest = rest + ROUNDING * size
        if parts is not None:
            around = [around_box(box) for box in (parts[0] + ROUNDING * size, *parts[1:])]
            factor = outer_sum([carried, noise, *around]) * (1 + ROUNDING)
        elif growth is None:
            factor = outer_sum([carried, noise], rest) * (1 + ROUNDING)
        else:
            sure = outer_sum([loop @ sure], rest) * (1 + ROUNDING)
            drawn = _square(torch.cat([loop @ drawn, noise], dim=-1)) * (1 + ROUNDING)
            factor = outer_sum([sure, growth(k + 1) * drawn]) * (1 + ROUNDING)
        factors.append(factor)
    return torch.stack(factors)
