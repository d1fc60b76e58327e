"""A word ("calibrated", "certified", "backed") is about the parts of which it was said: it is not handed on to others.

`dataclasses.replace` on a calibrated tube kept "calibrated by 2000 held-out rows" for a hundredth of the radius; a certificate
whose reference was converted to degrees in place had 30.7 applied, "backed", where |u| ≤ 1.
"""

import copy
import pickle
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from filter_cases import Moody
from xmpsc_cases import pendulum_data, pendulum_ensemble

from gpsafe.calibration import Adaptive, Conformal, Isotonic, ScaledStd, Weighted
from gpsafe.calibration.bars import bars
from gpsafe.certify import AffineLaw, CertificationProblem, Invariance, certify_invariance, judge
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import CostToGo, Grid, RobustDP
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.models import GP
from gpsafe.models._prior import PlainKnown
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import BudgetFilter, SafePolicySet, certified_map
from gpsafe.safety.filter import SafetyFilter
from gpsafe.saved import export_invariance, export_plan
from gpsafe.sets import Box, Polytope
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task
from gpsafe.tube import EnsembleTube, LinearTube

F64 = {"dtype": torch.float64}
X0, PUSH = torch.tensor([0.5], **F64), torch.tensor([1.0], **F64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], **F64)


def linear() -> tuple[CertificationProblem, Invariance]:
    """x⁺ = x + u/2 + w, |w| ≤ 0.01, |x| ≤ 1, |u| ≤ 1, X_f = X under κ = −0.9x."""
    plant = AffineKnown(torch.ones(1, 1, **F64), torch.full((1, 1), 0.5, **F64), scalar(0.0))
    limits, gain = Polytope.of_box(Box([-1.0], [1.0])), torch.full((1, 1), -0.9, **F64)
    problem = CertificationProblem(LinearTube(plant, scalar(0.01)), limits, limits, limits, gain, 3)
    return problem, certify_invariance(problem, AffineLaw(gain, scalar(0.0)))


def certificate():
    problem, _ = linear()
    return judge(problem, X0, PUSH, torch.full((3, 1), 0.1, **F64))


@lru_cache
def ensemble():
    return pendulum_ensemble(2, 6, count=60, steps=40)


@lru_cache
def prices() -> CostToGo:
    """x⁺ = u + w, known; x > 1 costs 1; the policy's u is 0."""
    known = AffineKnown(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    task = Task(scalar(0.0), 4, IndicatorCost(torch.ones(1, 1), torch.ones(1)), 0.5, scalar(0.1))
    program = RobustDP(Grid(Box([-3.0], [3.0]), (60,)), task)
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-4, nx=1, nu=1, noise_std=scalar(0.1), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-9, subgaussian=0.1, delta=0.1)).update(model)
    return CostToGo.of(program, confidence, policy(0.0), Box([-2.0], [2.0]))


def policy(u: float) -> AffinePolicies:
    return AffinePolicies(scalar(u).unsqueeze(0), torch.zeros(1, 1, 1, **F64), Box([-2.0], [2.0]))


def rows():
    return pendulum_data(40, 7)


def one(z):
    return torch.ones_like(z[..., 0])


MADE = {
    "tube": lambda: EnsembleTube.calibrated(ensemble(), rows(), steps=2, delta=0.1),
    "stated tube": lambda: EnsembleTube.sound(ensemble(), steps=2, delta=0.1),
    "invariance": lambda: linear()[1],
    "certificate": certificate,
    "cost to go": prices,
    "map": lambda: certified_map(
        prices().confidence, prices().policy, prices().program.task, Grid(Box([-3.0], [3.0]), (40,))
    ),
    "conformal": lambda: Conformal.fit(ensemble(), rows()),
    "scaled": lambda: ScaledStd.fit(ensemble(), rows()),
    "isotonic": lambda: Isotonic.fit(ensemble(), rows()),
    "weighted": lambda: Weighted.fit(ensemble(), rows(), one),
    "adaptive": lambda: Adaptive.fit(ensemble(), rows()),
    "bars": lambda: bars(ensemble(), "conformal", rows()),
}
OTHERS = [
    ("tube", "radius", lambda it: 0.01 * it.radius),
    ("tube", "steps", lambda it: 400),
    ("tube", "steps", lambda it: None),
    ("tube", "ensemble", lambda it: it.ensemble.condition(pendulum_data(30, 9))),
    ("tube", "assumptions", lambda it: ()),
    ("stated tube", "radius", lambda it: 0.01 * it.radius),
    ("invariance", "law", lambda it: AffineLaw(-it.law.gain, it.law.offset)),
    ("invariance", "model", lambda it: replace(it.model, half_axes=5 * it.model.half_axes)),
    ("invariance", "region", lambda it: Polytope(it.region.H, 2 * it.region.h)),
    ("invariance", "inputs", lambda it: Polytope(it.inputs.H, 0.1 * it.inputs.h)),
    ("certificate", "inputs", lambda it: 3 * it.inputs),
    ("certificate", "gain", lambda it: -it.gain),
    ("certificate", "tube", lambda it: replace(it.tube, reference=it.tube.reference + 1)),
    ("certificate", "problem", lambda it: replace(it.problem, states=Polytope.of_box(Box([-0.1], [0.1])))),
    ("cost to go", "policy", lambda it: policy(1.0)),
    ("cost to go", "program", lambda it: replace(it.program, task=it.program.task.with_(horizon=2))),
    ("cost to go", "values", lambda it: 0 * it.values),
    ("map", "policies", lambda it: policy(1.0)),
    ("map", "task", lambda it: it.task.with_(horizon=2)),
    ("map", "lower", lambda it: it.lower + 1),
    ("conformal", "delta", lambda it: 1e-4),
    ("conformal", "model", lambda it: it.model.condition(pendulum_data(30, 9))),
    ("scaled", "model", lambda it: it.model.condition(pendulum_data(30, 9))),
    ("isotonic", "ordered", lambda it: 0.5 * it.ordered),
    ("weighted", "held_out", lambda it: pendulum_data(10, 3)),
    ("adaptive", "delta", lambda it: 0.5),
    ("bars", "delta", lambda it: 1e-4),
]


@pytest.mark.parametrize(("name", "part", "other"), OTHERS, ids=[f"{name}-{part}" for name, part, _ in OTHERS])
def test_a_word_is_not_handed_on_to_other_parts(name, part, other):
    made = MADE[name]()
    with pytest.raises(ValueError, match=f"got another {part}"):
        replace(made, **{part: other(made)})


def test_what_the_word_does_not_speak_of_may_be_another():
    tube = MADE["tube"]()
    finer = replace(tube, cells=9)
    assert (finer.radius, finer.assumptions) == (tube.radius, tube.assumptions)
    assert replace(MADE["scaled"](), delta=0.5).delta == 0.5
    moved = Adaptive.fit(ensemble(), rows()).observe(torch.zeros(2, **F64), PUSH, torch.zeros(2, **F64))
    assert moved.steps == 1
    assert replace(prices(), inputs=Box([-1.0], [1.0])).inputs.radius == 1.0


@pytest.mark.parametrize("name", [name for name in MADE if name != "weighted"])  # whose ratio is a function of here
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), replace])
def test_copies_and_pickles_keep_the_word(name, again):
    made = MADE[name]()
    found = replace(again(made))
    assert getattr(found, "assumptions", None) == getattr(made, "assumptions", None)
    assert getattr(found, "certified", True) is True and getattr(found, "edited", None) is None


def test_a_radius_stated_by_hand_is_listed():
    told = EnsembleTube(ensemble(), "sound", 2.0).assumptions
    assert [str(entry) for entry in told] == ["calibrated: one member is right to within 2 σ_m (stated by hand)"]
    wider = replace(EnsembleTube(ensemble(), "sound", 2.0), radius=3.0).assumptions
    assert [str(entry) for entry in wider] == ["calibrated: one member is right to within 3 σ_m (stated by hand)"]


@pytest.mark.parametrize("made", ["tube", "stated tube"])
def test_the_published_recursion_of_a_sound_tube_claims_nothing(made):
    plain = replace(MADE[made](), mode="paper")
    assert [str(entry)[:10] for entry in plain.assumptions] == ["paper mode"]
    assert plain.assumptions == EnsembleTube(ensemble()).assumptions
    assert "(stated by hand)" in replace(plain, mode="sound").assumptions[0]


def test_networks_that_were_trained_on_do_not_become_calibrated_by_a_copy():
    tube = copy.deepcopy(MADE["tube"]())
    tube.ensemble.network.weights[0].mul_(0.5)
    assert tube.edited is not None
    with pytest.raises(ValueError, match="numbers of ensemble that were written on"):
        replace(tube, cells=9)


WRITTEN = {
    "inputs": lambda it: it.inputs.mul_(57.3),
    "inputs as an array": lambda it: it.inputs.numpy().__imul__(57.3),
    "reference": lambda it: it.tube.reference.mul_(57.3),
    "section": lambda it: it.tube.factor[..., 1:, :, :].mul_(57.3),
    "gain": lambda it: it.problem.gain.mul_(-1.0),
    "limits": lambda it: it.problem.states.h.mul_(0.1),
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN)
def test_a_plan_that_was_written_on_is_neither_certified_nor_exported_nor_followed(write):
    problem, _ = linear()
    used = SafetyFilter(problem, Moody()).start()
    decision, used = used.decide(X0, PUSH)
    assert decision.certificate is not None and decision.certificate.certified
    after = problem.model.plant(X0, decision.u)
    write(decision.certificate)
    assert not decision.certificate.certified
    with pytest.raises(ValueError, match="were written on"):
        export_plan(decision.certificate)
    found, following = replace(used, proposer=Moody(False)).decide(after, PUSH)
    assert found.source == "unfiltered" and not found.backed and "forgotten" in found.reason
    assert following.stored is None and following.falsified is None


def test_what_was_decided_may_be_written_on():
    problem, _ = linear()
    decision, used = SafetyFilter(problem, Moody()).start().decide(X0, PUSH)
    after = problem.model.plant(X0, decision.u)
    decision.u.mul_(57.3)
    assert replace(used, proposer=Moody(False)).decide(after, PUSH)[0].backed


BACKUP = {
    "law": lambda used: used.invariance.law.gain.mul_(-1.0),
    "offset": lambda used: used.invariance.law.offset.add_(0.4),
    "region": lambda used: used.invariance.region.h.mul_(2.0),
    "inputs": lambda used: used.problem.inputs.h.mul_(0.1),
    "states": lambda used: used.problem.states.h.mul_(0.9),
}


@pytest.mark.parametrize("write", BACKUP.values(), ids=BACKUP)
def test_a_backup_that_was_written_on_backs_nothing_and_the_filter_answers_all_the_same(write):
    used = SafetyFilter(linear()[0], Moody(False))
    used = replace(used, invariance=certify_invariance(used.problem, AffineLaw(used.problem.gain, scalar(0.0)))).start()
    decision, used = used.decide(X0, PUSH)
    assert decision.source == "backup" and decision.backed
    write(used)
    decision, after = used.decide(X0, PUSH)
    assert not decision.backed and "the backup was changed" in (decision.falsified or "")
    assert bool(after.problem.inputs.contains(decision.u)) and "the backup was changed" in (
        used.arrived(X0).falsified or ""
    )
    with pytest.raises(ValueError, match="invariance"):
        after.start()


def test_an_invariance_that_was_written_on_is_neither_certified_nor_exported():
    _, sure = linear()
    assert sure.certified
    sure.law.gain.mul_(1.1)
    assert not sure.certified
    with pytest.raises(ValueError, match="numbers of law that were written on"):
        export_invariance(sure)


def test_a_map_that_was_written_on_is_not_refined():
    made = MADE["map"]()
    made.lower.mul_(100.0)
    with pytest.raises(ValueError, match="numbers of lower that were written on"):
        made.refined(tolerance=0.01, cells=80)


@pytest.mark.parametrize("name", ["values", "tables"])
def test_prices_that_were_written_on_back_nothing(name):
    """Tables of 0 let every input through for nothing, "backed"."""
    used = BudgetFilter(copy.deepcopy(prices())).start()
    assert used.decide(scalar(0.0), scalar(0.0))[0].backed
    getattr(used.to_go, name).numpy()[:] = 0.0
    found, used = used.decide(scalar(0.0), scalar(0.0))
    assert not found.backed and f"numbers of {name} that were written on" in found.reason and used.broken


def test_a_smaller_budget_is_taken_off_the_account():
    used = BudgetFilter(prices())
    first, used = used.decide(scalar(0.0), scalar(0.0))
    assert first.backed and first.slack > 0.4
    second, _ = replace(used, budget=0.1).decide(scalar(0.0), scalar(0.0))
    assert second.slack == pytest.approx(first.slack - 0.4, abs=1e-12)
    with pytest.raises(ValueError, match="start begins anew"):
        replace(used, to_go=replace(prices()))
    assert replace(used.start(), to_go=replace(prices())).slack is None


def test_a_smaller_budget_keeps_no_member_that_was_admitted_by_the_larger_one():
    safe = SafePolicySet.initial(3, [0], budget=0.5).expand(torch.tensor([0.0, 0.4, 9.0], **F64), episode=1, bound="b")
    assert len(replace(safe, budget=0.4)) == 2
    with pytest.raises(ValueError, match="members that entered within the budget"):
        replace(safe, budget=0.1)


def judge_of_plans(noise: float) -> PlanTube:
    task = Task(
        torch.zeros(2, **F64), 3, IndicatorCost(torch.eye(2, **F64)[:1], scalar(1.0)), 0.1, torch.zeros(2, **F64)
    )
    stay = AffinePolicies(torch.zeros(1, 1, **F64), torch.zeros(1, 1, 2, **F64), Box([-1.0], [1.0]))
    landing = (Box([-0.1, -0.1], [0.1, 0.1]),)
    radius = torch.tensor([noise, 0.0], **F64)
    return PlanTube(fallbacks=stay, task=task, noise_radius=radius, input_box=Box([-1.0], [1.0]), landing=landing)


def test_a_judge_with_other_noise_lands_nowhere_and_forgets_no_noise():
    """State 0 is known, and without noise it has no error; nor did it with noise 10 that was put in afterwards, or by hand."""
    model = GP.create(
        kernels.rbf([1.0] * 3),
        1e-4,
        nx=2,
        nu=1,
        outputs=(1,),
        noise_std=torch.zeros(2, **F64),
        prior=PlainKnown(2, 1, True),
    )
    confidence = ConfidenceSet(Mixture(rkhs_norm=1e-3, subgaussian=0.1, delta=0.1)).update(model)
    plans, start = Plans.of_fallbacks(torch.tensor([0]), 2, 1), Zonotope.point(torch.zeros(1, 2, **F64))
    quiet = judge_of_plans(0.0).refine(confidence)
    assert bool(quiet.verify(start, plans, 3).admitted) and quiet.certified is not None
    loud = replace(quiet, noise_radius=torch.tensor([10.0, 0.0], **F64))
    by_hand = replace(judge_of_plans(10.0), confidence=confidence)
    for judge_ in (loud, by_hand, loud.refine(confidence)):
        assert not bool(judge_.verify(start, plans, 3).admitted)
        assert judge_.certified is None or int(judge_.certified.max()) < 0
