"""Certificates for other programs: JSON that `gpsafe_check.py`, which knows nothing of this library, decides again.

A certificate is one claim about one stated problem, with what its proof needs beside the problem (`evidence`), its
assumptions, and hashes. docs/certificates.md has the format and the mathematics of the checker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.certify import Certificate, Invariance
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets._lp import Program
from gpsafe.sets.polytope import Polytope
from gpsafe.systems import AffineKnown
from gpsafe.tube import LinearTube

FORMAT = "gpsafe-certificate/1"
Tree = Mapping[str, Any]


def export_bound(confidence: ConfidenceSet, z: Tensor, *, output: int = 0, generation: int = -1) -> str:
    """That the residual of one learned output is in [μ − βσ, μ + βσ] at one point, as JSON.

    The interval is that of one generation by itself (`ConfidenceBound.interval`), not the intersection over generations.

    Args:
        confidence: with the mixture bound and a stated, scaled, ARD RBF or Matérn kernel, restricted or not.
        z: the point, (nx + nu,).
        output: index among the learned outputs.
        generation: index among the generations; the newest by default.

    Raises:
        ValueError: for what the format cannot say, and for a set that is not sound.
    """
    where, bound = "export_bound", confidence.bound
    if type(bound) is not Mixture or not confidence.sound:
        raise _require.fail(where, "the mixture bound within its theorem", f"{bound.name}, sound={confidence.sound}")
    count = len(confidence.generations)
    if not -count <= generation < count:
        raise _require.fail(where, f"a generation in -{count}..{count - 1}", generation)
    model = confidence.generations[generation]
    if type(model) is not GP:
        raise _require.fail(where, "an exact GP", type(model).__name__)
    bound.check(model)
    z = _require.shape(where, "z", _require.finite(where, "z", z), (model.nx + model.nu,))
    if _require.index(where, "output", output) >= model.num_outputs:
        raise _require.fail(where, f"an output in 0..{model.num_outputs - 1}", output)
    kernel = kernels.stationary(model.kernels[output])
    if kernel is None:
        got = kernels.describe(model.kernels[output])
        raise _require.fail(where, "one scaled RBF or Matern kernel", got)
    dims = list(range(z.shape[0])) if kernel.dims is None else kernel.dims.tolist()
    low, high = (end[output] for end in bound.interval(model, z))
    problem = {
        "bound": bound.name,
        "kernel": {
            "family": "rbf" if kernel.nu == float("inf") else "matern",
            "nu": None if kernel.nu == float("inf") else repr(kernel.nu),
            "lengthscale": _numbers(kernel.lengthscale.expand(len(dims))),
            "variance": repr(kernel.variance),
            "dims": dims,
        },
        "regularizer": _number(model.regularizer[output]),
        "rkhs_norm": _number(bound.norms(model.num_outputs)[output]),
        "subgaussian": _number(bound.noise(model.num_outputs)[output]),
        "delta": repr(float(bound.delta)),
        "output": output,
        "outputs": model.num_outputs,
        "inputs": [] if model.inputs is None else _numbers(model.inputs),
        "targets": [] if model.targets is None else _numbers(model.targets[:, output]),
        "noise_scale": None if model.noise_scale is None else _numbers(model.noise_scale),
        "query": _numbers(z),
    }
    believed = [
        Assumption.RKHS_NORM(f"<={problem['rkhs_norm']}"),
        Assumption.SUBGAUSSIAN(f"({problem['subgaussian']})"),
        Assumption.FIXED_KERNEL(),
        Assumption.ALL_OBSERVATIONS(),
        *([] if model.noise_scale is None else [Assumption.NOISE_SCALES()]),
    ]
    return written("confidence-bound", problem, {"interval": [_number(low), _number(high)]}, believed)


def export_plan(certificate: Certificate) -> str:
    """That a plan with feedback keeps a linear plant within all rows, as JSON; the tube is the evidence.

    Raises:
        ValueError: for a certificate that does not hold, another model than a sound `LinearTube`, or a tube whose laws do not
            start at the measured state.
    """
    where, problem, tube = "export_plan", certificate.problem, certificate.tube
    model = _linear(where, problem.model)
    if not certificate.certified or tube is None:
        raise _require.fail(where, "a certificate that holds", certificate.outcome.value)
    told = {
        **_plant(model),
        "states": _polytope(problem.states),
        "inputs": _polytope(problem.inputs),
        "terminal": _polytope(problem.terminal),
        "gain": _numbers(tube.gain),
        "x0": _numbers(tube.reference[0]),
        "plan": _numbers(certificate.inputs),
        "tolerance": repr(float(problem.tolerance)),
    }
    evidence = {"center": _numbers(tube.reference), "factor": _numbers(tube.factor[0])}
    return written("plan", told, evidence, certificate.assumptions)


def export_invariance(found: Invariance) -> str:
    """That S is invariant under an affine law on a linear plant, as JSON; exact multipliers of S's rows are the evidence.

    For every row n of S moved back by the law, and of U, the multipliers y ≥ 0 have Hᵀy = n and h·y = max_S n·x.

    Raises:
        ValueError: for an invariance that does not hold, another model than a sound `LinearTube`, an S without extrema.
    """
    where = "export_invariance"
    model = _linear(where, found.model)
    if not found.certified:
        raise _require.fail(where, "an invariance that holds", found.verdict.outcome.value)
    told = {
        **_plant(model),
        "region": _polytope(found.region),
        "inputs": _polytope(found.inputs),
        "gain": _numbers(found.law.gain),
        "offset": _numbers(found.law.offset),
    }
    A, B, K = (_fractions(part) for part in (model.plant.A, model.plant.B, found.law.gain))
    closed = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(A, _times(B, K), strict=True)]
    program = Program(found.region.H.tolist(), found.region.h.tolist())
    point: tuple[Fraction, ...] = ()

    def multipliers(rows: list[list[Fraction]]) -> list[list[str]]:
        nonlocal point
        proofs = []
        for row in rows:
            answer = program.maximize(row)
            if answer.status != "optimal":
                raise _require.fail(where, "a bounded, non-empty S", answer.status)
            point = answer.point
            proofs.append([str(answer.multipliers.get(i, Fraction(0))) for i in range(found.region.rows)])
        return proofs

    evidence: dict[str, Any] = {
        "region": multipliers(_times(_fractions(found.region.H), closed)),
        "inputs": multipliers(_times(_fractions(found.inputs.H), K)),
    }
    evidence["point"] = [str(v) for v in point]
    return written("invariance", told, evidence, found.assumptions)


# ------------------------------------------------------------------------------------------------------------ the file
def written(kind: str, problem: Tree, evidence: Tree, assumptions: Iterable[str]) -> str:
    """The file for a problem, its evidence and what is believed, with the claim and the hashes that belong to them.

    Rounding is left out of what is believed: the checker does not round, or bounds what it rounds.
    """
    believed = [entry for entry in listed(assumptions) if entry.kind is not Assumption.ROUNDING]
    tree = {
        "format": FORMAT,
        "kind": kind,
        "claim": f"{_CLAIMS[kind](problem, evidence)} Problem {digest(problem)[:16]}.",
        "assumptions": [_entry(one) for one in believed],
        "problem": problem,
        "evidence": evidence,
    }
    return json.dumps({**tree, "sha256": digest(tree)}, indent=1) + "\n"


def digest(tree: Tree) -> str:
    """SHA-256 of canonical JSON: keys sorted, no blanks, ASCII."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(one: Believed) -> dict[str, str]:
    return {"name": one.kind.name, "words": str(one), "sentence": one.kind.sentence}


def _list(numbers: list[str]) -> str:
    return f"[{', '.join(numbers)}]"


def _claim_of_bound(problem: Tree, evidence: Tree) -> str:
    low, high = evidence["interval"]
    return (
        f"On an event of probability at least 1 - {problem['delta']}, one for all {problem['outputs']} outputs, the residual f"
        f" of output {problem['output']} has {low} <= f(z) <= {high} at z = {_list(problem['query'])}: mixture bound of"
        f" {len(problem['inputs'])} observations, before any intersection with other generations."
    )


def _claim_of_plan(problem: Tree, evidence: Tree) -> str:
    T, rows = len(problem["plan"]), {name: len(problem[name]["h"]) for name in ("states", "inputs", "terminal")}
    return (
        f"From x_0 = {_list(problem['x0'])} the law u = plan[k] + gain[k] (x - center[k]) keeps x+ = Ax + Bu + c + w, w in the"
        f" ellipsoid with half-axes {_list(problem['half_axes'])}, in the {rows['states']} rows of states at stages 1..{T}, its"
        f" inputs in the {rows['inputs']} rows of inputs at stages 0..{T - 1}, and x_{T} in the {rows['terminal']} rows of"
        f" terminal, each to within {problem['tolerance']}."
    )


def _claim_of_invariance(problem: Tree, evidence: Tree) -> str:
    region, inputs = len(problem["region"]["h"]), len(problem["inputs"]["h"])
    return (
        f"From every x in the {region} rows of region, which is not empty, the law u = offset + gain x has u in the {inputs}"
        f" rows of inputs and x+ = Ax + Bu + c + w in region, w in the ellipsoid with half-axes {_list(problem['half_axes'])}:"
        " region is never left."
    )


_CLAIMS: dict[str, Callable[[Tree, Tree], str]] = {
    "confidence-bound": _claim_of_bound,
    "plan": _claim_of_plan,
    "invariance": _claim_of_invariance,
}


# ------------------------------------------------------------------------------------------------------------- numbers
def _number(value: Tensor) -> str:
    return repr(float(value))


def _numbers(tensor: Tensor) -> Any:
    """Nested lists of float64 as `repr` writes them: they read back bit by bit."""

    def text(tree: Any) -> Any:
        return [text(item) for item in tree] if isinstance(tree, list) else repr(float(tree))

    return text(_require.finite("export", "numbers", tensor).detach().cpu().tolist())


def _polytope(given: Polytope) -> dict[str, Any]:
    return {"H": _numbers(given.H), "h": _numbers(given.h)}


def _linear(where: str, model: Any) -> LinearTube:
    if type(model) is not LinearTube or type(model.plant) is not AffineKnown or model.mode != "sound":
        got = f"{type(model).__name__} in {getattr(model, 'mode', 'no')} mode"
        raise _require.fail(where, "a LinearTube of an AffineKnown in sound mode", got)
    return model


def _plant(model: LinearTube) -> dict[str, Any]:
    plant = model.plant
    return {
        "A": _numbers(plant.A),
        "B": _numbers(plant.B),
        "c": _numbers(plant.c),
        "half_axes": _numbers(model.half_axes),
    }


def _fractions(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def _times(A: list[list[Fraction]], B: list[list[Fraction]]) -> list[list[Fraction]]:
    columns = list(zip(*B, strict=True))
    return [[sum((a * b for a, b in zip(r, c, strict=True)), Fraction(0)) for c in columns] for r in A]
