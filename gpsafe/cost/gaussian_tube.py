"""Gaussian tubes: a deterministic upper bound of sup_{f ∈ F_n} J_c(π, f) for Gaussian noise, any state dimension.

Scenario tubes follow thousands of sampled noise paths and pay a Monte-Carlo limit, never below T·C·ln(1/δ)/N. Here the
noise stays a random vector: what is linear in it is carried exactly, only what is not linear is enclosed. For each
policy one sequence (c_t, Z_t, M_t) is computed with

    x_t = c_t + ζ_t + ν_t,   ζ_t ∈ Z_t (a zonotope),   ν_{t+1} = M_t ν_t + w_t,   ν_0 = 0.

**The sequence.** Let Σ_t = cov ν_t = L_t L_tᵀ and R_t = {c_t} ⊕ Z_t ⊕ κ L_t [−1, 1]^nx. Linearise the closed loop at c_t
(`gpsafe.cost._closed_loop`) over all of R_t: for every f ∈ F_n with
‖f‖_k ≤ B and every x ∈ R_t

    f(x, π(x)) ∈ c_{t+1} + M_t (x − c_t) ⊕ E_t,   E_t a box,

and set Z_{t+1} = M_t Z_t ⊕ E_t, Σ_{t+1} = M_t Σ_t M_tᵀ + Σ_w. No random number enters M_t, so ν_t ~ N(0, Σ_t) exactly.

**Claim.** With E_t = {‖L_t⁻¹ν_t‖_∞ ≤ κ}, for every f ∈ F_n: on E_0 ∩ … ∩ E_{t−1}, x_t − ν_t ∈ c_t + Z_t.
Proof: true for t = 0; if it holds at t and E_t too, then x_t ∈ R_t, so x_{t+1} = f(x_t, π(x_t)) + w_t is in
c_{t+1} + M_t(ζ_t + ν_t) ⊕ E_t + w_t = c_{t+1} + (M_t ζ_t ⊕ E_t) + ν_{t+1}. ∎

**Bound.** For a half-space cost c ≤ C·1{n_i·x > o_i for some i}, with 2·nx·Φ(−κ) ≥ P(not E_t),

    J_c ≤ C Σ_{t<T} min{1, Σ_i Φ(−(o_i − n_i·c_t − h_{Z_t}(n_i))/‖n_iᵀ L_t‖) + (t − 1)₊·2·nx·Φ(−κ)}

(E_0 is certain.) So expected costs far below one step can be certified, which budgets near zero need, at the price of one
tube per policy. It exploits structure: states that enter linearly (the position of a cart) may be as uncertain as they
like and cost nothing. It is loose where the closed loop bends inside R_t: a larger κ makes R_t wider, a smaller one the
second term.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self, cast

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption
from gpsafe.confidence.set import ConfidenceSet, Falsification
from gpsafe.cost._closed_loop import Inputs, image
from gpsafe.cost._lineage import require_continuation
from gpsafe.cost._task import OfTask
from gpsafe.cost.base import CostInterval
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.policies import PolicyClass, inputs_at, selected
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import HalfspaceCost, known_with_bound
from gpsafe.systems.task import Task

ROUNDING = 1e-9  # share of its terms by which a reach or a deviation is rounded outwards


@short
@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One time of the tube, for P policies.

    Attributes:
        policies: P of them.
        sure: {c_t} ⊕ Z_t.
        factor: L_t, (P, nx, nx).
        moved: M_{t−1} L_{t−1}, (P, nx, nx): ν_t = moved L_{t−1}⁻¹ ν_{t−1} + w_{t−1}.
        lost: (P,): the tube was given up; no claim but c ≤ C.
    """

    policies: PolicyClass
    sure: Zonotope
    factor: Tensor
    moved: Tensor
    lost: Tensor

    def select(self, keep: Tensor) -> Stage:
        """The policies of a mask (P,)."""
        part = Zonotope(self.sure.center[keep], self.sure.generators[keep])
        index = torch.nonzero(keep).flatten()
        policies = selected(self.policies, index, self.sure.center[0])
        return Stage(policies, part, self.factor[keep], self.moved[keep], self.lost[keep])

    def exceed(self, cost: HalfspaceCost) -> Tensor:
        """Upper bound of P(some half-space is left) but for the events not E_s, (P,)."""
        normals = cost.directions.to(self.factor.device)
        gap = -cost.excess(self.sure.center) - (self.sure.support(normals) - self.sure.center @ normals.T)
        gap = gap - ROUNDING * self.sure.terms(normals)
        spread = torch.einsum("kd,pde->pke", normals, self.factor).norm(dim=-1)
        spread = spread + ROUNDING * self.factor.norm(dim=-1) @ normals.abs().T  # deviations of states may cancel
        certain = (~(gap >= 0)).to(gap.dtype)
        tail = 0.5 * torch.special.erfc(gap / (spread.clamp_min(1e-300) * math.sqrt(2.0))) * (1 + 1e-9)
        chance = torch.where(spread == 0, certain, tail).sum(-1).clamp_max(1.0)
        told = torch.isfinite(chance) & torch.isfinite(spread).all(-1)
        return torch.where(told & ~self.lost, chance, 1.0)


@short
@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianTube(OfTask):
    """The bound of the module. `upper` is a theorem given f* ∈ F_n and w_t i.i.d. N(0, diag(noise_std²)); δ = 0.

    Args:
        task: x_0, T, σ and a half-space cost c ∈ [0, C].
        width: κ, deviations for which the linearisation error is enclosed (about 5).
        give_up: a cost, such as the budget, beyond which a policy is not followed further (upper = T·C).
        order: number of generators at which Z_t is reduced; every reduction wraps, so let it hold those of all steps.
        limit: a tube whose Z_t gets wider than this (in any state) is given up: charged C from then on.
        gradients: use gradients of the posterior (False: kernel metric only).
    """

    task: Task
    width: float = 5.0
    give_up: float = math.inf
    order: int = 128
    limit: float = 1e2
    gradients: bool = True
    name: str = field(default="gaussian-tube", init=False)
    sound: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _require.kind("GaussianTube", "task", self.task, Task)
        _require.count("GaussianTube", "order", self.order)
        for name in ("width", "limit"):
            _require.positive_number("GaussianTube", name, getattr(self, name))
        _require.level("GaussianTube", "give_up", self.give_up)
        if not isinstance(self.task.cost, HalfspaceCost):
            raise _require.fail("GaussianTube", "a half-space cost", type(self.task.cost).__name__)

    @property
    def cost(self) -> HalfspaceCost:
        """c."""
        return cast(HalfspaceCost, self.task.cost)  # checked above

    @property
    def failure(self) -> float:
        """2·nx·Φ(−κ) ≥ P(not E_t), rounded up."""
        return self.initial_state.numel() * math.erfc(self.width / math.sqrt(2.0)) * (1 + 1e-9)

    def stages(self, confidence: ConfidenceSet, policies: PolicyClass) -> Iterator[Stage]:
        """t = 0 … T − 1."""
        nx = self.initial_state.numel()
        self.check(confidence)
        known_with_bound("GaussianTube", confidence.model.prior)
        x0 = self.initial_state.expand(policies.num, nx)
        nothing = torch.zeros(policies.num, dtype=torch.bool, device=x0.device)
        none = x0.new_zeros(policies.num, nx, nx)
        stage = Stage(policies, Zonotope.point(x0), none, none, nothing)
        yield stage
        for _ in range(self.horizon - 1):
            stage = self.step(confidence, stage)
            yield stage

    def charge(self, stage: Stage, time: int) -> Tensor:
        """Upper bound of E c(x_t): C·min{1, exceed_t + (t − 1)₊·failure}, (P,)."""
        return self.cost.ceiling * (stage.exceed(self.cost) + max(time - 1, 0) * self.failure).clamp_max(1.0)

    def upper(self, confidence: ConfidenceSet, policies: PolicyClass) -> Tensor:
        """The bound, T·C for policies that came to cost more than `give_up`, (P,)."""
        ceiling = self.total_ceiling
        upper = torch.full((policies.num,), ceiling, dtype=torch.float64, device=self.initial_state.device)
        alive, total = torch.arange(policies.num, device=upper.device), torch.zeros_like(upper)
        stage = next(iter(self.stages(confidence, policies)))
        for t in range(self.horizon):
            stage = self.step(confidence, stage) if t > 0 else stage
            total = total + self.charge(stage, t)
            keep = total <= self.give_up
            if not bool(keep.any()):
                return upper
            if not bool(keep.all()):
                alive, total, stage = alive[keep], total[keep], stage.select(keep)
        upper[alive] = (total * (1 + 1e-12)).clamp_max(ceiling)
        return upper

    def evaluate(self, confidence: ConfidenceSet, policies: PolicyClass) -> CostInterval:
        """[0, upper] for every policy; upper ≥ sup_{f ∈ F_n} J_c with certainty."""
        upper = self.upper(confidence, policies)
        return CostInterval(
            torch.zeros_like(upper),
            upper,
            sound_upper=confidence.sound,
            method=self.name,
            assumptions=self.believed(confidence, Assumption.KNOWN_DERIVATIVES(), Assumption.COST_RANGE()),
            vacuous=upper >= self.total_ceiling * (1 - 1e-9),
        )

    def session(self, confidence: ConfidenceSet, policies: PolicyClass) -> TubeSession:
        """What ActSafe asks, episode after episode."""
        return TubeSession.start(self, confidence, policies)

    def step(self, confidence: ConfidenceSet, stage: Stage) -> Stage:
        """The next stage."""
        policies = stage.policies
        x = stage.sure.center.unsqueeze(1)  # (P, 1, nx): one point per policy
        count = stage.sure.order
        generators = torch.cat([stage.sure.generators, self.width * stage.factor], dim=-1).unsqueeze(1)
        inputs = Inputs.over(policies, x, generators)
        z = torch.cat([x, inputs.u], dim=-1)
        local = LocalAffine.at(confidence, z, gradients=self.gradients, multipliers=True)
        found = image(confidence, x, generators, inputs, local, torch.zeros_like(z), every=count == 0)
        center, linear, error = found.center.squeeze(1), found.linear.squeeze(1), found.error.squeeze(1)
        sure = Zonotope(center, linear[..., :count]).plus_box(error, found.axes).reduce_outer(self.order)
        noise = torch.diag_embed(self.noise_std.expand_as(center))
        pushed = torch.cat([linear[..., count:] / self.width, noise], dim=-1)
        lost = (
            stage.lost
            | ~sure.within(self.limit)
            | found.empty.squeeze(1)
            | ~(pushed.abs().amax((-2, -1)) <= self.limit)
        )
        parked = lost[:, None]  # a lost tube is parked at x₀: it is charged C whatever it holds
        center = torch.where(parked, self.initial_state, sure.center)
        rays = torch.where(parked[..., None], torch.zeros_like(sure.generators), sure.generators)
        pushed = torch.where(parked[..., None], noise.repeat(1, 1, 2), pushed)
        # LLᵀ = pushed pushedᵀ by QR, which never squares the condition number
        factor = torch.linalg.qr(pushed.mT, mode="r").R.mT
        return Stage(policies, Zonotope(center, rays), factor, pushed[..., : center.shape[-1]], lost)


@short
@dataclass(frozen=True, slots=True, eq=False)
class TubeSession:
    """Gaussian tubes from episode to episode.

    UCBs of earlier stages stay valid (F_n is nested on the event f* ∈ F_n for all n), so the smallest so far is kept in
    `best`, which is filled as policies are asked for. Exploration values are Σ_t ‖σ_n‖ along the tubes' centres, stopped
    where a tube is lost: a heuristic for choosing only.
    """

    bound: GaussianTube
    confidence: ConfidenceSet
    policies: PolicyClass
    best: Tensor

    @property
    def task(self) -> Task:
        """Of the bound."""
        return self.bound.task

    @staticmethod
    def start(bound: GaussianTube, confidence: ConfidenceSet, policies: PolicyClass) -> TubeSession:
        """Before any episode."""
        ceiling = bound.total_ceiling
        return TubeSession(bound, confidence, policies, torch.full((policies.num,), ceiling, dtype=torch.float64))

    def upper(self, index: Tensor) -> Tensor:
        """Smallest UCB so far of the policies `index`, (m,)."""
        if index.numel() == 0:
            return torch.zeros(0, dtype=torch.float64)
        value = self.bound.evaluate(self.confidence, selected(self.policies, index, self.task.initial_state)).upper
        self.best[index] = torch.minimum(self.best[index], value)
        return self.best[index].clone()

    def exploration(self, index: Tensor) -> Tensor:
        """Σ_t ‖σ_n(c_t, π(c_t))‖, (m,)."""
        policies, model = selected(self.policies, index, self.task.initial_state), self.confidence.model
        value = torch.zeros(policies.num, dtype=torch.float64)
        for stage in self.bound.stages(self.confidence, policies):
            x = stage.sure.center.unsqueeze(1)
            std = model.posterior(torch.cat([x, inputs_at(policies, x)], dim=-1).squeeze(1))[1].norm(dim=-1)
            value = value + torch.where(stage.lost, torch.zeros_like(std), std)
        return value

    def update(self, confidence: ConfidenceSet) -> Self:
        """New F_n, which continues the old one: else the bounds kept in `best` would be those of other functions."""
        require_continuation("TubeSession.update", self.confidence, confidence)
        return replace(self, confidence=confidence, best=self.best.clone())

    def falsified(self) -> Falsification | None:
        """Looks at the data."""
        return self.confidence.falsified()
