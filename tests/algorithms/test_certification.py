"""What X-MPSC certifies with: invariant sets against a naive oracle, filters of both modes, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gpsafe.algorithms.certification import Certification, NoInvariantSetError, invariant_about_rest
from gpsafe.certify.certainty import certainty_levels
from gpsafe.certify.terminal_set import TerminalSet
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.linalg import vector
from gpsafe.models import GP, Ensemble
from gpsafe.models._normalizer import Normalizer
from gpsafe.planning.mpc.tightened import Tightened
from gpsafe.rkhs import kernels
from gpsafe.sets import Box, Polytope
from gpsafe.systems import HingeCost, IndicatorCost, TwoLinkArm, reference_pendulum
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.drone import Drone
from gpsafe.systems.episodic import as_episodic
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.warmup import warm_up_data
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.tube import EnsembleTube, LinearTube

PENDULUM, CARTPOLE = SimplePendulum(observation_noise=0.0), SafeCartPole()


def near_the_plant(plant, *, scale=1.0, size=1e-4, std=1e-3, prior=None):
    """Networks that add little to a known part."""
    parts = (Normalizer.identity(plant.nx + plant.nu), Normalizer(torch.zeros(plant.nx), torch.full((plant.nx,), size)))
    return Ensemble.create(
        plant.nx,
        plant.nu,
        generator=torch.Generator().manual_seed(0),
        members=3,
        hidden=(6,),
        std_limits=(std, 2 * std),
        prior=plant.prior(scale=scale) if prior is None else prior,
        normalizers=parts,
    )


@pytest.mark.parametrize(("plant", "around"), [(PENDULUM, [0.6, 2.0]), (CARTPOLE, [2.0, 4.0, 0.2, 3.0])])
def test_an_invariant_set_is_one_of_the_linearisation_and_one_of_another_gain_is_not(plant, around):
    how = Certification(terminal="invariant", around=torch.tensor(around).double())
    model = near_the_plant(plant, std=2e-4)
    found = how.invariant(plant, model, None)
    about = how._about_rest(plant, how.tube(model, None))
    corners = found.vertices()
    assert len(corners) > plant.nx
    after = corners @ about.closed.mT + about.offset
    reach = after @ found.H.mT + (found.H * about.spread).norm(dim=-1)
    assert float((reach - found.h).max()) <= 1e-9
    assert bool(Polytope.of_box(plant.state_box).contains(corners).all())
    assert bool(Polytope.of_box(plant.input_box).contains(about.law(corners)).all())
    A = how.tube(model, None).linearise(about.rest.expand(3, -1), torch.zeros(3, 1).double()).A.mean(0)
    free = (corners - about.rest) @ A.mT + about.rest  # the plant without its law leaves the set
    assert float((free @ found.H.mT - found.h).max()) > 1e-3


def test_an_invariant_set_lies_about_the_rest_that_is_given_and_fills_what_is_allowed():
    """The pendulum held 0.05 rad off the bottom by a constant torque; both coordinates reach the ends of `around`."""
    plant, angle = PENDULUM, math.pi + 0.05
    still = vector(-plant.mass * plant.gravity * plant.length * math.sin(angle))
    rest, around = vector(angle, 0.0), vector(0.02, 0.1)
    how = Certification(terminal="invariant", feedback=None, around=around, rest=(rest, still))
    model = near_the_plant(plant, std=2e-5)
    found, about = how.invariant(plant, model), how._about_rest(plant, how.tube(model, None))
    assert torch.allclose(about.law(rest), still) and torch.allclose(
        about.closed @ rest + about.offset, rest, atol=1e-5
    )
    eye = torch.eye(2).double()
    assert torch.allclose(found.support(eye), rest + around) and torch.allclose(-found.support(-eye), rest - around)


@pytest.mark.parametrize("plant", [PENDULUM, CARTPOLE, Drone(), TwoLinkArm()], ids=lambda plant: plant.name)
def test_what_is_tuned_for_a_stock_plant_rests_and_speaks_of_its_limits(plant):
    how = invariant_about_rest(plant, delta=0.05)
    assert (how.terminal, how.feedback, how.delta) == ("invariant", None, 0.05)
    assert set(plant.limited) <= set(range(plant.nx) if how.dims is None else how.dims)
    if how.rest is not None:
        assert torch.equal(plant.mean(*how.rest), how.rest[0]) and plant.input_box.contains(how.rest[1])
    for name in ("around", "state_weight"):
        given = getattr(how, name)
        assert given is None or given.shape == (plant.nx,)


def test_the_coordinates_of_a_stock_plants_set_are_those_that_its_description_names():
    """Drone: roll, pitch and their rates, whose linearised motion depends on no others. Arm: place and rates of the joints."""
    plant, how = Drone(), invariant_about_rest(Drone())
    assert how.dims is not None and how.rest is not None
    assert how.state_weight is not None and how.state_weight[3] == how.state_weight[4] > 1  # roll and pitch alike
    motion = torch.func.jacrev(plant.mean)(*how.rest)[list(how.dims)]
    assert float(motion.abs().sum(0)[[j for j in range(12) if j not in how.dims]].max()) < 1e-12
    arm, dims = TwoLinkArm(), invariant_about_rest(TwoLinkArm()).dims
    still, turning = (arm.of(vector(0.0, 1.5), vector(*rates), vector(0.2, 0.2)) for rates in ((0.0, 0.0), (0.1, 0.2)))
    assert (
        dims is not None
        and dims[:2] == arm.limited
        and list(dims[2:]) == torch.nonzero(still != turning).flatten().tolist()
    )


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ((vector(50.0, 0.0), vector(0.0)), "x of rest within the system's"),
        ((vector(0.0, 0.0), vector(99.0)), "u of rest within the system's"),
        ((vector(0.0), vector(0.0)), "x of rest of shape"),
        ((vector(math.nan, 0.0), vector(0.0)), "finite x of rest"),
        (vector(0.0, 0.0), "a pair"),
    ],
)
def test_a_rest_outside_the_plants_limits_is_refused_in_words(rest, words):
    """ "Box: expected lower <= upper" was what a rest outside the state box got."""
    plant = DoubleIntegrator()
    tube = LinearTube(plant.prior(mass_error=0.0), vector(0.006, 0.024))
    with pytest.raises(ValueError, match=words):
        Certification(mode="sound", feedback=None, terminal="invariant", rest=rest).invariant(plant, tube)


def test_a_rest_may_be_given_as_lists_of_any_width():
    plant = DoubleIntegrator()
    tube = LinearTube(plant.prior(mass_error=0.0), vector(0.006, 0.024))
    how = Certification(mode="sound", feedback=None, terminal="invariant")
    pairs = ((vector(0.0, 0.0), vector(0.0)), ([0.0, 0.0], [0.0]), (torch.zeros(2), torch.zeros(1)))
    first, *others = [replace(how, rest=pair).invariant(plant, tube) for pair in pairs]
    assert all(torch.equal(first.H, other.H) and torch.equal(first.h, other.h) for other in others)


def test_a_plant_that_no_input_holds_has_no_law_and_no_certificate():
    """x⁺ − rest = 1.2 (x − rest), whatever the input."""
    rest, grown = PENDULUM.initial_state, torch.diag(vector(1.2, 1.2))
    known = AffineKnown(grown, torch.zeros(2, 1).double(), rest - grown @ rest)
    model, apart = near_the_plant(PENDULUM, size=1e-6, prior=known), warm_up_data(PENDULUM, 200, 0).transitions
    how = Certification(states=3, mode="sound", feedback=0.1)
    hull = TerminalSet.start(PENDULUM.initial_box.sample(30, torch.Generator().manual_seed(0))).polytope
    assert how.filter(PENDULUM, model, apart, hull).invariance is None
    about = how._about_rest(PENDULUM, how.tube(model, apart))
    assert about.law is None and torch.equal(about.rest, rest)
    assert torch.allclose(about.closed, grown, atol=1e-4) and torch.allclose(
        about.closed @ rest + about.offset, rest, atol=1e-4
    )
    with pytest.raises(ValueError, match="a stabilisable plant about rest, or a feedback factor"):
        replace(how, feedback=None).filter(PENDULUM, model, apart, hull)
    with pytest.raises(NoInvariantSetError, match="a stabilisable plant about rest, got no LQR gain"):
        replace(how, terminal="invariant").invariant(PENDULUM, model, apart)


def test_an_invariant_set_in_few_coordinates_is_one_of_their_own_motion():
    """A drone's roll and pitch depend on themselves and their rates; the law feeds back these alone."""
    plant, dims, nx = Drone(), (3, 4, 9, 10), 12
    error = torch.zeros(nx).double().index_fill(0, torch.tensor([3, 4]), 0.005)
    how = Certification(
        states=4, terminal="invariant", dims=dims, feedback=None, input_weight=0.1, error=error,
        state_weight=torch.ones(nx).double().index_fill(0, torch.tensor([3, 4]), 50.0),
        rest=(plant.initial_state, torch.tensor([plant.hover, 0.0, 0.0, 0.0]).double()), around=torch.full((nx,), 4.0).double(),
    )  # fmt: skip
    model = near_the_plant(plant, std=4e-3)
    found, about = how.invariant(plant, model, None), how._about_rest(plant, how.tube(model, None))
    free = [j for j in range(nx) if j not in dims]
    assert bool((found.H[:, free] == 0).all()) and bool((about.law.gain[:, free] == 0).all())
    local = how.tube(model, None).linearise(about.rest.expand(3, -1), how.rest[1].expand(3, -1))
    assert float(local.A[:, dims][:, :, free].abs().max()) < 1e-3  # what is left out of the four's motion
    within = Polytope(found.H[:, dims], found.h)
    corners = within.vertices()
    after = corners @ about.closed.mT + about.offset
    assert float((after @ within.H.mT + (within.H * about.spread[list(dims)]).norm(dim=-1) - within.h).max()) <= 1e-9
    whole = torch.zeros(len(corners), nx).double()
    whole[:, dims] = corners
    corners = whole
    assert float(corners[:, 3:5].abs().max()) <= float(plant.state_box.upper[3]) - 0.005 + 1e-9
    assert bool(plant.input_box.contains(about.law(corners)).all())
    safe = how.filter(plant, model, None, found)
    decision, _ = safe.decide(plant.initial_state, torch.ones(4).double())
    assert decision.source == "plan" and safe.problem.terminal.rows == found.rows


def test_limits_are_drawn_in_by_the_measurement_noise_in_both_modes():
    error = torch.tensor([0.1, 0.5]).double()
    hull = TerminalSet.start(PENDULUM.initial_box.sample(30, torch.Generator().manual_seed(0))).polytope
    model, eye = near_the_plant(PENDULUM), torch.eye(2).double()
    filters = [Certification(error=e).filter(PENDULUM, model, None, hull) for e in (None, error)]
    box = PENDULUM.state_box
    for side, end in ((eye, box.upper), (-eye, -box.lower)):
        whole, drawn = (safe.problem.states.support(side) for safe in filters)
        assert torch.equal(whole, end) and torch.allclose(drawn, end - error)


def test_paper_filters_are_the_published_ones():
    hull = TerminalSet.start(PENDULUM.initial_box.sample(30, torch.Generator().manual_seed(0)))
    safe = Certification(states=6).filter(PENDULUM, near_the_plant(PENDULUM), None, hull.polytope)
    problem = safe.problem
    assert (problem.steps, problem.mode, safe.soften, problem.tolerance) == (5, "paper", 5, 1e-6)
    assert problem.gain.tolist() == [[-0.5, -0.5]] and safe.invariance is None
    assert torch.equal(problem.terminal.H, hull.polytope.H)
    lqr = Certification(feedback=None).filter(PENDULUM, near_the_plant(PENDULUM), None, hull.polytope)
    assert not torch.equal(lqr.problem.gain, problem.gain)
    decision, _ = safe.start().decide(PENDULUM.initial_state, torch.zeros(1).double())
    assert decision.source == "plan"


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_a_sound_process_of_less_noise_than_the_plant_has_is_refused(factor):
    """Its ellipsoids hold next to none of the plant's disturbances: a set was certified that a step left, and plans, too."""
    twin = reference_pendulum()
    plant = as_episodic(twin, Box(twin.initial_state, twin.initial_state), lambda x: torch.zeros_like(x[..., :1]))
    noise, kernel, rest = factor * twin.noise_std, kernels.rbf([2.0, 6.0, 2.0], 1e-4), torch.zeros(1, 2).double()
    gp = GP.create(kernel, 1e-2, nx=2, nu=1, noise_std=noise, outputs=twin.outputs, prior=twin.known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.01, subgaussian=float(noise[1]), delta=0.1)).update(gp)
    corners = torch.tensor([[0.3, 0.0], [-0.3, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    hull, how = TerminalSet.start(torch.cat([rest, corners])).polytope, Certification(mode="sound", feedback=0.1)
    if factor == 1.0:
        assert how.filter(plant, confidence, None, hull).problem.model.confidence is confidence
        assert how.filter(replace(plant, noise_std=0.5 * noise), confidence, None, hull).problem.mode == "sound"
        return
    with pytest.raises(ValueError, match="at least the plant's noise_std"):
        how.filter(plant, confidence, None, hull)
    with pytest.raises(ValueError, match="at least the plant's noise_std"):
        replace(how, terminal="invariant", feedback=None).invariant(plant, confidence)


def test_sound_filters_have_a_certified_set_and_limits_less_the_measurement_noise():
    plant = PENDULUM
    # the networks know the noise of the input; their radius comes from rows that they never saw
    apart = warm_up_data(plant, 400, 0).transitions
    model = near_the_plant(plant, size=1e-6, std=4e-3)
    error = torch.tensor([0.01, 0.1]).double()
    how = Certification(
        states=3, mode="sound", feedback=None, terminal="invariant", delta=0.1, error=error,
        around=torch.tensor([0.5, 1.5]).double(),
    )  # fmt: skip
    terminal = how.invariant(plant, model, apart)
    safe = how.filter(plant, model, apart, terminal)
    assert safe.problem.mode == "sound" and safe.problem.tolerance == 0.0
    assert isinstance(safe.problem.model, EnsembleTube) and isinstance(safe.proposer, Tightened)
    assert safe.invariance is not None and safe.invariance.certified
    alone = how.filter(plant, model, apart)  # finds the same set, and keeps the certificate it found it by
    assert alone.invariance is not None and alone.invariance.concerns(alone.problem)
    assert torch.equal(alone.problem.terminal.h, terminal.h) and torch.equal(alone.problem.terminal.H, terminal.H)
    box = plant.state_box
    assert safe.problem.states.support(torch.eye(2).double()).tolist() == pytest.approx((box.upper - error).tolist())
    decision, _ = safe.start().decide(plant.initial_state, torch.ones(1).double())
    assert decision.backed
    with pytest.raises(ValueError, match="rows kept apart"):
        how.filter(plant, model, None, terminal)


def test_levels_of_certainty_are_those_of_what_was_flown():
    model, how = near_the_plant(PENDULUM), Certification(states=4, certainty=0.9)
    flown = warm_up_data(PENDULUM, 300, 0).episodes
    hull = TerminalSet.start(PENDULUM.initial_box.sample(30, torch.Generator().manual_seed(0))).polytope
    safe = how.filter(PENDULUM, model, None, hull, flown)
    expected = certainty_levels(EnsembleTube.paper(model), flown, steps=3, share=0.9)
    assert torch.equal(safe.problem.certainty, expected)
    with pytest.raises(ValueError, match="an episode of at least 3 steps"):
        how.filter(PENDULUM, model, None, hull)
    process = GP.create(kernels.rbf([1.0, 1.0, 1.0]), 0.1, nx=2, nu=1, noise_std=0.1)
    with pytest.raises(ValueError, match="an ensemble for levels"):
        how.filter(
            PENDULUM,
            ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(process),
            None,
            hull,
            flown,
        )


def test_what_has_no_answer_is_refused():
    coordinates = ({"dims": ()}, {"dims": (1, 1)}, {"dims": (-1,)})
    for wrong in (
        {"certainty": 1.0},
        {"certainty": 0.0},
        {"states": 1},
        {"mode": "exact"},
        {"terminal": "ball"},
        {"delay": 0},
        {"delta": 1.0},
        {"apart": 1},
        *coordinates,
    ):
        with pytest.raises(ValueError, match="Certification"):
            Certification(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an invariant set about rest"):
        Certification(around=torch.zeros(2).double()).invariant(PENDULUM, near_the_plant(PENDULUM), None)


def limited_before_the_box(cost):
    """A pendulum that hangs at 0 in a state box of ±2.5 and ±8, and pays from 1.2 rad on."""
    plant = replace(reference_pendulum().physics, cost=cost)
    known = reference_pendulum().known
    gain = torch.tensor([[0.6], [0.15]]).double()
    start = Box(plant.initial_state, plant.initial_state)
    plant = as_episodic(plant, start, lambda x: torch.clamp(-(x @ gain), -1.0, 1.0))
    parts = (Normalizer.identity(3), Normalizer(torch.zeros(2), torch.full((2,), 1e-4)))
    model = Ensemble.create(
        2, 1, generator=torch.Generator().manual_seed(0), hidden=(6,), std_limits=(1e-3, 2e-3), prior=known, normalizers=parts
    )  # fmt: skip
    return plant, model


ANGLE = torch.tensor([[1.0, 0.0]]).double()


@pytest.mark.parametrize("kind", [IndicatorCost, HingeCost])
def test_the_limits_are_those_of_the_cost_too(kind):
    plant, model = limited_before_the_box(kind(ANGLE, torch.tensor([1.2]).double()))
    how = Certification(states=4, mode="paper", feedback=None, terminal="invariant", input_weight=10.0)
    problem = how.filter(plant, model).problem
    for body in (problem.states, problem.terminal):
        assert float(body.support(ANGLE)) <= 1.2 + 1e-6
    drawn = replace(how, error=torch.tensor([0.1, 0.0]).double()).filter(plant, model).problem.states
    assert float(drawn.support(ANGLE)) == pytest.approx(1.1)
    assert bool(problem.states.contains(torch.tensor([-2.4, 7.0]).double()))  # nothing else is taken away


def test_limits_that_are_those_of_the_box_add_no_row():
    problem = Certification(terminal="invariant").filter(PENDULUM, near_the_plant(PENDULUM)).problem
    assert problem.states.rows == 4


def test_a_cost_that_is_no_polytope_inside_the_box_is_refused_and_one_outside_is_not():
    class Disc:
        ceiling = 1.0

        def __init__(self, radius):
            self.radius = radius

        def __call__(self, x):
            return (x.norm(dim=-1) > self.radius).double()

        def upper(self, lower, upper):
            return (torch.maximum(lower.abs(), upper.abs()).norm(dim=-1) > self.radius).double()

        def lower(self, lower, upper):
            return torch.zeros(lower.shape[:-1], dtype=torch.float64)

        def boundary_free(self, lower, upper):
            return torch.zeros(lower.shape[:-1], dtype=torch.bool)

    how = Certification(states=4, mode="paper", feedback=0.2)
    plant, model = limited_before_the_box(Disc(3.0))
    hull = Polytope.of_box(Box(torch.tensor([-0.1, -0.1]).double(), torch.tensor([0.1, 0.1]).double()))
    with pytest.raises(ValueError, match="a cost of half-spaces"):
        how.filter(plant, model, terminal=hull)
    plant, model = limited_before_the_box(Disc(100.0))
    assert how.filter(plant, model, terminal=hull).problem.states.rows == 4
