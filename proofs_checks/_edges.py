"""Plants in which one term of a tube's step leads, with a member of F_n (and a noise) that uses all of it.

All but one have two states. From x_0 = (p_0, q_0) the *pusher* f_1, of which nothing is known there, sends the first state
to any point of [−W, W]; one step later the *victim* decides where the second state goes: the residual f_2, which depends
on the first state only, or the known part, or the clipped policy. f_2 itself is the function that attains the term: the
representer of the functional that the term bounds, scaled to ‖f_2‖ = B, with data at which it was observed without error.
So f* is an extremal member, and `worst_member` looks for worse ones. Every member is verified (`member_share`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.confidence.members import Residual, member_share, worst_member
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, KnownPart
from gpsafe.systems.known import AffineKnown, SineKnown
from gpsafe.systems.task import Task
from gpsafe.verdict import worst_of

FAR = 50.0  # second state of all data: there nothing is learned about the pusher at x_0
LAMBDA, SUBGAUSSIAN = 1e-6, 1e-6
TINY = 1e-6  # norm of a residual that is there to have no say


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """One plant, its confidence set, and members of it that were built to leave too small a tube.

    Attributes:
        confidence: F_n.
        policies: one policy.
        initial_state: x_0, (nx,).
        steps: transitions after which the tube is looked at.
        noise: of every step, (steps, nx).
        normal: the direction in which the members push the last state, (nx,).
        members: residuals z ↦ (*b, p).
        order: of the tube's zonotopes.
    """

    confidence: ConfidenceSet
    policies: AffinePolicies
    initial_state: Tensor
    steps: int
    noise: Tensor
    normal: Tensor
    members: tuple[Residual, ...]
    order: int = 24

    def path(self, residual: Residual) -> Tensor:
        """x_0 … x_steps under a residual, (steps + 1, nx)."""
        model = self.confidence.model

        def mean(x: Tensor, u: Tensor) -> Tensor:
            return model.prior(x, u) + model.embed(residual(torch.cat([x, u], dim=-1)))

        return closed_loop(mean, self.policies, self.initial_state, self.noise[:, None, None, :])[0][0, 0]

    def task(self, noise_std: Tensor | None = None) -> Task:
        """What a tube is told: as many steps, and no noise but `noise_std`; the cost has no say in a tube."""
        none = torch.zeros_like(self.initial_state)
        cost = IndicatorCost(self.normal[None], torch.ones(1, dtype=torch.float64))
        return Task(self.initial_state, self.steps + 1, cost, 0.0, none if noise_std is None else noise_std)

    def reached(self) -> float:
        """max over the members of normal·x at the last step."""
        return worst_of(float(self.path(member)[-1] @ self.normal) for member in self.members)


def _joined(functions: tuple[RKHSFunction, ...]) -> Residual:
    return lambda z: torch.stack([f(z) for f in functions], dim=-1)


def make_edge(
    known: KnownPart,
    kernel: tuple[Kernel, ...],
    norms: tuple[float, ...],
    data: Tensor | None,
    truth: tuple[RKHSFunction, ...],
    start: Tensor,
    *,
    policies: AffinePolicies | None = None,
    steps: int = 2,
    noise: Tensor | None = None,
    sign: float = 1.0,
) -> Edge:
    """The plant whose residual is `truth`, with noise-free observations of it at `data` (m, nz)."""
    nx = start.numel()
    noise = torch.zeros(steps, nx, dtype=torch.float64) if noise is None else noise
    model = GP.create(kernel, LAMBDA, nx=nx, nu=1, noise_std=noise.abs().amax(0), prior=known)
    if data is not None:
        model = model.condition_on(data, _joined(truth)(data))
    # the data are exact, whatever the noise of a task: membership is verified below, not believed
    bound = Mixture(rkhs_norm=norms, subgaussian=SUBGAUSSIAN, delta=0.1, unchecked=True)
    still = AffinePolicies(vector(0.0).reshape(1, 1), torch.zeros(1, 1, nx).double(), Box(vector(-1.0), vector(1.0)))
    normal = torch.zeros(nx, dtype=torch.float64)
    normal[-1] = sign
    edge = Edge(
        ConfidenceSet(bound).update(model),
        policies or still,
        start,
        steps,
        noise,
        normal,
        (_joined(truth),),
    )
    worse = worst_member(bound, model, lambda f: edge.path(f)[-1] @ normal, truth)
    for functions in (truth, worse):
        shares = [member_share(bound, model, f, output=j) for j, f in enumerate(functions)]
        if not max(shares) <= 1.0:
            raise ValueError(f"_edges: expected members of F_n (shares <= 1), got {shares}")
    return replace(edge, members=(_joined(truth), _joined(worse)))


def _pusher(width: float, start: Tensor) -> tuple[Kernel, RKHSFunction]:
    """A residual of the first state that depends on the second: +W at x_0, and unknown there."""
    kernel = kernels.rbf(1.0, variance=width**2, dims=(1,))
    z = torch.cat([start, vector(0.0)]).unsqueeze(0)
    return kernel, RKHSFunction(kernel, z, vector(1.0)).scaled_to(1 - 1e-9)


def attaining(kernel: Kernel, points: Tensor, weights: Tensor, norm: float) -> RKHSFunction:
    """The function of this norm with the largest Σ w_i f(z_i)."""
    return RKHSFunction(kernel, points, weights).scaled_to(norm * (1 - 1e-8))


def _at(first: list[float], second: float = FAR) -> Tensor:
    """Inputs z = (first, second, 0)."""
    z = torch.zeros(len(first), 3, dtype=torch.float64)
    z[:, 0], z[:, 1] = torch.tensor(first, dtype=torch.float64), second
    return z


def _linear(b: tuple[float, float] = (0.0, 0.0), slope: float = 0.0) -> AffineKnown:
    """x⁺ = (0, slope·x_1) + B u."""
    A = vector(0.0, 0.0, slope, 0.0).reshape(2, 2)
    return AffineKnown(A, vector(*b).reshape(2, 1), torch.zeros(2).double())


START = vector(10.0, -10.0)


def _victim(
    points: list[float],
    weights: list[float],
    data: list[float],
    *,
    width: float,
    flat: bool = False,
    dims: tuple[int, ...] = (0,),
) -> Edge:
    """x⁺ = (f_1(x_2), f_2(x_1)): f_2 = Σ w k(points, ·) scaled to norm 1, observed at x_1 ∈ data and at x_0.

    ``flat``: the known part takes the slope of f_2 at 0 away, so that nothing hides behind a linear part. ``dims = (0, 2)``:
    f_2 depends on the input too, u = x_1, and points, data and width are distances along that diagonal.
    """
    kernel, share = kernels.rbf([1.0] * len(dims), dims=dims), 1.0 / math.sqrt(len(dims))

    def at(distances: list[float]) -> Tensor:
        z = _at([share * distance for distance in distances])
        z[:, 2] = z[:, 0] if 2 in dims else 0.0
        return z

    second = attaining(kernel, at(points), torch.tensor(weights, dtype=torch.float64), 1.0)
    h = 1e-3
    slope = float(second(at([-h]))[0] - second(at([h]))[0]) / (2 * h * share) if flat else 0.0
    start = vector(math.copysign(10.0 * share, -slope), -10.0)  # the first step stays below the last
    gain = vector(1.0 if 2 in dims else 0.0, 0.0).reshape(1, 1, 2)
    policies = AffinePolicies(vector(0.0).reshape(1, 1), gain, Box(vector(-20.0), vector(20.0)))
    push, first = _pusher(share * width, start)
    known, seen = _linear(slope=slope), at([float(start[0]) / share, *data])
    first = RKHSFunction(push, torch.cat([start, policies(start.reshape(1, 1, 2))[0, 0]]).unsqueeze(0), first.weights)
    return make_edge(known, (push, kernel), (1.0, 1.0), seen, (first, second), start, policies=policies)


_REST = ([0.3, 0.0, 1e-2, -1e-2], [1.0, -1.0, -15.0, 15.0])  # f(0.3) − f(0) − 0.3 f′(0), by a central difference
_SEEN = [0.0, 0.0, 0.2, -0.2, 0.1, -0.1]


def _taylor() -> Edge:
    """f(z) − f(0) − ∂_z f(0) as large as ‖f‖ allows; value and gradient at 0 observed."""
    return _victim(*_REST, _SEEN, width=0.3, flat=True)


def _taylor_in_two() -> Edge:
    """`_taylor` along the diagonal of a state and the input."""
    return _victim(*_REST, _SEEN, width=0.3, flat=True, dims=(0, 2))


def _metric() -> Edge:
    """f(z) − f(0) as large as ‖f‖ allows; the value at 0 observed, often, and nothing else."""
    return _victim([0.3, 0.0], [1.0, -1.0], [0.0] * 16, width=0.3)


def _gradient() -> Edge:
    """The gradient at 0 is known to a third of what the norm allows, from two points close to each other."""
    return _victim([20.0], [1.0], [0.0] * 16 + [0.002, -0.002], width=0.02)


def _tilted() -> Edge:
    """Seen from one side only: value and gradient at 0 are uncertain together, and more so away from the data."""
    return _victim([20.0], [1.0], [-0.6] * 4, width=0.1)


def _value() -> Edge:
    """One step from a point that was observed once: f = h_n there."""
    kernel = kernels.rbf(1.0, dims=(0,))
    f = attaining(kernel, _at([9.0, 12.0]), vector(1.0, -0.5), 0.5)
    push, first = _pusher(1.0, START)
    return make_edge(_linear(), (push, kernel), (1.0, 1.0), _at([10.0, 9.5, 11.0]), (first, f), START, steps=1)


def _cap() -> Edge:
    """One step without data: f = ±B√k."""
    kernel = kernels.rbf(1.0, dims=(0,))
    f = attaining(kernel, torch.cat([START, vector(0.0)]).unsqueeze(0), vector(1.0), 1.0)
    push, first = _pusher(1.0, START)
    return make_edge(_linear(), (push, kernel), (1.0, 1.0), None, (first, f), START, steps=1)


def _silent(width: float, start: Tensor, sign: float = 1.0) -> dict[str, Any]:
    """The pusher to sign·W from x_0, and a second residual that has no say."""
    push, first = _pusher(width, start)
    kernel = kernels.rbf(1.0, dims=(0,))
    first = RKHSFunction(push, first.centers, sign * first.weights)
    truth = (first, attaining(kernel, _at([0.0]), vector(1.0), TINY))
    return {"kernel": (push, kernel), "norms": (1.0, TINY), "data": None, "truth": truth, "start": start}


def _curved(width: float, noise: Tensor | None = None) -> Edge:
    """x_2⁺ = cos x_1 at its peak: slope 0, all of the change is curvature. x_0 is a whole turn away."""
    wave = SineKnown(
        torch.zeros(2, 2).double(), torch.zeros(2, 1).double(), torch.zeros(2).double(),
        vector(0.0, 1.0).reshape(1, 2), vector(1.0, 0.0, 0.0).reshape(1, 3), vector(math.pi / 2),
    )  # fmt: skip
    return make_edge(wave, **_silent(width, vector(2 * math.pi, 10.0)), noise=noise, sign=-1.0)


def _curved_by_input() -> Edge:
    """x_2⁺ = cos u with u = x_1 free: the change of the input alone bends."""
    wave = SineKnown(
        torch.zeros(2, 2).double(), torch.zeros(2, 1).double(), torch.zeros(2).double(),
        vector(0.0, 1.0).reshape(1, 2), vector(0.0, 0.0, 1.0).reshape(1, 3), vector(math.pi / 2),
    )  # fmt: skip
    policies = AffinePolicies(
        vector(0.0).reshape(1, 1), vector(1.0, 0.0).reshape(1, 1, 2), Box(vector(-9.0), vector(9.0))
    )
    return make_edge(wave, **_silent(0.2, vector(2 * math.pi, 10.0)), policies=policies, sign=-1.0)


def _clipped_residual() -> Edge:
    """x_2⁺ = f_2(u) with u = clip(1 + x_1, ±1) about its corner, and f_2 known: what is clipped bends f_2 too."""
    given = _silent(0.3, vector(10.0, 10.0), sign=-1.0)
    kernel = kernels.rbf(3.0, dims=(2,))
    inputs = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    f = attaining(kernel, torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, -3.0]]).double(), vector(1.0, -1.0), 1.0)
    data = torch.stack([torch.full_like(inputs, FAR), torch.full_like(inputs, FAR), inputs], dim=-1)
    given |= {
        "kernel": (given["kernel"][0], kernel),
        "truth": (given["truth"][0], f),
        "norms": (1.0, 1.0),
        "data": data,
    }
    policies = AffinePolicies(
        vector(1.0).reshape(1, 1), vector(1.0, 0.0).reshape(1, 1, 2), Box(vector(-1.0), vector(1.0))
    )
    return make_edge(_linear(), **given, policies=policies, sign=-1.0)


def _clipped() -> Edge:
    """x_2⁺ = clip(1 + x_1, ±1) about its corner: the strip about its chord is at its widest."""
    box = Box(vector(-1.0), vector(1.0))
    policies = AffinePolicies(vector(1.0).reshape(1, 1), vector(1.0, 0.0).reshape(1, 1, 2), box)
    given = _silent(0.3, vector(10.0, 10.0), sign=-1.0)
    return make_edge(_linear((0.0, 1.0)), **given, policies=policies, sign=-1.0)


def _drift() -> Edge:
    """One state, x⁺ = x + f, f = B√k everywhere near: every step adds a generator, and reductions must keep their sum."""
    kernel, start = kernels.rbf(100.0, variance=0.01, dims=(0,)), vector(0.0)
    f = attaining(kernel, torch.zeros(1, 2).double(), vector(1.0), 1.0)
    known = AffineKnown(vector(1.0).reshape(1, 1), vector(0.0).reshape(1, 1), vector(0.0))
    return replace(make_edge(known, (kernel,), (1.0,), None, (f,), start, steps=7), order=4)


def _pushed_by_noise(known: KnownPart) -> Edge:
    """The noise of the first step, at the edge of its box, takes the pusher's place."""
    noise = vector(-0.3, 0.0, 0.0, 0.0).reshape(2, 2)
    return make_edge(known, **_silent(TINY, START), noise=noise)


def _anchored(*, by_noise: bool) -> Edge:
    """The plant of `_taylor`, a noise (or the known part) instead of the pusher: a set at 0.3 served by an anchor at 0."""
    model = _taylor()
    known = model.confidence.model.prior
    assert isinstance(known, AffineKnown)
    start = model.initial_state
    push, first = _pusher(TINY, start)
    kernel = model.confidence.model.kernels[1]
    f = attaining(kernel, _at(_REST[0]), torch.tensor(_REST[1], dtype=torch.float64), 1.0)
    if not by_noise:
        known = replace(known, c=vector(0.3, 0.0))
    noise = vector(0.3 if by_noise else 0.0, 0.0, 0.0, 0.0).reshape(2, 2)
    seen = _at([float(start[0]), *_SEEN])
    return make_edge(known, (push, kernel), (1.0, 1.0), seen, (first, f), start, noise=noise)


_MAKERS: Mapping[str, Callable[[], Edge]] = {
    "value": _value,
    "cap": _cap,
    "taylor": _taylor,
    "taylor in two": _taylor_in_two,
    "metric": _metric,
    "gradient": _gradient,
    "tilted": _tilted,
    "curved": lambda: _curved(0.2),
    "curved by input": _curved_by_input,
    "clipped": _clipped,
    "clipped residual": _clipped_residual,
    "drift": _drift,
    "landing": _drift,
    "anchored": lambda: _anchored(by_noise=True),
    "in pieces": lambda: _taylor(),
    "on a grid": lambda: _anchored(by_noise=False),
    "noise": lambda: _pushed_by_noise(_linear(slope=-1.0)),
    "curved by noise": lambda: _curved(TINY, noise=vector(0.2, 0.0, 0.0, 0.0).reshape(2, 2)),
}


COMMON = (
    *("value", "cap", "taylor", "taylor in two", "metric", "gradient", "tilted", "curved", "curved by input"),
    *("clipped", "clipped residual", "drift"),
)  # the plants that `tube_grades` needs


@lru_cache(maxsize=len(_MAKERS))
def edge(name: str) -> Edge:
    """The plant of this name. Made once, by code in which nothing is patched (`_defects.graded` sees to it)."""
    return _MAKERS[name]()


def share(center: Tensor, support: Tensor, reached: float, normal: Tensor) -> float:
    """(n·x − n·c)/(h(n) − n·c): how much of a set's extent in direction n is used; above 1 is outside."""
    middle = float(center @ normal)
    return (reached - middle) / max(float(support) - middle, 1e-300)
