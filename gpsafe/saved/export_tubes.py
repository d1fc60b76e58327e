"""Plans on what was learned, for other programs: tubes of the few terms that a checker of some hundred lines can form anew.

*Gaussian processes*: with cov the posterior covariance of (f, ∇f) at z̄, v = Mξ, ‖ξ‖ ≤ 1, M = (I; K)L,

    R_j = β √(cov_00 + 2‖Mᵀcov_v0‖ + λ_max(Mᵀcov_vv M)) + B √variance · taylor(λ_max(MᵀM/ℓ²)^½),

the joint form of theory §6.3 with the supremum of the quadratic taken term by term, or h + β λ_max(Mᵀcov_vv M)^½ + the same
rest, or h + ‖Mᵀ∇μ‖ + B d_k, with h = min(β √cov_00, B√k + |μ|). Noises are in their ellipsoids one by one.

*Ensembles*: over cubes of half-width h about points ξ_c that cover ‖ξ‖ ≤ 1, with z_c = z̄ + Mξ_c and J the interval range of
the member's Jacobian over the cube, the mean value theorem in place of second derivatives:

    |μ(z) − μ(z̄) − ∂μ(z̄)(z − z̄)| ≤ |μ(z_c) − μ(z̄) − ∂μ(z̄)Mξ_c| + h Σ_j |((J − ∂μ(z̄))M)_j|,

and likewise ln σ² ≤ the clamped raw output at z_c plus |J_raw| h Σ_j |M_j|.

*Known parts*: a sine with frequency w and phase φ leaves s²/2 · min(1, |sin(w·z̄ + φ)| + s), s = ‖Mᵀw‖, of its amplitude.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.certify import Certificate, judge
from gpsafe.confidence.functionals import differentiable
from gpsafe.cost.local_affine import LocalAffine, Moduli
from gpsafe.models import identity_prior, zero_prior
from gpsafe.saved._certificate import believed_of, believed_of_data, law, numbers, observed, process, proven, written
from gpsafe.systems import AffineKnown, SineKnown
from gpsafe.tube import EnsembleTube, GPTube
from gpsafe.tube.ensemble import _cells, chi_square_radius

MARGIN = 1e-9  # by which boxes are widened: more than the rounding of what the checker forms in balls


def plan(where: str, certificate: Certificate) -> str:
    """See `gpsafe.saved.export.export_plan`."""
    model = certificate.problem.model
    if model.mode != "sound":
        raise _require.fail(where, "a tube in sound mode", model.mode)
    if isinstance(model, GPTube):
        return _of_process(where, certificate, model)
    assert isinstance(model, EnsembleTube)
    return _of_ensemble(where, certificate, model)


def _made_anew(where: str, certificate: Certificate, model: GPTube | EnsembleTube) -> Certificate:
    """The judge's answer for the same plan on another tube."""
    proposal = replace(certificate.proposal, inputs=certificate.inputs)
    assert certificate.tube is not None
    start = certificate.tube.reference[0]
    again = judge(replace(certificate.problem, model=model), start, certificate.action, proposal)
    if not again.certified:
        raise _require.fail(where, "a plan whose rows hold on the tube that the checker can form", again.reason)
    return again


# ------------------------------------------------------------------------------------------------- Gaussian processes
@dataclass(frozen=True, slots=True, eq=False)
class _Termwise(GPTube):
    """With the remainder of the module."""

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        z = torch.cat([x, u.expand(*x.shape[:-1], self.nu)], dim=-1)
        spread = torch.cat([factor, gain @ factor], dim=-2)  # M, (*b, 1, nz, m)
        finite = torch.isfinite(z).all(-1) & torch.isfinite(spread).all(-1).all(-1)
        z, spread = torch.where(finite[..., None], z, 0.0), torch.where(finite[..., None, None], spread, 0.0)
        total = _bent(self.model.prior, z, spread)
        flat = spread.reshape(-1, *spread.shape[-2:])
        local = LocalAffine.at(self.confidence, z.reshape(-1, z.shape[-1]))
        assert local.cov is not None
        assert local.mean is not None
        value, slope = local.mean[..., 0], local.mean[..., 1:]
        mixed = (flat.mT.unsqueeze(1) @ local.cov[..., 1:, 0].unsqueeze(-1)).squeeze(-1).norm(dim=-1)
        steep = _largest(flat.mT.unsqueeze(1) @ local.cov[..., 1:, 1:] @ flat.unsqueeze(1))
        own, moduli = local.cov[..., 0, 0], local.moduli
        here = torch.minimum(own.sqrt(), local.cap + value.abs())
        rest = local.norm * moduli.rest_within(lambda scale: _largest_value(scale.unsqueeze(-1) * flat))
        joint, apart = (own + 2 * mixed + steep).sqrt() + rest, here + steep.sqrt() + rest
        plain = here + (slope @ flat).norm(dim=-1) + local.norm * _metric(moduli, flat)
        learned = torch.minimum(torch.minimum(joint, apart), plain)
        total[..., list(self.model.outputs)] += learned.reshape(*z.shape[:-1], -1)
        return torch.where(finite.unsqueeze(-1), total * (1 + MARGIN) + 1e-12, torch.inf)


def _metric(moduli: Moduli, spread: Tensor) -> Tensor:
    """sup of d_k(z̄, z̄ + Mξ) over ‖ξ‖ ≤ 1, (n, p)."""
    shapes, found = moduli.shapes, []
    for shape, scale in zip(shapes, moduli.inverse_scales, strict=True):
        found.append(shape.metric(_largest(spread.mT @ (scale.square().unsqueeze(-1) * spread))))
    return torch.stack([found[i] for i in moduli.which], dim=-1) * moduli.std


def _of_process(where: str, certificate: Certificate, tube: GPTube) -> str:
    confidence, model = tube.confidence, tube.model
    proven(where, confidence, [model])
    if not differentiable(model):
        raise _require.fail(where, "one RBF or Matern 3/2, 5/2 kernel per output", "others")
    newest = type(confidence)(confidence.bound).update(model)
    terms = {field.name: getattr(tube, field.name) for field in fields(GPTube)} | {
        "confidence": newest,
        "noise": "each",
    }
    again = _made_anew(where, certificate, _Termwise(**terms))
    assert again.tube is not None
    noisy = int((model.noise_std > 0).sum())
    problem = {
        **_known(where, model.prior, model.nx, model.nu),
        "learned": [
            {"output": i, **process(where, confidence, j, model.num_data)} for j, i in enumerate(model.outputs)
        ],
        "data": observed(confidence, model.num_data),
        "noise_std": numbers(model.noise_std),
        "noise_delta": repr(float(tube.delta)),
        **law(again),
    }
    evidence = {
        "center": numbers(again.tube.reference),
        "factor": numbers(again.tube.factor[0]),
        "radius": repr(
            chi_square_radius(noisy, tube.delta, tube.steps) * (1 + 2e-13)
        ),  # the tube has room for its rounding
    }
    believed = [entry for one in problem["learned"] for entry in believed_of(one, f" (output {one['output']})")]
    believed += [*believed_of_data(problem["data"]), *confidence.unlearned, Assumption.GAUSSIAN_NOISE()]
    believed += [Assumption.EXACT_STATE(), Assumption.EXACT_INPUT(), *_extra(certificate.problem.assumptions)]
    return written("plan-gp", problem, evidence, believed)


# ----------------------------------------------------------------------------------------------------------- ensembles
@dataclass(frozen=True, slots=True, eq=False)
class _MeanValue(EnsembleTube):
    """With the remainder of the module."""

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        batch, nx, model = x.shape[:-1], self.nx, self.ensemble
        z = torch.cat([x, u.expand(*batch, self.nu)], dim=-1)
        spread = torch.cat([factor, gain @ factor], dim=-2)  # M, (*b, M, nz, m)
        cells, half = _cells(factor.shape[-1], self.cells, z)
        points = (z.unsqueeze(-2) + cells @ spread.mT).movedim(-2, 0)  # (C, *b, M, nz)
        reach = (half * spread.abs().sum(-1) * (1 + MARGIN)).expand_as(points)

        def rows(at: Tensor) -> Tensor:
            return at.movedim(-2, 0).reshape(self.num_members, -1, at.shape[-1])

        def back(found: Tensor, like: Tensor) -> Tensor:
            return found.reshape(self.num_members, *like.shape[:-2], *found.shape[2:]).movedim(0, like.ndim - 2)

        value, slope = (back(part, z) for part in model.network.linearize(rows(model.inputs(z))))
        there = back(model.network(rows(model.inputs(points))), points)
        ranges = model.network.ranges(rows(model.inputs(points - reach)), rows(model.inputs(points + reach)))
        turn, wide = back(ranges.jacobian, points) - slope, back(ranges.jacobian_radius, points)
        scaled = spread / model.inputs.scale.unsqueeze(-1)
        moved = ((points - z) / model.inputs.scale).unsqueeze(-1)
        bent = (there - value - (slope @ moved).squeeze(-1)).abs()
        bent = (bent + half * ((turn @ scaled).abs() + wide @ scaled.abs()).sum(-1))[..., :nx].amax(0)
        steep = ((turn + slope).abs() + wide) @ (reach / model.inputs.scale).unsqueeze(-1)
        raw = (there + steep.squeeze(-1))[..., nx:]
        std, most = (torch.exp(0.5 * model._log_var(part)) for part in (value[..., nx:], raw.amax(0)))
        grown = self.radius * (most * (1 + MARGIN) - std).clamp_min(0.0)
        return (model.targets.scale * bent + grown + _bent(model.prior, z, spread)) * (1 + MARGIN) + 1e-12


def _of_ensemble(where: str, certificate: Certificate, tube: EnsembleTube) -> str:
    model = tube.ensemble
    terms = {field.name: getattr(tube, field.name) for field in fields(EnsembleTube) if field.init}
    again = _made_anew(where, certificate, _MeanValue(**terms))
    assert again.tube is not None
    problem = {
        **_known(where, model.prior, model.nx, model.nu),
        "weights": [[numbers(layer[m]) for layer in model.network.weights] for m in range(model.members)],
        "biases": [[numbers(layer[m]) for layer in model.network.biases] for m in range(model.members)],
        "normalised": [numbers(part) for part in (model.inputs.offset, model.inputs.scale)],
        "restored": [numbers(part) for part in (model.targets.offset, model.targets.scale)],
        "log_var_limits": numbers(model.log_var_limits),
        "clamp": model.clamp,
        "radius": repr(float(tube.radius)),
        **law(again),
    }
    evidence = {
        "reference": numbers(again.tube.reference),
        "center": numbers(again.tube.center),
        "factor": numbers(again.tube.factor),
        "side": _side(model.nx, tube.cells),
    }
    calibrated = f": norm of (x+ - mean)/std <= {problem['radius']} for one member, the same at all steps"
    believed = [Assumption.CALIBRATED(calibrated), Assumption.EXACT_STATE(), Assumption.EXACT_INPUT()]
    believed += _extra([*tube.assumptions, *certificate.problem.assumptions])
    return written("plan-ensemble", problem, evidence, believed)


def _side(dim: int, budget: int) -> int:
    """Cubes along an axis, as `gpsafe.tube.ensemble._cells` counts them."""
    _, half = _cells(dim, budget, torch.zeros((), dtype=torch.float64))
    return round(1 / half)


def _extra(entries: Iterable[str]) -> list[Believed]:
    """What else is believed, and why the radius: in the words of who says so, for the checker needs none of it."""
    kept = (Assumption.GIVEN, Assumption.TERMINAL_INVARIANT)
    found = [entry for entry in listed(entries) if entry.kind is not Assumption.ROUNDING]
    return [entry if entry.kind in kept else Assumption.GIVEN(str(entry)) for entry in found]


# --------------------------------------------------------------------------------------------------------- known parts
def _known(where: str, known: Any, nx: int, nu: int) -> dict[str, Any]:
    """A known part in closed form."""
    eye, none = torch.eye(nx, dtype=torch.float64), torch.zeros(nx, nu, dtype=torch.float64)
    if known is identity_prior:
        known = AffineKnown(eye, none, eye[0] * 0)
    elif known is zero_prior:
        known = AffineKnown(0 * eye, none, eye[0] * 0)
    if type(known) not in (AffineKnown, SineKnown):
        got = getattr(known, "__name__", type(known).__name__)
        raise _require.fail(where, "an AffineKnown or SineKnown known part, identity or zero", got)
    sines = []
    if isinstance(known, SineKnown):
        parts = zip(numbers(known.amplitudes), numbers(known.frequencies), numbers(known.phases), strict=True)
        sines = [dict(zip(("amplitude", "frequency", "phase"), part, strict=True)) for part in parts]
    return {"A": numbers(known.A), "B": numbers(known.B), "c": numbers(known.c), "sines": sines}


def _bent(known: Any, z: Tensor, spread: Tensor) -> Tensor:
    """What the linearisation of a known part leaves out over z̄ + Mξ, (*b, nx) for z̄ (*b, nz), M (*b, nz, m)."""
    if not isinstance(known, SineKnown):
        return torch.zeros(*z.shape[:-1], spread.shape[-1], dtype=z.dtype)
    s = (known.frequencies @ spread).norm(dim=-1)
    sine = torch.sin(z @ known.frequencies.T + known.phases).abs()
    return (0.5 * s.square() * (sine + s).clamp_max(1.0)) @ known.amplitudes.abs()


def _largest(S: Tensor) -> Tensor:
    """The largest eigenvalue of symmetric matrices, (*b, m, m) → (*b,)."""
    return torch.linalg.eigvalsh(0.5 * (S + S.mT))[..., -1].clamp_min(0.0) * (1 + MARGIN)


def _largest_value(M: Tensor) -> Tensor:
    """The largest singular value, (*b, n, m) → (*b,)."""
    return _largest(M.mT @ M).sqrt()
