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
from gpsafe.confidence.history import is_prefix
from gpsafe.rkhs import kernels
from gpsafe.rkhs._forms import Linear, Stationary
from gpsafe.sets._lp import Program
from gpsafe.sets.polytope import Polytope
from gpsafe.systems import AffineKnown
from gpsafe.tube import LinearTube

FORMAT = "gpsafe-certificate/1"
Tree = Mapping[str, Any]


def export_bound(confidence: ConfidenceSet, z: Tensor, *, output: int = 0, generation: int | None = None) -> str:
    """An interval for the residual of one learned output at one point, as JSON.

    Args:
        confidence: with the mixture bound; its kernel a sum of scaled, ARD, restricted RBF, Matérn and linear ones.
        z: the point, (nx + nu,).
        output: index among the learned outputs.
        generation: None for F_n, the intersection over all generations and with |f(z)| ≤ B√k(z, z)
            (`ConfidenceSet.bounds`); the index of a generation for its [μ − βσ, μ + βσ] alone (`ConfidenceBound.interval`).

    Raises:
        ValueError: for what the format cannot say, a set that is not sound, and one that is falsified at z.
    """
    where, bound = "export_bound", confidence.bound
    if type(bound) is not Mixture or not confidence.sound:
        raise _require.fail(where, "the mixture bound within its theorem", f"{bound.name}, sound={confidence.sound}")
    model, count = confidence.model, len(confidence.generations)
    if generation is not None and not -count <= generation < count:
        raise _require.fail(where, f"a generation in -{count}..{count - 1}", generation)
    models = confidence.generations if generation is None else (confidence.generations[generation],)
    if not all(is_prefix(one, model) for one in models):
        raise _require.fail(where, "exact GPs on a growing data set", [type(one).__name__ for one in models])
    z = _require.shape(where, "z", _require.finite(where, "z", z), (model.nx + model.nu,))
    if _require.index(where, "output", output) >= model.num_outputs:
        raise _require.fail(where, f"an output in 0..{model.num_outputs - 1}", output)
    kernel = kernels.closed_form(model.kernels[output])
    if kernel is None:
        got = kernels.describe(model.kernels[output])
        raise _require.fail(where, "a sum of RBF, Matern and linear kernels", got)
    both = confidence.bounds(z) if generation is None else bound.interval(models[0], z)
    low, high = (float(end[output]) for end in both)
    if not low <= high:
        raise _require.fail(where, "a set that is not falsified at z", f"[{low}, {high}]")
    n = max(one.num_data for one in models)
    problem = {
        "bound": bound.name,
        "kernel": [_part(part, z.shape[0]) for part in kernel.parts],
        "regularizer": _number(model.regularizer[output]),
        "rkhs_norm": _number(bound.norms(model.num_outputs)[output]),
        "subgaussian": _number(bound.noise(model.num_outputs)[output]),
        "delta": repr(float(bound.delta)),
        "output": output,
        "outputs": model.num_outputs,
        "inputs": [] if model.inputs is None else _numbers(model.inputs)[:n],
        "targets": [] if model.targets is None else _numbers(model.targets[:, output])[:n],
        "noise_scale": None if model.noise_scale is None else _numbers(model.noise_scale)[:n],
        "query": _numbers(z),
        "generations": [one.num_data for one in models],
        "prior": generation is None,
    }
    believed = [
        Assumption.RKHS_NORM(f"<={problem['rkhs_norm']}"),
        Assumption.SUBGAUSSIAN(f"({problem['subgaussian']})"),
        Assumption.FIXED_KERNEL(),
        Assumption.ALL_OBSERVATIONS(),
        *([] if model.noise_scale is None else [Assumption.NOISE_SCALES()]),
    ]
    return written("confidence-bound", problem, {"interval": [repr(low), repr(high)]}, believed)


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
        f" the first {problem['generations']} observations"
        f"{' and |f(z)| <= B sqrt(k(z, z)), intersected' if problem['prior'] else ''}."
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


def _part(part: Stationary | Linear, dim: int) -> dict[str, Any]:
    dims = list(range(dim)) if part.dims is None else part.dims.tolist()
    if isinstance(part, Linear):
        return {"family": "linear", "variance": _numbers(part.variance.expand(len(dims))), "dims": dims}
    smooth = part.nu == float("inf")
    return {
        "family": "rbf" if smooth else "matern",
        "nu": None if smooth else repr(part.nu),
        "lengthscale": _numbers(part.lengthscale.expand(len(dims))),
        "variance": repr(part.variance),
        "dims": dims,
    }


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
