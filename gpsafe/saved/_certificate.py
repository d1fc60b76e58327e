"""The file of a certificate for other programs: its claim in words, its hashes, its numbers (docs/certificates.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.certify import Certificate
from gpsafe.confidence import AbbasiYadkori, ChowdhuryGopalan, ConfidenceSet, Fiedler, Mixture
from gpsafe.confidence.history import is_prefix
from gpsafe.linalg import vector
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.rkhs._forms import Linear, Stationary
from gpsafe.saved.kernels import decode_kernel, encode_kernel
from gpsafe.sets.polytope import Polytope

FORMAT = "gpsafe-certificate/1"
Tree = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------------------ the file
def written(kind: str, problem: Tree, evidence: Tree, assumptions: Iterable[str]) -> str:
    """The file for a problem, its evidence and what is believed, with the claim and the hashes that belong to them.

    Rounding is left out of what is believed: the checker does not round, or bounds what it rounds.
    """
    believed = [entry for entry in listed(assumptions) if entry.kind is not Assumption.ROUNDING]
    tree = {
        "format": FORMAT,
        "kind": kind,
        "claim": f"{CLAIMS[kind](problem, evidence)} Problem {digest(problem)[:16]}.",
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


def told(numbers: list[str]) -> str:
    """A list in the words of claims."""
    return f"[{', '.join(numbers)}]"


def _claim_of_bound(problem: Tree, evidence: Tree) -> str:
    low, high = evidence["interval"]
    return (
        f"On an event of probability at least 1 - {problem['delta']}, one for all {problem['outputs']} outputs, the residual f"
        f" of output {problem['output']} has {low} <= f(z) <= {high} at z = {told(problem['query'])}: mixture bound of"
        f" the first {problem['generations']} observations"
        f"{' and |f(z)| <= B sqrt(k(z, z)), intersected' if problem['prior'] else ''}."
    )


def _kept(problem: Tree) -> str:
    T, rows = len(problem["plan"]), {name: len(problem[name]["h"]) for name in ("states", "inputs", "terminal")}
    return (
        f"in the {rows['states']} rows of states at stages 1..{T}, its inputs in the {rows['inputs']} rows of inputs at stages"
        f" 0..{T - 1}, and x_{T} in the {rows['terminal']} rows of terminal, each to within {problem['tolerance']}."
    )


def _claim_of_plan(problem: Tree, evidence: Tree) -> str:
    return (
        f"From x_0 = {told(problem['x0'])} the law u = plan[k] + gain[k] (x - center[k]) keeps x+ = Ax + Bu + c + w, w in the"
        f" ellipsoid with half-axes {told(problem['half_axes'])}, {_kept(problem)}"
    )


def _claim_of_gp_plan(problem: Tree, evidence: Tree) -> str:
    return (
        f"On an event of probability at least 1 - {problem['data']['delta']} over the data, and then of at least 1 -"
        f" {problem['noise_delta']} over the noise, from x_0 = {told(problem['x0'])} the law u = plan[k] + gain[k] (x -"
        f" center[k]) keeps x+ = p(x, u) + f(x, u) + w, w ~ N(0, diag({told(problem['noise_std'])}^2)), {_kept(problem)}"
    )


def _claim_of_ensemble_plan(problem: Tree, evidence: Tree) -> str:
    return (
        f"From x_0 = {told(problem['x0'])} the law u = plan[k] + gain[k] (x - reference[k]) keeps x+ {_kept(problem)} That is"
        f" so for every plant of which one of the {len(problem['weights'])} members is right to within {problem['radius']} of"
        " its deviations at every step."
    )


def _claim_of_invariance(problem: Tree, evidence: Tree) -> str:
    region, inputs = len(problem["region"]["h"]), len(problem["inputs"]["h"])
    return (
        f"From every x in the {region} rows of region, which is not empty, the law u = offset + gain x has u in the {inputs}"
        f" rows of inputs and x+ = Ax + Bu + c + w in region, w in the ellipsoid with half-axes {told(problem['half_axes'])}:"
        " region is never left."
    )


def _claim_of_membership(problem: Tree, evidence: Tree) -> str:
    T, std = problem["horizon"], problem["noise_std"]
    return (
        f"On an event of probability at least 1 - {problem['delta']} the policy u = clip(offset + gain x, limits) has E sum"
        f" c(x_t) over t = 0..{T - 1} <= {evidence['upper']} <= {problem['budget']} from x_0 = {problem['x0']}, x+ = Ax + Bu +"
        f" c + f(x, u) + w, w ~ N(0, {std}^2), for the plant's f and for all in F_n: mixture bound of the first"
        f" {problem['generations']} observations."
    )


CLAIMS: dict[str, Callable[[Tree, Tree], str]] = {
    "confidence-bound": _claim_of_bound,
    "plan": _claim_of_plan,
    "invariance": _claim_of_invariance,
    "membership": _claim_of_membership,
    "plan-gp": _claim_of_gp_plan,
    "plan-ensemble": _claim_of_ensemble_plan,
}


# ------------------------------------------------------------------------------------------------------------- numbers
def number(value: Tensor) -> str:
    """One float64 as `repr` writes it."""
    return repr(float(value))


def numbers(tensor: Tensor) -> Any:
    """Nested lists of float64 as `repr` writes them: they read back bit by bit."""

    def text(tree: Any) -> Any:
        return [text(item) for item in tree] if isinstance(tree, list) else repr(float(tree))

    return text(_require.finite("export", "numbers", tensor).detach().cpu().tolist())


def _part(part: Stationary | Linear, dim: int) -> dict[str, Any]:
    dims = list(range(dim)) if part.dims is None else part.dims.tolist()
    if isinstance(part, Linear):
        return {"family": "linear", "variance": numbers(part.variance.expand(len(dims))), "dims": dims}
    smooth = part.nu == float("inf")
    return {
        "family": "rbf" if smooth else "matern",
        "nu": None if smooth else repr(part.nu),
        "lengthscale": numbers(part.lengthscale.expand(len(dims))),
        "variance": repr(part.variance),
        "dims": dims,
    }


def _parts(where: str, kernel: Kernel, dim: int, *, closed: bool) -> list[dict[str, Any]]:
    """The parts of a sum; if it need not be in closed form, also periodic kernels and products, by the call that builds it."""
    form = kernels.closed_form(kernel)
    if form is not None:
        return [_part(part, dim) for part in form.parts]
    if closed:
        expected = "a sum of RBF, Matern and linear kernels"
        raise _require.fail(where, expected, kernels.describe(kernel))
    return _of_call(where, encode_kernel(where, kernel), dim)


def _of_call(where: str, call: Tree, dim: int) -> list[dict[str, Any]]:
    name = call["kernel"]
    if name == "additive":
        return [part for one in call["parts"] for part in _of_call(where, one, dim)]
    if name == "product":
        factors = [_of_call(where, one, dim) for one in call["parts"]]
        if not all(len(one) == 1 and one[0]["family"] != "product" for one in factors):
            raise _require.fail(
                where, "products of RBF, Matern, linear and periodic kernels", "products of sums or of products"
            )
        return [{"family": "product", "factors": [one[0] for one in factors]}]
    if name == "periodic":
        dims = list(range(dim)) if call["dims"] is None else call["dims"]
        scales = {key: numbers(vector(*call[key]).expand(len(dims))) for key in ("period", "lengthscale")}
        return [{"family": "periodic", **scales, "variance": repr(call["variance"]), "dims": dims}]
    form = kernels.closed_form(decode_kernel(call))
    assert form is not None
    return [_part(part, dim) for part in form.parts]


def law(certificate: Certificate) -> dict[str, Any]:
    """The law of a plan and the rows that it has to keep."""
    problem, tube = certificate.problem, certificate.tube
    assert tube is not None
    return {
        "states": polytope(problem.states),
        "inputs": polytope(problem.inputs),
        "terminal": polytope(problem.terminal),
        "gain": numbers(tube.gain),
        "x0": numbers(tube.reference[0]),
        "plan": numbers(certificate.inputs),
        "tolerance": repr(float(problem.tolerance)),
    }


def polytope(given: Polytope) -> dict[str, Any]:
    """Its rows."""
    return {"H": numbers(given.H), "h": numbers(given.h)}


# ------------------------------------------------------------------------------------------------------------ processes
PROVEN = (Mixture, AbbasiYadkori, Fiedler, ChowdhuryGopalan)
"""Bounds that the mixture bound proves: they are never below it, and rest on what it rests on (theory §2.5)."""


def proven(where: str, confidence: ConfidenceSet, models: Iterable[GP]) -> None:
    """Refuses a set whose bound the checker has no proof of, and posteriors that are not of the first rows of its data."""
    bound = confidence.bound
    if type(bound) not in PROVEN or not confidence.sound:
        expected = "the mixture bound within its theorem, or one that is never below it"
        raise _require.fail(where, expected, f"{bound.name}, sound={confidence.sound}")
    models = list(models)
    if not all(is_prefix(one, confidence.model) for one in models):
        raise _require.fail(where, "exact GPs on a growing data set", [type(one).__name__ for one in models])


def process(where: str, confidence: ConfidenceSet, j: int, rows: int, *, closed: bool = True) -> dict[str, Any]:
    """Kernel (with closed form or not), constants and the first targets of learned output j."""
    model, bound = confidence.model, confidence.bound
    return {
        "bound": Mixture.name,
        "kernel": _parts(where, model.kernels[j], model.nx + model.nu, closed=closed),
        "regularizer": number(model.regularizer[j]),
        "rkhs_norm": number(bound.norms(model.num_outputs)[j]),
        "subgaussian": number(bound.noise(model.num_outputs)[j]),
        "targets": [] if model.targets is None else numbers(model.targets[:, j])[:rows],
    }


def observed(confidence: ConfidenceSet, rows: int) -> dict[str, Any]:
    """What all outputs share: δ, the inputs of the first observations, and the sizes of their noise."""
    model = confidence.model
    return {
        "delta": repr(float(confidence.bound.delta)),
        "inputs": [] if model.inputs is None else numbers(model.inputs)[:rows],
        "noise_scale": None if model.noise_scale is None else numbers(model.noise_scale)[:rows],
    }


def believed_of(process: Tree, label: str = "") -> list[Believed]:
    """Of one output."""
    return [
        Assumption.RKHS_NORM(f"<={process['rkhs_norm']}{label}"),
        Assumption.SUBGAUSSIAN(f"({process['subgaussian']}){label}"),
    ]


def believed_of_data(data: Tree) -> list[Believed]:
    """Of what all outputs share."""
    entries = [Assumption.FIXED_KERNEL(), Assumption.ALL_OBSERVATIONS()]
    return entries + ([] if data["noise_scale"] is None else [Assumption.NOISE_SCALES()])
