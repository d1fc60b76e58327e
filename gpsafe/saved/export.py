"""Certificates for other programs: JSON that `gpsafe_check.py`, which knows nothing of this library, decides again.

A certificate is one claim about one stated problem, with what its proof needs beside the problem (`evidence`), its
assumptions, and hashes. docs/certificates.md has the format and the mathematics of the checker.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import Tensor

from gpsafe import _require
from gpsafe.certify import Certificate, Invariance
from gpsafe.confidence import ConfidenceSet
from gpsafe.saved import export_tubes
from gpsafe.saved._certificate import (
    believed_of,
    believed_of_data,
    law,
    numbers,
    observed,
    polytope,
    process,
    proven,
    written,
)
from gpsafe.sets._lp import Program
from gpsafe.systems import AffineKnown
from gpsafe.tube import EnsembleTube, GPTube, LinearTube


def export_bound(confidence: ConfidenceSet, z: Tensor, *, output: int = 0, generation: int | None = None) -> str:
    """An interval for the residual of one learned output at one point, as JSON.

    Args:
        confidence: with the mixture bound, or one that is never below it (the checker proves all by the mixture bound); its
            kernel a sum of scaled, ARD, restricted RBF, Matérn, linear and periodic ones and of products of these.
        z: the point, (nx + nu,).
        output: index among the learned outputs.
        generation: None for F_n, the intersection over all generations and with |f(z)| ≤ B√k(z, z)
            (`ConfidenceSet.bounds`); the index of a generation for its [μ − βσ, μ + βσ] alone (`ConfidenceBound.interval`).

    Raises:
        ValueError: for what the format cannot say, a set that is not sound, and one that is falsified at z.
    """
    where, bound = "export_bound", confidence.bound
    model, count = confidence.model, len(confidence.generations)
    if generation is not None and not -count <= generation < count:
        raise _require.fail(where, f"a generation in -{count}..{count - 1}", generation)
    models = confidence.generations if generation is None else (confidence.generations[generation],)
    proven(where, confidence, models)
    z = _require.shape(where, "z", _require.finite(where, "z", z), (model.nx + model.nu,))
    if _require.index(where, "output", output) >= model.num_outputs:
        raise _require.fail(where, f"an output in 0..{model.num_outputs - 1}", output)
    n = max(one.num_data for one in models)
    problem = {
        **process(where, confidence, output, n, closed=False),
        **observed(confidence, n),
        "output": output,
        "outputs": model.num_outputs,
        "query": numbers(z),
        "generations": [one.num_data for one in models],
        "prior": generation is None,
    }
    both = confidence.bounds(z) if generation is None else bound.interval(models[0], z)
    low, high = (float(end[output]) for end in both)
    if not low <= high:
        raise _require.fail(where, "a set that is not falsified at z", f"[{low}, {high}]")
    believed = [*believed_of(problem), *believed_of_data(problem)]
    return written("confidence-bound", problem, {"interval": [repr(low), repr(high)]}, believed)


def export_plan(certificate: Certificate) -> str:
    """That a plan with feedback keeps its rows, as JSON; the tube is the evidence.

    On a linear plant the tube is the certificate's own. On a Gaussian process or an ensemble it is made anew from the terms
    that the checker knows (`gpsafe.saved.export_tubes`), which are a little wider, and the rows have to hold on it.

    Args:
        certificate: of a `LinearTube` of an `AffineKnown`, of a `GPTube` or of an `EnsembleTube` whose known part is the
            identity, zero, an `AffineKnown` or a `SineKnown`.

    Raises:
        ValueError: for a certificate that does not hold, or does not on the wider tube; another model; paper mode.
    """
    where, problem, tube = "export_plan", certificate.problem, certificate.tube
    if not certificate.certified or tube is None:
        raise _require.fail(where, "a certificate that holds", certificate.edited or certificate.outcome.value)
    if type(problem.model) in (GPTube, EnsembleTube):
        return export_tubes.plan(where, certificate)
    model = _linear(where, problem.model, ", or a GPTube or EnsembleTube")
    evidence = {"center": numbers(tube.reference), "factor": numbers(tube.factor[0])}
    return written("plan", {**_plant(model), **law(certificate)}, evidence, certificate.assumptions)


def export_invariance(found: Invariance) -> str:
    """That S is invariant under an affine law on a linear plant, as JSON; exact multipliers of S's rows are the evidence.

    For every row n of S moved back by the law, and of U, the multipliers y ≥ 0 have Hᵀy = n and h·y = max_S n·x.

    Raises:
        ValueError: for an invariance that does not hold, another model than a sound `LinearTube`, an S without extrema.
    """
    where = "export_invariance"
    model = _linear(where, found.model)
    if not found.certified:
        raise _require.fail(where, "an invariance that holds", found.edited or found.verdict.outcome.value)
    told = {
        **_plant(model),
        "region": polytope(found.region),
        "inputs": polytope(found.inputs),
        "gain": numbers(found.law.gain),
        "offset": numbers(found.law.offset),
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


# ------------------------------------------------------------------------------------------------------------- plants
def _linear(where: str, model: Any, others: str = "") -> LinearTube:
    if type(model) is not LinearTube or type(model.plant) is not AffineKnown or model.mode != "sound":
        got = f"{type(model).__name__} in {getattr(model, 'mode', 'no')} mode"
        raise _require.fail(where, f"a LinearTube of an AffineKnown in sound mode{others}", got)
    return model


def _plant(model: LinearTube) -> dict[str, Any]:
    plant = model.plant
    return {
        "A": numbers(plant.A),
        "B": numbers(plant.B),
        "c": numbers(plant.c),
        "half_axes": numbers(model.half_axes),
    }


def _fractions(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def _times(A: list[list[Fraction]], B: list[list[Fraction]]) -> list[list[Fraction]]:
    columns = list(zip(*B, strict=True))
    return [[sum((a * b for a, b in zip(r, c, strict=True)), Fraction(0)) for c in columns] for r in A]
