"""Hulls of certified states, and invariance: against simulation, against the closed form, and sets that are not invariant."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from filter_cases import extreme, linear_case
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from xmpsc_cases import double_integrator, ensemble_pendulum

from gpsafe.certify import CertificationProblem
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.terminal_set import AffineLaw, TerminalSet, certify_invariance
from gpsafe.sets import Box, Polytope
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import LinearTube
from gpsafe.verdict import Outcome


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- the hull
@settings(max_examples=25, deadline=None)
@given(seed=seeds(), nx=st.integers(1, 4), updates=st.integers(0, 4))
def test_the_hull_only_grows_and_holds_every_certified_state(seed, nx, updates):
    generator = torch.Generator().manual_seed(seed)
    dims = tuple(range(max(1, nx - 1)))
    found = TerminalSet.start(torch.randn(nx + 3, nx, dtype=torch.float64, generator=generator), dims=dims)
    seen = [found.points]
    for _ in range(updates):
        states = 2 * torch.randn(6, nx, dtype=torch.float64, generator=generator)
        before, found = found.polytope, found.update(states)
        seen.append(states[:, list(dims)])
        assert bool(found.polytope.contains(states, tol=1e-9).all())
        inside = torch.zeros(200, nx, dtype=torch.float64)
        inside[:, list(dims)] = 2 * torch.randn(200, len(dims), dtype=torch.float64, generator=generator)
        assert not bool((before.contains(inside) & ~found.polytope.contains(inside, tol=1e-9)).any())
    assert len(found.points) <= len(torch.cat(seen))
    assert nx == len(dims) or bool((found.polytope.H[:, -1] == 0).all())


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_the_set_in_use_is_delay_updates_old(delay):
    found = TerminalSet.start(vector(-1.0, 1.0).unsqueeze(-1), delay=delay)
    for k in range(1, 6):
        found = found.update(vector(1.0 + k).unsqueeze(-1))
        assert float(found.polytope.bounding_box().upper) == 1.0 + max(k - delay, 0)


def test_an_update_without_states_still_counts():
    found = TerminalSet.start(vector(-1.0, 1.0).unsqueeze(-1), delay=1).update(vector(5.0).unsqueeze(-1))
    assert float(found.polytope.bounding_box().upper) == 1.0
    assert float(found.update(torch.zeros(0, 1).double()).polytope.bounding_box().upper) == 5.0


@pytest.mark.parametrize(
    ("states", "dims", "message"),
    [
        (torch.zeros(3).double(), None, "shape"),
        (torch.zeros(3, 2).double(), (0, 0), "distinct"),
        (torch.zeros(3, 2).double(), (2,), "coordinates"),
        (torch.full((3, 2), torch.nan).double(), None, "finite"),
        (torch.ones(3, 2, dtype=torch.bool), None, "Booleans"),
        (torch.randn(3, 2).double(), (True, False), "integer coordinate"),
        (torch.randn(3, 2).double(), torch.tensor([True, False]), "integer coordinate"),
        (torch.randn(3, 2).double(), (1.0,), "integer coordinate"),
        (torch.randn(3, 2).double(), (-1,), "integer coordinate"),
        (torch.randn(3, 2).double(), "01", "tuple"),
        (torch.randn(3, 2).double(), 0, "tuple"),
        (torch.randn(3, 2).double(), (), "distinct"),
    ],
)
def test_bad_input_is_named(states, dims, message):
    with pytest.raises(ValueError, match=message):
        TerminalSet.start(states, dims=dims)


def test_coordinates_may_be_numpys_or_a_tensors():
    points = torch.tensor([[0.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    for dims in ([1], np.array([1]), torch.tensor([1])):
        found = TerminalSet.start(points, dims=dims)
        assert found.dims == (1,)
        assert float(found.polytope.support(torch.tensor([[0.0, 1.0]], dtype=torch.float64))) == 2.0


@pytest.mark.parametrize("delay", [-1, True, 1.0, math.nan, None])
def test_a_delay_counts_updates(delay):
    with pytest.raises(ValueError, match="integer delay"):
        TerminalSet.start(vector(-1.0, 1.0).unsqueeze(-1), delay=delay)
    with pytest.raises(ValueError, match="integer delay"):
        replace(TerminalSet.start(vector(-1.0, 1.0).unsqueeze(-1)), delay=delay)


def test_updates_take_states_only():
    found = TerminalSet.start(torch.eye(2).double())
    for wrong in (vector(0.0, 1.0), torch.zeros(1, 3).double(), [[0.0, 1.0]], torch.zeros(2, 1, 2).double()):
        with pytest.raises(ValueError, match="certified of shape"):
            found.update(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        found.update(torch.full((1, 2), math.nan).double())
    with pytest.raises(ValueError, match="hulls"):
        replace(found, hulls=found.hulls * 2)


# ------------------------------------------------------------------------------------------------------- invariance
def successors(problem, law, points):
    """Extreme successors: towards every row of the region, with the disturbance that goes farthest."""
    assert isinstance(problem.model, LinearTube)
    region = problem.terminal.intersect(problem.states)
    pushes = torch.stack([extreme(problem.model.half_axes, row) for row in region.H])
    return problem.model.plant(points, law(points)).unsqueeze(1) + pushes


def test_the_largest_invariant_set_of_a_linear_plant_is_certified_and_kept():
    problem, sure = linear_case()
    assert sure.certified
    assert sure.cells == 1  # the vertices decide
    region = sure.region
    points = torch.cat([region.vertices(), region.sample(200, torch.Generator().manual_seed(0))])
    assert bool(region.contains(successors(problem, sure.law, points)).all())
    assert bool(problem.inputs.contains(sure.law(points)).all())


def test_control_a_set_that_is_not_invariant_is_refuted_with_a_state_that_leaves_it():
    problem, sure = linear_case()
    wrong = replace(problem, terminal=problem.states)
    found = certify_invariance(wrong, sure.law)
    assert found.verdict.outcome is Outcome.VIOLATED
    assert bool(found.region.contains(found.witness))
    assert not bool(found.region.contains(successors(wrong, sure.law, found.witness.unsqueeze(0))).all())


def test_control_a_law_beyond_the_inputs_is_refuted():
    problem, sure = linear_case()
    found = certify_invariance(problem, AffineLaw(3.0 * sure.law.gain, sure.law.offset))
    assert found.verdict.outcome is Outcome.VIOLATED
    assert not bool(problem.inputs.contains(3.0 * sure.law(found.witness)))


@pytest.mark.parametrize(
    ("center", "size"), [(0.0, 1.0), (1e6, 1e-3), (1e6, 1e-4), (1.0, 1e-9), (0.0, 1e-9), (0.0, 1e-10)]
)
def test_a_law_beyond_the_inputs_is_never_certified_however_small_the_set(center, size):
    """u = (x − c)/s takes ±1 on |x − c| ≤ s, ten times what U has; solvers see such a set as a point."""
    box = Polytope.of_box(Box(vector(center - size, center - size), vector(center + size, center + size)))
    inputs = Polytope.of_box(Box(vector(-0.1), vector(0.1)))
    plant = AffineKnown(0.5 * torch.eye(2).double(), torch.zeros(2, 1).double(), 0.5 * vector(center, center))
    model = LinearTube(plant, vector(0.0, 0.0))
    problem = CertificationProblem(model, box, inputs, box, torch.zeros(1, 2).double(), 2)
    law = AffineLaw.about(vector(1 / size, 0.0).unsqueeze(0), vector(center, center), vector(0.0))
    assert not certify_invariance(problem, law).certified
    gentle = AffineLaw.about(vector(0.09 / size, 0.0).unsqueeze(0), vector(center, center), vector(0.0))
    if center == 0.0:
        assert certify_invariance(problem, gentle).certified


def test_a_law_beyond_the_inputs_is_never_certified_on_a_strip_that_looks_flat():
    side, width = math.sqrt(0.5), 1e-10
    rows = torch.tensor([[side, -side], [-side, side], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    strip = Polytope(rows, vector(width, width, 1.0, 1.0))
    model = LinearTube(
        AffineKnown(0.5 * torch.eye(2).double(), torch.zeros(2, 1).double(), vector(0.0, 0.0)), vector(0.0, 0.0)
    )
    inputs = Polytope.of_box(Box(vector(-1.0), vector(1.0)))
    problem = CertificationProblem(model, strip, inputs, strip, torch.zeros(1, 2).double(), 2)
    steep = AffineLaw(100.0 / width * rows[:1], vector(0.0))
    assert not certify_invariance(problem, steep).certified


def test_a_larger_disturbance_refutes_and_a_spent_budget_is_inconclusive():
    problem, sure = linear_case()
    model = problem.model
    assert isinstance(model, LinearTube)
    loud = replace(problem, model=replace(model, half_axes=20 * model.half_axes))
    assert certify_invariance(loud, sure.law).verdict.outcome is Outcome.VIOLATED

    class Rough:
        """The same plant with a remainder that grows with the section: only small cells can decide."""

        nx, nu, num_members, mode, assumptions = 2, 1, 1, "sound", ()
        linearise = staticmethod(model.linearise)

        @staticmethod
        def remainder(x, u, factor, gain):
            return factor.norm(dim=-1) * 0.03

    region = problem.states.intersect(Polytope(problem.inputs.H @ sure.law.gain, problem.inputs.h))
    plant = model.plant
    wide = Box(-vector(0.01, 0.03), vector(0.01, 0.03))
    terminal = invariant_polytope(plant.A + plant.B @ sure.law.gain, torch.zeros(2).double(), region, wide)
    rough = replace(problem, terminal=terminal, model=Rough())
    many, few = certify_invariance(rough, sure.law), certify_invariance(rough, sure.law, budget=2)
    assert (many.certified, few.verdict.outcome) == (True, Outcome.INCONCLUSIVE)
    assert many.cells > 2


@settings(max_examples=15, deadline=None)
@given(size=st.floats(0.05, 1.2), turn=st.floats(0.0, 3.0))
def test_intervals_decide_as_the_closed_form(size, turn):
    """|x| ≤ s under x⁺ = (1 − κ)x + w, |w| ≤ w̄, is invariant iff |1 − κ|s + w̄ ≤ s."""
    one = torch.ones(1, 1).double()
    base = double_integrator()
    bound = Polytope.of_box(Box(vector(-size), vector(size)))
    wide = Polytope.of_box(Box(vector(-5.0), vector(5.0)))
    model = LinearTube(AffineKnown(one, one, vector(0.0)), vector(0.1))
    law = AffineLaw(-turn * one, vector(0.0))
    problem = replace(base, model=model, states=wide, inputs=wide, terminal=bound, gain=-0.5 * one)
    excess = abs(1 - turn) * size + 0.1 - size
    if abs(excess) > 1e-9:
        assert certify_invariance(problem, law).certified == (excess < 0)


def test_paper_mode_and_empty_results_are_refused():
    problem, sure = linear_case()
    with pytest.raises(ValueError, match="sound mode"):
        certify_invariance(ensemble_pendulum(), AffineLaw(torch.zeros(1, 2).double(), vector(0.0)))
    loud = Box(-vector(1.0, 1.0), vector(1.0, 1.0))
    with pytest.raises(ValueError, match="invariant set"):
        invariant_polytope(torch.eye(2).double(), torch.zeros(2).double(), problem.states, loud)
    with pytest.raises(ValueError, match="gain"):
        certify_invariance(problem, AffineLaw(torch.zeros(1, 3).double(), vector(0.0)))
    assert not replace(sure).concerns(replace(problem, terminal=problem.states))
    with pytest.raises(ValueError, match="AffineLaw"):
        certify_invariance(problem, lambda x: 0 * x[..., :1])  # type: ignore[arg-type]
    eye, zero, quiet = (
        0.5 * torch.eye(2).double(),
        torch.zeros(2).double(),
        Box(-vector(0.01, 0.01), vector(0.01, 0.01)),
    )
    for change, message in (
        ({"margin": -1e-6}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"margin": True}, "margin"),
        ({"margin": vector(1e-6, 1e-6)}, "margin"),
        ({"iterations": 1.5}, "iterations"),
        ({"iterations": 0}, "iterations"),
    ):
        with pytest.raises(ValueError, match=message):
            invariant_polytope(eye, zero, problem.states, quiet, **change)
    with pytest.raises(ValueError, match="offset"):
        invariant_polytope(eye, vector(0.0), problem.states, quiet)
    with pytest.raises(ValueError, match="closed"):
        invariant_polytope(math.nan * eye, zero, problem.states, quiet)


@pytest.mark.parametrize(
    "change", [{"gain": [[True, False]]}, {"gain": [[math.nan, 0.0]]}, {"offset": [True]}, {"offset": [0.0, 0.0]}]
)
def test_a_law_is_made_of_numbers(change):
    with pytest.raises(ValueError, match="AffineLaw"):
        AffineLaw(**({"gain": torch.zeros(1, 2).double(), "offset": vector(0.0)} | change))
    law = AffineLaw([[1.0, 2.0]], [0.1])  # type: ignore[arg-type]
    assert float(law(vector(1.0, 1.0))) == 3.1


@pytest.mark.parametrize("units", [(1.0, 1.0), (2.0**-40, 1.0), (2.0**40, 2.0**-40)])
def test_invariant_sets_do_not_depend_on_the_units_of_the_states(units):
    """Rows of x⁺ ∈ S may be of any size: no row is taken for noise because it is small in some units."""
    scale = vector(*units)
    closed = torch.tensor([[0.6, 0.5], [-0.5, 0.6]], dtype=torch.float64)
    noise = Box(-vector(0.1, 0.1), vector(0.1, 0.1))
    base = Polytope.of_box(Box(-vector(1.0, 0.7), vector(1.0, 0.7)))
    plain = invariant_polytope(closed, vector(0.0, 0.0), base, noise, margin=1e-30)
    other = invariant_polytope(
        scale.unsqueeze(1) * closed / scale,
        vector(0.0, 0.0),
        Polytope(base.H / scale, base.h),
        Box(scale * noise.lower, scale * noise.upper),
        margin=1e-30,
    )
    directions = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.support(directions / scale), plain.support(directions), rtol=1e-9, atol=0)


def test_an_invariant_subset_of_nothing_is_refused():
    nothing = Polytope(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), vector(1.0, -2.0, 1.0, 1.0))
    noise = Box(-vector(0.1, 0.1), vector(0.1, 0.1))
    with pytest.raises(ValueError, match="non-empty invariant set"):
        invariant_polytope(0.5 * torch.eye(2).double(), vector(0.0, 0.0), nothing, noise)


@pytest.mark.parametrize("pairs", [2, 3])  # by exact programs, and by floating-point ones
def test_the_set_of_uncoupled_plants_is_the_product_of_theirs(pairs):
    turn, one = (
        torch.tensor([[0.9, 0.2], [-0.2, 0.8]]).double(),
        Polytope.of_box(Box(-vector(1.0, 1.0), vector(1.0, 1.0))),
    )
    noise = 0.02 * torch.ones(2).double()
    small = invariant_polytope(turn, torch.zeros(2).double(), one, Box(-noise, noise))
    closed, wide = torch.block_diag(*[turn] * pairs), torch.ones(2 * pairs).double()
    many = Polytope.of_box(Box(-wide, wide))
    large = invariant_polytope(closed, 0 * wide, many, Box(-0.02 * wide, 0.02 * wide))
    x = 2 * torch.rand(4000, 2 * pairs, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    inside = torch.stack([small.violation(part) for part in x.split(2, dim=-1)]).amax(0)
    clear = inside.abs() > 1e-6
    assert bool((large.contains(x) == (inside <= 0))[clear].all()) and 0.5 < float((inside <= 0).double().mean()) < 0.99
    assert large.rows == pairs * small.rows
    with pytest.raises(ValueError, match="an empty one"):
        invariant_polytope(closed, 0 * wide, many, Box(-0.5 * wide, 0.5 * wide))
