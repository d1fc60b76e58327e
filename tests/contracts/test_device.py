"""Code follows the device of its inputs: the same numbers on a GPU, and results stay there.

Without a GPU the cases still run on the CPU, moved by the same helper, so that they cannot rot.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cost_cases import make_case
from device_cases import moved, tensors
from filter_cases import gp_case
from shield_cases import HORIZON, case_of, judge_of
from xmpsc_cases import pendulum_ensemble, pendulum_terminal

from gpsafe.certify import CertificationProblem, judge
from gpsafe.certify.problem import Proposal
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Hallucinated
from gpsafe.cost.plan_tube import Plans
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.models.gp import identity_prior
from gpsafe.models.rssm import RSSM, RSSMSettings
from gpsafe.planning import EXPLORERS, ICEM, Constraint, Planner, Table
from gpsafe.planning.search.rollouts import Rollouts
from gpsafe.policies.parametric import set_point_family
from gpsafe.sets import Box, Polytope
from gpsafe.sets.zonotope import Zonotope
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.pixels import images
from gpsafe.systems.reference import reference_1d
from gpsafe.systems.task import Task
from gpsafe.tube import EnsembleTube, constant_gain, propagate

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
X = torch.tensor([[0.1, 0.2], [-0.4, 1.0], [0.7, -0.3]], dtype=torch.float64)
U = torch.tensor([[0.1], [-0.5], [0.9]], dtype=torch.float64)


def posterior(device: str) -> Any:
    model = case_of().confidence.model
    z = torch.cat([X, U], dim=-1)
    at = z.to(device)
    here = model.to(device)
    return here.posterior(at), here.gradient(at), here.info_gain(), here.predict(X.to(device), U.to(device))


def confidence(device: str) -> Any:
    found = moved(case_of().confidence, device)
    return found.bounds(torch.cat([X, U], dim=-1).to(device))


def table(device: str) -> Any:
    model = case_of().confidence.model.to(device)
    box = Box(torch.tensor([-3.0, -8.0, -1.0]).double(), torch.tensor([3.0, 8.0, 1.0]).double())
    made = Table.build(model, identity_prior, moved(box, device), counts=(12, 7, 5))
    return made.predict(X.to(device), U.to(device))


def planning(device: str) -> Any:
    """A plan of the mean explorer: without randomness of particles, but with that of iCEM, which differs by device."""
    model, system = case_of().confidence.model.to(device), Pendulum()
    planner = moved(
        Planner(
            EXPLORERS["actsafe-mean"],
            ICEM(24, 6, 2, 5),
            system.input_box,
            system.reward,
            Constraint(system.cost),  # pyright: ignore[reportArgumentType]
        ),
        device,
    )
    generator = torch.Generator(device=device).manual_seed(0)
    plan = planner.propose(model, X[0].to(device), generator=generator)
    assert plan.actions.shape == (5, 1) and bool(torch.isfinite(plan.value))
    assert {t.device.type for t in tensors(plan)} == {device}
    actions = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5, 1).to(device)
    return planner.score(model, X[0].to(device), generator)(actions)


def cost_bound(build: Callable[[Any], Any], name: str = "pendulum") -> Callable[[str], Any]:
    def result(device: str) -> Any:
        case = moved(make_case(name, (5, 14)), device)
        policies = moved(make_case(name, ()).choose(3, 8, 12), device)
        found = build(case).evaluate(case.confidence, policies)
        return found.lower, found.upper

    return result


def robust(device: str) -> Any:
    case = moved(make_case("1d", (3, 10)), device)
    policies = moved(make_case("1d", ()).choose(3, 20, 40), device)
    s = case.system
    grid = moved(Grid(make_case("1d", ()).system.state_box, (200,)), device)
    dp = RobustDP(grid, Task.of(s))
    return dp.upper(dp.enclosure(case.confidence, policies))


def surrogate(device: str) -> Any:
    plant, policies = reference_1d(), set_point_family((-0.6, 1.4), (1.0, 6.0), input_box=reference_1d().input_box)
    problem = Rollouts.prepare(
        policies, make_case("1d", (3, 10)).confidence, plant, goal="exploration", pessimism="hallucinated",
        generator=torch.Generator().manual_seed(1), paths=3,
    )  # fmt: skip
    return moved(problem, device)(torch.tensor([[0.3, 0.4], [0.8, 0.5]], dtype=torch.float64, device=device))


def plans(device: str) -> Any:
    case = moved(case_of(), device)
    made = moved(judge_of(case_of()), device).refine(case.confidence)
    inputs = torch.linspace(-0.4, 0.4, 3, dtype=torch.float64, device=device).reshape(3, 1, 1).expand(3, 4, 1)
    lengths = torch.tensor([4, 2, 1], device=device)
    candidates = Plans.open_loop(inputs, lengths, torch.zeros(3, dtype=torch.long, device=device), 2)
    found = made.verify(Zonotope.point((0.1 * X).to(device)), candidates, HORIZON)
    return found.admitted.double(), found.margin, found.steps.double()


def ensemble(device: str) -> Any:
    model = pendulum_ensemble().to(device)
    return model.evaluate(X.to(device), U.to(device)), tensors(model.linearize(X.to(device), U.to(device)))


def tube(device: str, *, sound: bool) -> Any:
    model = pendulum_ensemble().to(device)
    chosen = EnsembleTube.sound(model, steps=3, delta=0.1) if sound else EnsembleTube.paper(model)
    start = torch.tensor([3.0, 0.1], dtype=torch.float64, device=device)
    made = propagate(chosen, start, 0.3 * U.to(device), constant_gain(0.5, 2, 1).to(device))
    return made.center, made.shape


def certificate(device: str) -> Any:
    box = Box(torch.tensor([0.8, -8.0]).double(), torch.tensor([6.5, 8.0]).double())
    inputs = Box(torch.tensor([-1.0]).double(), torch.tensor([1.0]).double())
    sets = (Polytope.of_box(box), Polytope.of_box(inputs), pendulum_terminal())
    model = EnsembleTube.paper(pendulum_ensemble().to(device))
    question = CertificationProblem(model, *moved(sets, device), constant_gain(0.5, 2, 1).to(device), 3)
    proposal = Proposal(0.1 * U.to(device), "", 1, 0.0, "by hand", 0.0)
    start = torch.tensor([3.2, 0.1], dtype=torch.float64, device=device)
    found = judge(question, start, U[0].to(device), proposal)
    return tensors(found.margins)


def gp_tube(device: str) -> Any:
    problem = moved(gp_case()[0], device)
    return tensors(problem.margins(problem.tube((0.1 * X[0]).to(device), 0.05 * U.to(device))))


def world_model(device: str) -> Any:
    settings = RSSMSettings((8, 8, 1), nu=1, members=3, depth=2, dtype="float64")
    model = RSSM(settings, torch.Generator().manual_seed(0)).to(device)
    seen = torch.linspace(0, 1, 3 * 4 * 64, dtype=torch.float64, device=device).reshape(3, 4, 8, 8, 1)
    found = model.filter(seen, seen[:, :, 0, 0], None)
    return found, model.decode(found.states), found.disagreement()


CASES: dict[str, Callable[[str], Any]] = {
    "posterior": posterior,
    "confidence set": confidence,
    "table": table,
    "planning": planning,
    "sampled": cost_bound(lambda case: Sampled(**case.task)),
    "hallucinated": cost_bound(lambda case: Hallucinated(**case.task)),
    "total variation": cost_bound(lambda case: TotalVariation(**case.task)),
    "scenario tube": cost_bound(lambda case: ScenarioTube(**case.task)),
    "gaussian tube": cost_bound(
        lambda case: GaussianTube(task=case.task["task"]),
    ),
    "robust program": robust,
    "surrogate": surrogate,
    "plan tube": plans,
    "ensemble": ensemble,
    "paper tube": lambda device: tube(device, sound=False),
    "sound tube": lambda device: tube(device, sound=True),
    "certificate": certificate,
    "GP tube": gp_tube,
    "world model": world_model,
    "images": lambda device: images(Pendulum(), X.to(device), size=16),
}
RANDOM = {"sampled", "total variation", "scenario tube", "hallucinated"}  # draws differ by device


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_results_follow_the_device_and_agree(name, device):
    there, here = tensors(CASES[name](device)), tensors(CASES[name]("cpu"))
    assert {t.device.type for t in there} == {device}
    assert len(there) == len(here) > 0
    for a, b in zip(there, here, strict=True):
        assert a.shape == b.shape and bool(torch.isfinite(a).all() == torch.isfinite(b).all().to(device))
        if name not in RANDOM or device == "cpu":
            torch.testing.assert_close(a.cpu(), b, rtol=1e-8, atol=1e-8)
