"""Members of a confidence set at its very edge: adversaries for tests of everything that claims to hold for all of F_n.

**The extremal member in closed form.** Let ℓ be a bounded linear functional, V = ΦᵀΦ + λI, and

    max ℓ f   over   ‖f‖_k ≤ B,   ‖V^{1/2}(f − μ_n)‖ ≤ √λ β.

A maximiser has multipliers ν₁, ν₂ ≥ 0 with ℓ = 2ν₁f + 2ν₂V(f − μ_n). Because Vμ_n = Φᵀy this is, with ρ = ν₁/ν₂ and
t = 1/2ν₂, f = (ΦᵀΦ + (λ + ρ)I)⁻¹(Φᵀy + tℓ): the posterior mean for the regulariser λ + ρ plus a multiple of the
posterior section of ℓ for it. ρ = 0 is the ellipsoid's own extreme, ρ → ∞ the ball's. For each ρ both constraints are
quadratics in t, so t is explicit, and what is left is a search in ρ.

Every linear functional of such an f lies in its interval about the posterior, for this posterior; it need not lie in the
intervals of earlier posteriors: `member_share` tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.convex_program import BallProgram
from gpsafe.confidence.functionals import functional_beta
from gpsafe.models.gp import GP
from gpsafe.rkhs import RKHSFunction, kernels

Residual = Callable[[Tensor], Tensor]
_INSIDE = 1 - 1e-9  # of each constraint that a member uses, for rounding
_POWERS = torch.arange(-9.0, 10.0, dtype=torch.float64)  # of ρ/λ
_ROUNDS = 6  # of grids, each fifty times as fine


def extremal_member(
    bound: ConfidenceBound, model: GP, z: Tensor, sign: float | Tensor, *, output: int = 0
) -> RKHSFunction:
    """The f of the ball and of this posterior's ellipsoid with the largest Σ_i sign_i f(z_i): see the module.

    Args:
        bound: a bound with `functional_beta`, no convex program: the set of one is smaller than ball and ellipsoid.
        model: posterior.
        z: (d,), or (m, d).
        sign: ±1, or weights (m,), not all 0.
        output: learned output.

    Raises:
        ValueError: if no member of the family is in both: the ball and the ellipsoid do not meet, or barely.
    """
    beta = functional_beta(bound, model)
    if beta is None or (isinstance(bound, BallProgram) and model.num_data):
        expected = "a bound that holds for all linear functionals, and whose set is an ellipsoid"
        raise _require.fail("extremal_member", expected, bound.name)
    where = "extremal_member"
    if _require.index(where, "output", output) >= model.num_outputs:
        raise _require.fail(where, f"an output in 0..{model.num_outputs - 1}", output)
    limit, kernel = float(bound.norms(model.num_outputs)[output]), model.kernels[output]
    z = torch.atleast_2d(_require.last_dim(where, "z", _require.finite(where, "z", z), model.nx + model.nu))
    weights = _require.finite(where, "sign", sign).expand(len(z))
    if model.inputs is None:
        f = RKHSFunction(kernel, z, weights).scaled_to(limit)
        while f.norm_upper > limit:  # where its parts cancel, the norm as computed is another one for every scale
            f = RKHSFunction(kernel, z, f.weights * (limit * (1 - 1e-12) / f.norm_upper))
        return f
    family = _Family(model, output, z, weights, limit, float(beta[output]))
    ratio = family.search()
    for inside in (_INSIDE, 1 - 1e-7, 1 - 1e-5, 1 - 1e-3):
        f = family.member(ratio, inside)
        if f is not None and member_share(bound, model, f, output=output) <= 1.0:
            return f
    mean = RKHSFunction(kernel, model.inputs, model.weights[:, output])
    raise _require.fail("extremal_member", f"an ellipsoid that meets the ball of norm <= {limit:g}", mean.norm)


class _Family:
    """f = c₀ + t c₁ of the module for one functional, in coefficients on the centres (X, z)."""

    def __init__(self, model: GP, output: int, z: Tensor, weights: Tensor, limit: float, beta: float) -> None:
        assert model.inputs is not None
        self.kernel, self.centers = model.kernels[output], torch.cat([model.inputs, z])
        self.count, self.weights, self.limit = len(model.inputs), weights, limit
        self.regularizer = float(model.regularizer[output])
        self.scale_sq = _scale_sq(model)
        self.reach = self.regularizer * beta**2
        self.gram = kernels.cross(self.kernel, self.centers, self.centers)
        n = self.count
        self.mean = torch.cat([model.weights[:, output], torch.zeros_like(weights)])
        self.targets = self.gram[:n, :n] @ self.mean[:n] + self.regularizer * self.scale_sq * self.mean[:n]
        self.section = self.gram[:n, n:] @ weights
        self.functional = self.gram[:, n:] @ weights

    def line(self, ratio: float) -> tuple[Tensor, Tensor]:
        """c₀ and c₁ (in units of t/(λ + ρ)) for ρ = ratio·λ."""
        n, total = self.count, self.regularizer * (1 + ratio)
        noise = torch.diag(self.scale_sq)
        right = torch.stack([self.targets, -self.section], dim=-1)
        solved = torch.linalg.solve(self.gram[:n, :n] + total * noise, right)
        return torch.cat([solved[:, 0], torch.zeros_like(self.weights)]), torch.cat([solved[:, 1], self.weights])

    def search(self) -> float:
        """ρ/λ of the maximiser: the best power of ten, then ever finer grids between the neighbours of the best."""
        values = self.values()
        exponents, best = _POWERS, 0.0
        for _ in range(_ROUNDS):
            best = float(exponents[int(values(10.0**exponents).argmax())])
            width = float(exponents[1] - exponents[0])
            exponents = torch.linspace(best - width, best + width, 101, dtype=torch.float64)
        return 10.0**best

    def values(self) -> Callable[[Tensor], Tensor]:
        """ρ/λ (r,) ↦ the largest ℓf for each, −∞ if no t satisfies both constraints, as `best`.

        In the eigenvectors of W^{-½}GW^{-½} = Q diag(e) Qᵀ, G the Gram matrix of X and W the squared scales, a coefficient
        vector (W^{-½}Qy, vw) has ‖f‖² = Σ e y² + 2v s·y + v²κ and W^{-½}f(X) = Q(e y + v s).
        """
        n, root = self.count, self.scale_sq.sqrt()
        e, Q = torch.linalg.eigh(self.gram[:n, :n] / torch.outer(root, root))
        s, mean = Q.T @ (self.section / root), Q.T @ (self.mean[:n] * root)
        targets, corner = Q.T @ (self.targets / root), float(self.weights @ self.functional[n:])

        def values(ratios: Tensor) -> Tensor:
            shifted = e + self.regularizer * (1 + ratios).unsqueeze(-1)
            start, along = targets / shifted, -s / shifted
            low, high = torch.full_like(ratios, -math.inf), torch.full_like(ratios, math.inf)
            curve = e * along
            square = (curve * along).sum(-1) + 2 * (along @ s) + corner
            for gap, form, room in ((start, 0.0, self.limit**2), (start - mean, 1.0, self.reach)):
                scale = self.regularizer if form else 1.0
                level = e * gap
                a = scale * square + form * (curve + s).square().sum(-1)
                b = scale * ((level * along).sum(-1) + gap @ s) + form * (level * (curve + s)).sum(-1)
                c = scale * (level * gap).sum(-1) + form * level.square().sum(-1)
                inner = b * b - a * (c - room)
                root = torch.where((a > 0) & (inner >= 0), inner, math.nan).sqrt()
                low, high = torch.maximum(low, (-b - root) / a), torch.minimum(high, (root - b) / a)
            found = start @ s + high * (along @ s + corner)
            return torch.where(low <= high, found, -math.inf)

        return values

    def best(self, ratio: float, inside: float = 1.0) -> tuple[float, float]:
        """Largest ℓf and its t for one ρ; (−∞, 0) if no t satisfies both constraints."""
        start, along = self.line(ratio)
        low, high = -math.inf, math.inf
        for form, origin, room in ((self._norm, 0.0 * start, self.limit**2), (self._form, self.mean, self.reach)):
            a, b, c = form(along, along), form(along, start - origin), form(start - origin, start - origin)
            inner = b * b - a * (c - room * inside)
            if a <= 0 or inner < 0:
                return -math.inf, 0.0
            low, high = max(low, (-b - math.sqrt(inner)) / a), min(high, (-b + math.sqrt(inner)) / a)
        if high < low:
            return -math.inf, 0.0
        return float(self.functional @ (start + high * along)), high

    def member(self, ratio: float, inside: float) -> RKHSFunction | None:
        """The member for one ρ, within `inside` of both constraints."""
        value, t = self.best(ratio, inside)
        start, along = self.line(ratio)
        return RKHSFunction(self.kernel, self.centers, start + t * along) if math.isfinite(value) else None

    def _norm(self, a: Tensor, b: Tensor) -> float:
        """⟨f, g⟩_k."""
        return float(a @ self.gram @ b)

    def _form(self, a: Tensor, b: Tensor) -> float:
        """⟨f, Vg⟩ = Σ_i f(x_i) g(x_i)/w_i² + λ⟨f, g⟩_k."""
        rows = self.gram[: self.count]
        return float((rows @ a / self.scale_sq) @ (rows @ b)) + self.regularizer * self._norm(a, b)


def _scale_sq(model: GP) -> Tensor:
    """w², (n,): squared noise scales of the observations, 1 where they are equal."""
    scale = model.noise_scale
    return torch.ones(model.num_data, dtype=torch.float64) if scale is None else scale.square()


def member_share(bound: ConfidenceBound, model: GP, f: RKHSFunction, *, output: int = 0) -> float:
    """max{‖f‖_k/B, ‖V^{1/2}(f − μ_n)‖/(√λ β)}: at most 1 for members of the ball and of this posterior's ellipsoid.

    Then every linear functional of f is in its interval about this posterior. f may be any Σ α_i k(z_i, ·) of the
    output's kernel. Of a convex program, whose set is smaller: max{‖f‖_k/B, ‖M(f(X) − y)‖/R_n}.
    """
    share = f.norm_upper / float(bound.norms(model.num_outputs)[output])
    if model.inputs is None or model.targets is None:
        return share
    if isinstance(bound, BallProgram):
        misfit = bound._seen((f(model.inputs) - model.targets[:, output]).unsqueeze(-1))
        room = bound.program(model, output, model.inputs[:1]).radius_sq
        return max(share, float(torch.linalg.vector_norm(misfit) / room.sqrt()))
    beta = functional_beta(bound, model)
    if beta is None:
        raise _require.fail("member_share", "a bound that holds for all linear functionals", bound.name)
    coefficients = torch.cat([f.weights, -model.weights[:, output]])
    gap = RKHSFunction(model.kernels[output], torch.cat([f.centers, model.inputs]), coefficients)
    form = (
        float((gap(model.inputs).square() / _scale_sq(model)).sum())
        + float(model.regularizer[output]) * gap.norm_upper**2
    )
    return max(share, math.sqrt(form / float(model.regularizer[output])) / float(beta[output]))


def worst_member(
    bound: ConfidenceBound,
    model: GP,
    objective: Callable[[Residual], Tensor],
    start: Sequence[RKHSFunction],
    *,
    rounds: int = 6,
) -> tuple[RKHSFunction, ...]:
    """Members (one per learned output) that make `objective` large: conditional gradients.

    The objective is a scalar function of the residual, such as a state of a closed loop driven by it. Its derivative in
    the direction of a change of f is a weighted sum of f at the points visited, which `extremal_member` maximises
    exactly; the best of the members met is kept. No claim that nothing is worse.

    Args:
        bound: a bound with `functional_beta`.
        model: posterior.
        objective: takes z ↦ f(z), (*b, d) → (*b, p); differentiable.
        start: the first members, one per output.
        rounds: number of linearisations.

    Raises:
        ValueError: if one of `start` is no member, or the objective NaN there.
    """
    where, first = "worst_member", enumerate(start[: model.num_outputs])
    shares = [member_share(bound, model, f, output=j) for j, f in first]
    if len(start) != model.num_outputs or not all(share <= 1.0 for share in shares):
        raise _require.fail(where, f"{model.num_outputs} members (shares <= 1)", f"{len(start)}, of shares {shares}")
    members, best, highest = tuple(start), tuple(start), -math.inf
    for turn in range(rounds + 1):
        points: list[Tensor] = []
        nudges: list[Tensor] = []

        def recorded(
            z: Tensor,
            own: tuple[RKHSFunction, ...] = members,
            points: list[Tensor] = points,
            nudges: list[Tensor] = nudges,
        ) -> Tensor:
            nudge = torch.zeros(*z.shape[:-1], len(own), dtype=torch.float64, requires_grad=True)
            points.append(z.detach().reshape(-1, z.shape[-1]))
            nudges.append(nudge)
            return torch.stack([f(z) for f in own], dim=-1) + nudge

        value = objective(recorded)
        if value.item() > highest:
            best, highest = members, value.item()
        if turn == rounds or math.isnan(value.item()):
            break
        slopes = torch.autograd.grad(value, nudges, allow_unused=True, materialize_grads=True)
        flat = torch.cat([slope.reshape(-1, len(members)) for slope in slopes])
        z = torch.cat(points)
        members = tuple(
            f if not bool((flat[:, j] != 0).any()) else extremal_member(bound, model, z, flat[:, j], output=j)
            for j, f in enumerate(members)
        )
    if highest == -math.inf:
        raise _require.fail(where, "an objective with a value at the first members", "NaN")
    return best
