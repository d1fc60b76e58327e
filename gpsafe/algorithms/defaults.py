"""A sound receding-horizon learner for a plant of one's own, from what its user knows: known part, kernels, B.

What can be derived is derived: where to rest (an equilibrium of the known part near x_0), brakes (LQR about it), landing
sets (boxes in the shape of the Riccati solution), the grid at which F_n is tabulated, the noise box, the planner. **None of it
is believed**: fallbacks and landing sets are certified for the F_n of each episode before anything rests on them, and what
does not pass is not used. Bad defaults cost episodes that are refused, never a violation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import pinned_prior
from gpsafe.algorithms.from_data import Estimate
from gpsafe.algorithms.learned import TheoryModel
from gpsafe.algorithms.receding import RecedingActSafe
from gpsafe.confidence import Mixture
from gpsafe.cost.anchor_grid import AnchorGrid
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.plan_tube import PlanTube
from gpsafe.models import GP
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Explorer, Planner, Table, Tracking
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels as kernel_forms
from gpsafe.safety.shield import noise_radius
from gpsafe.sets import Box
from gpsafe.systems.adapt import Dynamics
from gpsafe.systems.base import IndicatorCost, KnownPart, System
from gpsafe.systems.derived import derived_known
from gpsafe.systems.task import Task
from gpsafe.tube.gains import lqr_gain

EFFORTS = (1.0, 0.1, 10.0)  # of the input in the LQR of each fallback, where its range is 1
LANDINGS = (0.6, 0.4, 0.25, 0.15)  # largest extent of a landing box in units of the room about the resting point


@dataclass(frozen=True, slots=True, eq=False)
class Rest:
    """An equilibrium of the known part, x = p(x, u), and its linearisation.

    Attributes:
        x, u: (nx,), (nu,).
        A, B: ∂p/∂x (nx, nx), ∂p/∂u (nx, nu).
        residual: ‖p(x, u) − x‖_∞.
    """

    x: Tensor
    u: Tensor
    A: Tensor
    B: Tensor
    residual: float


def resting_point(
    known: KnownPart, near: Tensor, inputs: Box, *, iterations: int = 50, tolerance: float = 1e-9
) -> Rest:
    """The equilibrium that Newton's method with least steps finds from (near, middle of the inputs).

    Raises:
        ValueError: if it finds none with an input strictly inside the box.
    """
    x, u = near.clone().to(torch.float64), inputs.center.clone()
    nx = x.numel()
    for _ in range(iterations):
        a, b = jacobians(known, x, u)
        gap = known(x, u) - x
        if float(gap.abs().max()) <= tolerance:
            break
        slope = torch.cat([a - torch.eye(nx, dtype=x.dtype), b], dim=-1)
        move = -torch.linalg.lstsq(slope, gap.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
        x, u = x + move[:nx], u + move[nx:]
    a, b = jacobians(known, x, u)
    residual = float((known(x, u) - x).abs().max())
    inside = bool(((u > inputs.lower) & (u < inputs.upper)).all())
    if not (residual <= math.sqrt(tolerance) and inside):
        got = f"residual {residual:.3g} at x = {x.tolist()}, u = {u.tolist()}"
        raise _require.fail("resting_point", "an equilibrium of the known part near x0 (give fallbacks otherwise)", got)
    return Rest(x, u, a, b, residual)


def brakes(rest: Rest, state_scale: Tensor, input_box: Box, *, efforts: Sequence[float] = EFFORTS) -> AffinePolicies:
    """LQR policies u = u_e + K(x − x_e) about a resting point, one an effort.

    Args:
        rest: where to.
        state_scale: deviation of each state that counts 1, (nx,).
        input_box: limits; half its width counts 1.
        efforts: weights of the input.
    """
    state = torch.diag(state_scale.reciprocal().square())
    effort = torch.diag(input_box.radius.reciprocal().square())
    gains = torch.stack([lqr_gain(rest.A, rest.B, state_weight=state, input_weight=e * effort) for e in efforts])
    return AffinePolicies(rest.u - (gains @ rest.x), gains, input_box)


def landing_boxes(
    rest: Rest, gain: Tensor, state_scale: Tensor, room: Tensor, *, sizes: Sequence[float] | None = None
) -> tuple[Box, ...]:
    """Boxes about a resting point in the shape of the level sets of the closed loop's cost, largest first.

    Args:
        rest: middle.
        gain: K of the loop, (nu, nx).
        state_scale: (nx,).
        room: how far each state may go from the middle, (nx,), inf where there is no limit.
        sizes: largest extents, as shares of the room (default: `LANDINGS`).
    """
    loop = (rest.A + rest.B @ gain).numpy()
    value = scipy.linalg.solve_discrete_lyapunov(loop.T, np.diag(state_scale.reciprocal().square().numpy()))
    shape = torch.from_numpy(np.sqrt(np.linalg.inv(value).diagonal()))
    largest = float((torch.where(room.isfinite(), room, 2 * state_scale) / shape).min())
    return tuple(Box(rest.x - s * largest * shape, rest.x + s * largest * shape) for s in sizes or LANDINGS)


def room_of(cost: IndicatorCost, x: Tensor, region: Box) -> Tensor:
    """How far each state can move from x, alone, before the constraint is violated or the region left, (nx,)."""
    slack = cost.offsets - cost.normals @ x
    steps = torch.where(cost.normals != 0, slack.unsqueeze(-1) / cost.normals.abs(), torch.inf).amin(0)
    return torch.minimum(steps, torch.minimum(region.upper - x, x - region.lower)).clamp_min(0.0)


def anchor_spacing(kernels: Sequence[Kernel], box: Box, *, most: int = 6000) -> Tensor:
    """Spacing of a grid of at most about `most` points over z: the same share of the least length-scale on every axis, (nz,).

    inf for axes that every kernel ignores; kernels without length-scales count as ones of a quarter of the box.
    """
    scales = torch.full((box.dim,), torch.inf, dtype=torch.float64)
    for kernel in kernels:
        form = kernel_forms.stationary(kernel)
        if form is None:
            scales = torch.minimum(scales, 0.5 * box.radius)
            continue
        dims = list(range(box.dim)) if form.dims is None else form.dims.tolist()
        scales[dims] = torch.minimum(scales[dims], form.lengthscale.expand(len(dims)))
    used = scales.isfinite()
    if not bool(used.any()):
        return scales
    width, share = 2 * box.radius[used], 0.02
    while float((width / (share * scales[used])).ceil().add(1).prod()) > most:
        share *= 1.1
    return torch.where(used, share * scales, scales)


def dither(fallbacks: AffinePolicies, size: Tensor) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    """S_0: the first fallback with a uniform disturbance of ± size (nu,), ≥ 0, on its input."""
    _require.kind("dither", "fallbacks", fallbacks, AffinePolicies)
    size = _require.nonnegative("dither", "size", size)
    _require.shape("dither", "size", size, (fallbacks.input_box.dim,))
    first = fallbacks.select(torch.tensor([0]))

    def draw(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        def act(x: Tensor) -> Tensor:
            noise = 2 * torch.rand(size.numel(), dtype=torch.float64, generator=generator) - 1
            return fallbacks.input_box.clip(first(x.reshape(1, 1, -1))[0, 0] + size * noise)

        return act

    return draw


def sound_learner(
    system: System,
    known: KnownPart | Dynamics,
    kernels: Sequence[Kernel] | Estimate,
    rkhs_norm: Sequence[float] | Tensor | None = None,
    *,
    outputs: Sequence[int] | None = None,
    episodes: int = 20,
    delta: float = 0.1,
    delta_noise: float = 0.01,
    explorer: Explorer | str = "actsafe-sound",
    optimiser: ICEM | None = None,
    excitation: float = 0.5,
    rest: Rest | None = None,
    seed: int = 0,
) -> RecedingActSafe:
    """A `RecedingActSafe` with a verifier, all parts made from these.

    Args:
        system: task with an `IndicatorCost`, limits, reward; its `mean` is called by `learn` alone.
        known: p, with its Hessian bound, or a torch function whose bound can be derived (`gpsafe.systems.derived_known`).
        kernels: of the residuals f* − p, one an output; or what `estimate` found, which stands for `rkhs_norm` and `outputs`
            too. The learner calls itself heuristic then, until it is given ``found.declare()``.
        rkhs_norm: B of each, ‖f*_j − p_j‖_k ≤ B_j: believed.
        outputs: states that are learned; the others equal the known part (default: all).
        episodes: episodes and tasks for which the noise box is to hold with probability 1 − delta_noise.
        delta: probability that f* leaves some F_n.
        delta_noise: see `episodes`.
        explorer: what is sought; its pessimism must be "sound" for a guarantee.
        optimiser: of plans.
        excitation: S_0 flies the first fallback with inputs disturbed by this share of half their range; **assumed safe**.
        rest: where the fallbacks lead (default: the equilibrium of the known part near x_0).
        seed: of all random numbers.

    Raises:
        ValueError: where there is no equilibrium or no LQR: then `RecedingActSafe` wants its parts made by hand.
    """
    where, cost = "sound_learner", system.cost
    _require.number(where, "excitation", excitation, minimum=0.0)
    if not isinstance(cost, IndicatorCost):
        raise _require.fail(where, "a plant whose cost is an IndicatorCost", type(cost).__name__)
    known = (
        known
        if isinstance(known, KnownPart)
        else derived_known(known, states=system.state_box, inputs=system.input_box)
    )
    doubt: str | None = None
    mode: Literal["theory"] | None = None
    if isinstance(kernels, Estimate):
        if rkhs_norm is not None or outputs is not None:
            raise _require.fail(where, "an Estimate without rkhs_norm and outputs (it has its own)", "both")
        if kernels.prior is not known and not pinned_prior(known, system.nx, system.nu).agrees(kernels.prior):
            expected = "an Estimate of what the known part leaves (estimate(prior=known))"
            raise _require.fail(where, expected, "one of what another known part leaves")
        doubt, mode = kernels.heuristic, "theory"  # fixed before what this learner will see
        kernels, rkhs_norm, outputs = kernels.kernels, kernels.rkhs_norm, kernels.outputs
    if rkhs_norm is None:
        raise _require.fail(where, "rkhs_norm of the kernels (or an Estimate in their place)", None)
    nx, nu, box = system.nx, system.nu, system.input_box
    learned = list(range(nx)) if outputs is None else list(outputs)
    noise = system.noise_std
    sigma = noise[learned]
    if not bool((sigma > 0).all()):
        raise _require.fail(where, "positive noise_std of the learned states (it is the bound's R)", noise.tolist())
    rest = resting_point(known, system.initial_state, box) if rest is None else rest
    room = room_of(cost, rest.x, system.state_box)
    scale = torch.where(room > 0, room, system.state_box.radius)
    fallbacks = brakes(rest, scale, box)
    landing = landing_boxes(rest, fallbacks.gain[0], scale, room)
    region = Box(torch.cat([system.state_box.lower, box.lower]), torch.cat([system.state_box.upper, box.upper]))
    gp = GP.create(
        list(kernels), sigma.square(), nx=nx, nu=nu, noise_std=noise, outputs=learned, prior=known, mode=mode
    )
    bound = Mixture(
        rkhs_norm=tuple(torch.as_tensor(rkhs_norm, dtype=torch.float64).tolist()), subgaussian=tuple(sigma.tolist()),
        delta=delta,
    )  # fmt: skip
    judge = PlanTube(
        fallbacks=fallbacks,
        task=Task.of(system),
        noise_radius=noise_radius(noise, steps=system.horizon * episodes, delta=delta_noise),
        input_box=box,
        anchors=AnchorGrid.create(region, anchor_spacing(list(kernels), region)),
        landing=landing,
    )
    tracking = Tracking(
        brakes=fallbacks,
        authority=0.75,
        state_weight=scale.reciprocal().square(),
        input_weight=box.radius.reciprocal().square(),
    )
    spacing = anchor_spacing(list(kernels), region, most=20_000)
    axes = [i for i in range(nx + nu) if math.isfinite(float(spacing[i]))]
    table_box = Box(region.lower[axes], region.upper[axes])
    counts = [max(2, int(c)) for c in (2 * table_box.radius / spacing[axes]).ceil() + 1]

    def tabulate(gp: GP) -> Table:
        return Table.build(gp, known, table_box, counts=counts, axes=axes)

    chosen = (
        EXPLORERS[_require.one_of(where, "explorer", explorer, EXPLORERS)] if isinstance(explorer, str) else explorer
    )
    planner = Planner(
        chosen,
        optimiser or ICEM(samples=200, elites=20, iterations=3, horizon=min(15, system.horizon)),
        box,
        system.reward,
        Constraint(cost, form="indicator"),
        particles=3,
    )
    model = TheoryModel.create(gp, bound, tabulate=tabulate, judge=judge, tracking=tracking, doubt=doubt)
    return RecedingActSafe(
        system, planner, model, dither(fallbacks, excitation * box.radius), delta_noise=delta_noise, seed=seed
    )
