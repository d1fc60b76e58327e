"""NaN must never help: no believed function lets a struck row pass, or lets another row notice it (`poison`).

A new believed function is registered in one of the `poison_*` modules; `test_every_believed_function_is_registered` fails until
it is.
"""

import importlib
import inspect
import math
from dataclasses import fields, is_dataclass

import poison_confidence
import poison_costs
import poison_sets
import poison_tubes
import pytest
import torch
from poison import ROWS, PoisonCase, draw, violations

from gpsafe import tube
from gpsafe.confidence import BOUNDS
from gpsafe.cost import scenario_tube
from gpsafe.rkhs.kernels import Stationary
from gpsafe.safety.shield import noise_risk
from gpsafe.sets.zonotope import Zonotope

CASES = {**poison_sets.CASES, **poison_tubes.CASES, **poison_costs.CASES, **poison_confidence.CASES}
PACKAGES = {
    "sets": "zonotope ellipsoid box _containment",
    "tube": "core linear ensemble gp koller",
    "cost": "curvature drift enclosure in_cell local_affine anchor_grid monte_carlo grid robust_dp scenario_tube gaussian_tube"
    " total_variation plan_tube to_go partition multilevel",
    "certify": "judge",
    "confidence": "set bounds functionals ranges regions",
}
MODULES = [f"{package}.{name}" for package, names in PACKAGES.items() for name in names.split()]
MODULES += ["safety.shield", "safety.safe_set", "safety.safeopt", "verdict"]
# Looked at through the case that calls them.
PARTS = {
    "ScenarioTube": "ScenarioTube.charges ScenarioTube.tubes Tubes.contains_hull farthest_points noise_paths",
    "GaussianTube": "TubeSession.upper TubeSession.exploration",
    "TotalVariation": "TotalVariation.paths",
    "RobustDP": "Grid.index Averager.__call__ RangeMax.build RangeMax.__call__ stages RobustDP.rates RobustDP.exploration"
    " RobustDP.outward"
    " touched enclose grow residual_reach around linearised bend InCell.of Loop.rows Loop.seminorm turn",
    "Multilevel.build": "Multilevel.__call__ RangeMax.among ravel",
    "LocalAffine.range_outer": "LocalAffine.at Displacements.seminorm Displacements.support Displacements.scaled_norm"
    " Moduli.of Moduli.metric Moduli.rest Moduli.rest_within",
    "mixture.interval": "ConfidenceBound.interval ConfidenceBound.half_width ClosedForm.formula",
    "LinearTube": "LinearTube.linearise LinearTube.unseen propagate gains sizes Tube.state_support Tube.input_support",
    "EnsembleTube": "EnsembleTube.linearise EnsembleTube.mean EnsembleTube.unseen",
    "GPTube": "GPTube.linearise GPTube.unseen residual_sizes",
    "KnownTube": "KnownTube.unseen",
    "KollerTube": "KollerTube.linearise KollerTube.unseen KollerTube.boxes around_box",
    "PlanTube.verify": "PlanTube.reach PlanTube.sizes",
    "policy_distance": "policy_gap push drift_gap drifted",
}
# They move rows about, or make no claim that a number rests on.
NO_CLAIM = {
    "Zonotope": "point select",
    "Ellipsoid": "point",
    "Stage": "select",
    "LocalAffine": "gather",
    "Enclosure": "select with_residual",
    "Partition": "spread halved",
    "Plans": "of_fallbacks open_loop select act",
    "AnchorGrid": "create",
    "Certificate": "law",
}
# Tested elsewhere: they refuse, or answer for all rows at once.
ELSEWHERE = {
    "Shield.arrived": "tests/safety/test_shield.py: one state at a time, and what is no number is no measurement",
    "noise_radius": "tests/safety/test_shield.py",
    "Partition.index": "tests/cost/test_partition.py: NaN lies outside",
    "CostToGo.value": "tests/safety/test_budget.py: one state at a time",
    "CostToGo.ahead": "tests/safety/test_budget.py: one state at a time",
    "noise_risk": "test_a_risk_of_nothing_is_refused",
    "reachable": "the same `through` as SafePolicySet.expand",
    "SafePolicySet.initial": "tests/safety/test_safe_set.py",
    "ConfidenceBound.noise_refusal": "tests/systems/test_task.py: a task's noise is finite",
    "ConfidenceBound.covers": "tests/contracts/test_theorem_limits.py, by those who ask: NaN is in no box",
    "ConfidenceSet.check_noise": "tests/contracts/test_theorem_limits.py: refuses, or answers for the whole set",
    "Grid.near": "CertifiedMap.at and CostToGo.value ask it",
    "Partition.near": "CertifiedMap.at asks it",
    "input_matrix": "tests/safety/test_safe_set_values.py: of a known part at one point",
    "interpolation": "tests/confidence/test_ranges.py: one grid, refused as a whole",
    "ConfidenceSet.falsified": "test_nan_accuses_nobody",
    "room": "guidance for proposers, of which no claim is made; tests/planning: the judge certifies what they find",
    "ConfidenceSet.empty": "tests/confidence/test_regions.py: what is no number is empty",
    "ConfidenceSet.crossed": "through `empty`, `falsified` and TotalVariation",
    **dict.fromkeys(
        [
            *(
                "Beliefs.of",
                "Beliefs.ends",
                "check_model",
                "constrained",
                "intersect",
                "lipschitz_safe",
                "maximisers",
                "lipschitz_expanders",
                "optimistic_expanders",
            ),
            *("SafeOptRule.released", "SafeOptRule.start", "SafeOptRule.step", "SafeOptRule.choose"),
        ],
        "tests/safety/test_safeopt.py: points vouch for each other, so that rows are not alone; NaN vouches for nobody",
    ),
    "ConfidenceSet.contains": "test_nan_accuses_nobody",
    "strayed": "tests/confidence/test_strayed.py: a row without a known part accuses nobody and hides no other",
}


def believed(module: str) -> list[str]:
    """Public functions and methods of a module that take tensors or sets."""

    def takes(function: object) -> bool:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return any("Tensor" in str(p.annotation) or "Zonotope" in str(p.annotation) for p in parameters)

    home, found = importlib.import_module(f"gpsafe.{module}"), []
    for name, value in vars(home).items():
        if name.startswith("_") or getattr(value, "__module__", None) != home.__name__:
            continue
        if inspect.isfunction(value) and takes(value):
            found.append(name)
        if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            methods = {k: getattr(v, "__func__", v) for k, v in vars(value).items() if k == "__call__" or k[0] != "_"}
            found += [f"{name}.{k}" for k, v in methods.items() if inspect.isfunction(v) and takes(v)]
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_struck_row_is_lost_alone(name):
    assert violations(CASES[name]) == []


def test_every_believed_function_is_registered():
    covered = {name.split(",")[0] for name in CASES} | set(ELSEWHERE)
    covered |= {f"{owner}.{name}" for owner, names in NO_CLAIM.items() for name in names.split()}
    for case, parts in PARTS.items():
        assert case in covered
        covered |= set(parts.split())
    found = {name for module in MODULES for name in believed(module)}
    assert sorted(found - covered) == []
    assert {f"{name}.interval" for name in BOUNDS} <= set(CASES)
    tubes = [v for v in vars(tube).values() if is_dataclass(v) and any(f.name == "mode" for f in fields(v))]
    assert {v.__name__ for v in tubes if hasattr(v, "linearise")} <= covered


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_risk_of_nothing_is_refused(value):
    sigma, radius = torch.tensor([0.1, 0.2]).double(), torch.tensor([0.3, value]).double()
    for arguments in ((sigma, radius), (radius, sigma)):
        with pytest.raises(ValueError, match="noise_risk"):
            noise_risk(*arguments, steps=3)


# ------------------------------------------------------------------------- controls: what the contract must notice
def drawn():
    return {"x": draw(ROWS, 2)}


def raises_for_all(x: torch.Tensor) -> tuple[torch.Tensor]:
    if bool(x.isnan().any()):
        raise RuntimeError("did not converge")
    return (x,)


DEFECTS = {
    "a scale shared by the batch": lambda x: (x / x.abs().max(),),
    "columns kept by the batch": lambda x: (x[:, x.abs().amax(0) < 1e3],),
    "NaN becomes a fine number": lambda x: (x.nan_to_num(0.0),),
    "a comparison that NaN passes": lambda x: (torch.where(x > 1e3, torch.inf, torch.zeros_like(x)),),
    "one row's failure is raised for all": raises_for_all,
}


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_control_planted_defects_are_noticed(name):
    assert violations(PoisonCase(DEFECTS[name], drawn))


def test_control_an_honest_function_passes():
    assert violations(PoisonCase(lambda x: (2.0 * x,), drawn)) == []


def old_plus_box(body: Zonotope, radius: torch.Tensor, axes: object = None) -> Zonotope:
    """Kept axes by a test of the whole batch, which NaN answers with no."""
    rows = torch.nonzero(radius.reshape(-1, radius.shape[-1]).amax(0) > 0).flatten()
    return Zonotope(body.center, torch.cat([body.generators, torch.diag_embed(radius)[..., rows]], dim=-1))


@pytest.mark.parametrize("name", ["Zonotope.plus_box, some axes", "ScenarioTube", "GaussianTube"])
def test_control_axes_kept_by_the_batch_are_noticed(name, monkeypatch):
    monkeypatch.setattr(Zonotope, "plus_box", old_plus_box)
    assert violations(CASES[name])


def test_control_a_kernel_that_takes_nan_for_no_distance_is_noticed(monkeypatch):
    plain = Stationary.profile
    monkeypatch.setattr(Stationary, "profile", lambda self, square: plain(self, square.nan_to_num(0.0)))
    assert violations(CASES["ConfidenceSet.bounds, 2.5"])


def test_control_a_lost_tube_that_is_charged_nothing_is_noticed(monkeypatch):
    plain = scenario_tube.charge_upper
    monkeypatch.setattr(scenario_tube, "charge_upper", lambda cost, body: plain(cost, body).nan_to_num(0.0) * 0.0)
    monkeypatch.setattr(scenario_tube._Walk, "charge", lambda self, cost: scenario_tube.charge_upper(cost, self.tube))
    assert violations(CASES["ScenarioTube"])
