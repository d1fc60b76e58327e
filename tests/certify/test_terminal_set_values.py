"""The one-step excess over cells equals its formula down to the rounding, on a model whose every number is stated."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from tube_cases import Stated, stated

from gpsafe.assumptions import Assumption
from gpsafe.certify import CertificationProblem, terminal_set
from gpsafe.certify.invariant_set import EXACT, _heights, _outline, _without_needless, invariant_polytope
from gpsafe.certify.terminal_set import (
    ROUNDING,
    AffineLaw,
    TerminalSet,
    _Cells,
    _excess,
    _halved,
    _Hull,
    certify_invariance,
)
from gpsafe.sets import Box, Polytope
from gpsafe.verdict import Outcome

tensor = partial(torch.tensor, dtype=torch.float64)
FARTHEST = tensor([1.5, 1.25])  # stated, not that of the region: a factor of its own
LAW = AffineLaw(tensor([[0.3, -0.2], [0.1, 0.4]]), tensor([0.05, -0.1]))


def box(radius: float) -> Polytope:
    return Polytope.of_box(Box(torch.full((2,), -radius).double(), torch.full((2,), radius).double()))


def problem(model: Stated, **changes) -> CertificationProblem:
    slanted = Polytope(tensor([[0.6, 0.8]]), tensor([1.1]))
    sets = {"states": box(5.0), "inputs": box(4.0), "terminal": box(1.0).intersect(slanted), **changes}
    return CertificationProblem(model, gain=LAW.gain, steps=2, **sets)


def one_step(model: Stated, x: Tensor, H: Tensor, h: Tensor, r: Tensor | None, corners: Tensor):
    """(excess without rounding, sizes) of the worst row and member at one centre; over cells, the sizes of `FARTHEST`."""
    far = x.abs() if r is None else FARTHEST
    u, rows = LAW.gain @ x + LAW.offset, []
    for m in range(model.num_members):
        A, B, c, W = model.A[m], model.B[m], model.c[m], model.variance[m]
        mean = A @ x + B @ u + c
        size = 1 + mean.abs() + A.abs() @ far + B.abs() @ (u.abs() + LAW.gain.abs() @ far)
        for a, offset in zip(H, h, strict=True):
            value, total = a @ mean + (a.square() @ W).sqrt() - offset, a.abs() @ size + offset.abs()
            if r is not None:
                moved = a @ (A + B @ LAW.gain)
                boxed = moved.abs() @ r
                rest = model.share * (
                    1 + x.abs() + u.abs().sum() + math.sqrt(2) * (1 + 1e-12) * r.norm() + LAW.gain.abs().sum()
                )
                value = value + torch.minimum(boxed, ((corners - x) @ moved).max()) + a.abs() @ rest
                total = total + boxed
            rows.append((float(value), float(total)))
    return rows


@pytest.mark.parametrize("radius", [0.02, 0.9])
def test_the_excess_of_a_cell_is_its_formula(radius):
    model = stated(2)
    case = problem(model)
    region = case.terminal.intersect(case.states)
    hull = _Hull.of(region, region.vertices())
    assert hull.growth == pytest.approx(1e-9)
    corners = hull.middle + (1 + hull.growth) * (hull.vertices - hull.middle)
    centers = tensor([[0.1, -0.3], [0.7, 0.2], [-0.6, -0.8]])
    radii = radius * tensor([[1.0, 0.5], [0.3, 1.0], [1.0, 1.0]])
    over, at = _excess(case, LAW, region, centers, _Cells(radii, hull, FARTHEST)), _excess(case, LAW, region, centers)
    for n in range(3):
        cell = one_step(model, centers[n], region.H, region.h, radii[n], corners)
        assert float(over[n]) == pytest.approx(max(v + ROUNDING * s for v, s in cell), rel=0, abs=5e-14)
        point = one_step(model, centers[n], region.H, region.h, None, corners)
        assert float(at[n]) == pytest.approx(max(v - ROUNDING * s for v, s in point), rel=0, abs=5e-14)
    assert ROUNDING == 1e-12


def test_the_hull_of_the_vertices_and_what_it_may_have_missed():
    square, corners = box(1.0), tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    hull, normals = _Hull.of(square, corners), tensor([[[1.0, 0.0], [3.0, -4.0]]])
    torch.testing.assert_close(
        hull.highest(normals, tensor([[0.5, 0.25]])), tensor([[0.5, 7.0 - 0.5]]), rtol=1e-8, atol=0
    )
    assert bool((hull.highest(normals, tensor([[0.5, 0.25]])) >= tensor([[0.5, 6.5]])).all())
    less = _Hull.of(square, 0.8 * corners)  # vertices that miss a fifth: grown by a quarter
    assert less.growth == pytest.approx(0.25, rel=1e-9)
    torch.testing.assert_close(less.highest(normals, tensor([[0.5, 0.25]])), tensor([[0.5, 6.5]]), rtol=1e-9, atol=0)
    assert _Hull.of(square, 0.4 * corners).growth == math.inf  # the facets say nothing
    assert _Hull.of(square, 0.4 * corners).highest(normals, tensor([[0.5, 0.25]])).tolist() == [[math.inf, math.inf]]


def test_cells_are_cut_across_their_longest_side_in_units_of_the_box():
    centers, radii = _halved(tensor([[0.0, 1.0], [2.0, 3.0]]), tensor([[0.4, 0.5], [0.5, 4.0]]), tensor([1.0, 10.0]))
    assert centers.tolist() == [[-0.2, 1.0], [1.75, 3.0], [0.2, 1.0], [2.25, 3.0]]
    assert radii.tolist() == [[0.2, 0.5], [0.25, 4.0]] * 2
    tall, _ = _halved(tensor([[0.0, 0.0]]), tensor([[0.4, 5.0]]), tensor([1.0, 10.0]))
    assert tall.tolist() == [[0.0, -2.5], [0.0, 2.5]]
    flat, _ = _halved(tensor([[3.0, 0.0]]), tensor([[0.0, 1.0]]), tensor([0.0, 1.0]))  # no cut makes it flatter
    assert flat.tolist() == [[3.0, -0.5], [3.0, 0.5]]


def contraction(share: float = 0.0, *, factor: float = 0.5, noise: float = 0.1) -> Stated:
    eye = torch.eye(2).double()[None]
    return Stated(factor * eye, 0.0 * eye, torch.zeros(1, 2).double(), noise**2 * torch.ones(1, 2).double(), share)


REST = AffineLaw(torch.zeros(2, 2).double(), torch.zeros(2).double())


@pytest.mark.parametrize(("noise", "outcome"), [(0.4999, Outcome.HOLDS), (0.5001, Outcome.VIOLATED)])
def test_a_contraction_of_a_box_is_decided_to_the_digit(noise, outcome):
    """½x + w in the unit box: w may reach ½."""
    case = problem(contraction(noise=noise), terminal=box(1.0))
    found = certify_invariance(case, REST)
    assert found.verdict.outcome is outcome and found.certified == (outcome is Outcome.HOLDS)
    assert found.inputs is case.inputs and found.model is case.model and found.law is REST
    assert found.assumptions[-1].startswith(Assumption.NOISE_ELLIPSOID.words)
    assert found.verdict.upper == pytest.approx(noise - 0.5, abs=1e-9)
    assert found.cells == (1 if outcome is Outcome.HOLDS else 0)
    assert found.witness.abs().tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("reach", "outcome"), [(3.9999, Outcome.HOLDS), (4.0001, Outcome.VIOLATED)])
def test_inputs_of_the_backup_are_judged_over_the_region(reach, outcome):
    law = AffineLaw(tensor([[reach - 1.0, 0.0], [0.0, 0.0]]), tensor([1.0, 0.0]))
    found = certify_invariance(problem(contraction(), terminal=box(1.0)), law)
    assert found.verdict.outcome is outcome
    if outcome is Outcome.VIOLATED:
        assert float(found.witness[0]) == 1.0 and found.verdict.lower == pytest.approx(1e-4, rel=1e-6)
    else:
        assert found.verdict.upper == pytest.approx(-1e-4, rel=1e-6)
        assert found.verdict.upper > reach - 4.0 + 7 * ROUNDING  # raised by the sizes 4 and 4


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_input_that_comes_nearest_to_its_limit_is_bracketed_by_the_rounding(sign):
    """u_1 = ±(1 + 2.9999 x_1) beside limits of 4 on one side and 9 on the other: 1e-4 below, and 8e-12 to either side."""
    law = AffineLaw(tensor([[2.9999, 0.0], [0.0, 0.0]]), tensor([sign, 0.0]))
    low, high = (-9.0, 4.0) if sign > 0 else (-4.0, 9.0)
    inputs = Polytope.of_box(Box(tensor([low, -4.0]), tensor([high, 4.0])))
    found = certify_invariance(problem(contraction(), terminal=box(1.0), inputs=inputs), law)
    reach = 1.0 + 2.9999
    assert found.certified
    assert found.verdict.lower == pytest.approx(reach - 4.0 - ROUNDING * (reach + 4.0), rel=1e-9, abs=0)
    assert found.verdict.upper == pytest.approx(reach - 4.0 + ROUNDING * (reach + 4.0), rel=1e-9, abs=0)


def test_limits_of_inputs_on_the_other_side_of_zero_count_with_their_size():
    """u_1 = 5 + 3.9999 x_1 ≥ 1: a row with h = −1."""
    law = AffineLaw(tensor([[3.9999, 0.0], [0.0, 0.0]]), tensor([5.0, 0.0]))
    inputs = Polytope.of_box(Box(tensor([1.0, -4.0]), tensor([30.0, 4.0])))
    found = certify_invariance(problem(contraction(), terminal=box(1.0), inputs=inputs), law)
    near = 5.0 - 3.9999
    assert found.certified
    assert found.verdict.lower == pytest.approx(1.0 - near - ROUNDING * (5.0 + 3.9999 + 1.0), rel=0, abs=1e-15)


def test_remainders_need_cells_and_a_spent_budget_is_inconclusive():
    """The remainder is a share of 1 + |x| + √2‖r‖: 3 for the whole box, near 2 for a small cell at its edge."""
    case = problem(contraction(0.17), terminal=box(1.0))
    found = certify_invariance(case, REST)
    assert found.certified and found.cells > 4
    spent = certify_invariance(case, REST, budget=found.cells - 1)
    assert spent.verdict.outcome is Outcome.INCONCLUSIVE and spent.cells <= found.cells - 1
    assert spent.verdict.upper > 0.0 > spent.verdict.lower
    assert certify_invariance(case, REST, budget=found.cells).certified
    hopeless = certify_invariance(problem(contraction(0.21), terminal=box(1.0)), REST, budget=300)
    assert hopeless.verdict.outcome is Outcome.INCONCLUSIVE


def test_a_spent_budget_does_not_forget_what_the_inputs_may_exceed(monkeypatch):
    """|u| ≤ 100 at u = 99.99 with a rounding of 1e-3 of both: more than what the last cells leave open."""
    monkeypatch.setattr(terminal_set, "ROUNDING", 1e-3)
    case = problem(contraction(1e-3, factor=0.9, noise=0.0), terminal=box(1.0), inputs=box(100.0))
    found = certify_invariance(case, replace(REST, offset=tensor([99.99, 0.0])), budget=5)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE and found.cells == 3
    assert found.verdict.upper == pytest.approx(99.99 - 100 + 1e-3 * (99.99 + 100), rel=1e-9)


def refine(case, law, region, hull, center, radius, scale, found: list[float]) -> None:
    """Cell by cell: those that meet S by a linear program, halved until they hold."""
    cell = Polytope.of_box(Box(center - radius, center + radius))
    if cell.intersect(region).is_empty():
        return
    reach = region.bounding_box()
    cells = _Cells(radius[None], hull, torch.maximum(reach.lower.abs(), reach.upper.abs()))
    (excess,) = _excess(case, law, region, center[None], cells).tolist()
    found.append(excess)
    if excess > 0.0:
        for half in zip(*_halved(center[None], radius[None], scale), strict=True):
            refine(case, law, region, hull, *half, scale, found)


@pytest.mark.parametrize(("drift", "share"), [((0.12, 0.0), 0.11), ((0.15, 0.1), 0.1), ((0.1, 0.1), 0.11)])
def test_the_certified_excess_is_the_largest_of_all_cells_that_hold(drift, share):
    """Cells that hold early may have the largest excess; those that miss S are not counted."""
    model = replace(contraction(share), c=tensor([drift]))
    case = problem(model)
    found, region = certify_invariance(case, REST), case.terminal.intersect(case.states)
    box_of, cells = region.bounding_box(), []
    hull = _Hull.of(region, region.vertices())
    refine(case, REST, region, hull, box_of.center, box_of.radius, box_of.radius, cells)
    assert found.certified and found.cells == len(cells) > 3
    assert found.verdict.upper == max(excess for excess in cells if excess <= 0.0)
    known = float(_excess(case, REST, region, region.vertices()).max())
    assert found.verdict.lower == known < found.verdict.upper
    assert (found.verdict.tol, found.verdict.threshold) == (0.0, 0.0)
    if found.cells > 1:
        spent = certify_invariance(case, REST, budget=1)
        assert spent.verdict.upper == cells[0] > 0.0 and spent.cells == 1
        assert torch.equal(spent.witness, box_of.center)


def test_cells_are_dropped_only_when_they_miss_the_region_by_more_than_the_rounding_of_its_rows():
    """x + y ≥ −1 + gap in [−1, 1]², far from the origin: of 4 × 4 cells the first touches it at the corner (−½, −½)."""
    middle = tensor([1e5, -2e5])
    model = replace(contraction(1e-4), c=0.5 * middle[None])
    for gap, cells in ((0.0, 31), (0.3 * ROUNDING * 3e5, 31), (3 * ROUNDING * 3e5, 30)):
        cut = Polytope(tensor([[-1.0, -1.0]]), 1.0 - middle.sum()[None] - gap)
        region = Polytope.of_box(Box(middle - 1.0, middle + 1.0)).intersect(cut)
        found = certify_invariance(problem(model, terminal=region, states=box(1e6)), REST, budget=50)
        assert found.verdict.outcome is Outcome.INCONCLUSIVE
        assert found.cells == cells  # 1 + 2 + 4 + 8 + 16: each of them fails


def test_about_the_origin_that_rounding_counts_centres_and_half_widths_once():
    """As above: the corner has |c| + r = (1, 1)."""
    for share, cells in ((1.8, 31), (2.2, 30)):
        cut = Polytope(tensor([[-1.0, -1.0]]), tensor([1.0 - share * ROUNDING]))
        found = certify_invariance(problem(contraction(1.0), terminal=box(1.0).intersect(cut)), REST, budget=50)
        assert found.verdict.outcome is Outcome.INCONCLUSIVE and found.cells == cells


def test_a_region_without_width_is_not_certified_by_having_no_cells():
    """{0} × [−1, 1]: its cells meet the rows ±x₁ ≤ 0 with nothing to spare, and the remainder leaves them."""
    line = Polytope.of_box(Box(tensor([0.0, -1.0]), tensor([0.0, 1.0])))
    found = certify_invariance(problem(contraction(1e-3, noise=0.0), terminal=line), REST, budget=8)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE and found.cells == 7 and found.verdict.upper > 1e-3


def test_a_hull_far_from_the_origin_is_grown_by_the_rounding_of_its_rows():
    corners = tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    for middle in (tensor([1e5, -2e5]), tensor([-3e5, 0.0])):
        square = Polytope.of_box(Box(middle - 1.0, middle + 1.0))
        size = 2 * (float(middle.abs().max()) + 1.0)
        assert _Hull.of(square, corners + middle).growth == pytest.approx(ROUNDING * size, rel=1e-3)
    thin = tensor([[1.0, 0.9e-4], [1.0, -0.9e-4], [-1.0, 0.9e-4], [-1.0, -0.9e-4]])
    needle = Polytope(tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), tensor([1.0, 1.0, 0.9e-4, 0.9e-4]))
    assert _Hull.of(needle, thin).growth == pytest.approx(1e-9)  # extent is counted along the facet's normal
    turn = tensor([[0.6, -0.8], [0.8, 0.6]])
    assert _Hull.of(needle.preimage(turn, torch.zeros(2).double()), thin @ turn).growth == math.inf


def test_paper_models_and_laws_of_other_dimensions_are_refused():
    case = problem(contraction())
    with pytest.raises(ValueError, match="sound mode"):
        certify_invariance(problem(replace(contraction(), mode="paper")), REST)
    with pytest.raises(ValueError, match=r"law\.gain of shape"):
        certify_invariance(case, AffineLaw(torch.zeros(1, 2).double(), torch.zeros(1).double()))
    with pytest.raises(ValueError, match="budget >= 1"):
        certify_invariance(case, REST, budget=0)
    found = certify_invariance(case, REST)
    assert found.concerns(case)
    for other in ({"inputs": box(3.9)}, {"terminal": box(0.9)}, {"model": contraction()}, {"states": box(0.5)}):
        assert not found.concerns(replace(case, **other))


def test_rows_of_a_proposed_set_are_stricter_by_the_margin_once_for_each_step():
    """x⁺ = (2x₂ + o + w, 0), |x| ≤ 1, |w| ≤ 0.1: |x| ≤ 1 − m first, then |2x₂ + o| ≤ 1 − 2m − 0.1, then nothing cuts."""
    F, noise = tensor([[0.0, 2.0], [0.0, 0.0]]), Box(tensor([-0.1, 0.0]), tensor([0.1, 0.0]))
    for share in (1.0, 100.0):
        region = Polytope(share * box(1.0).H, share * box(1.0).h)
        found = invariant_polytope(F, tensor([0.2, 0.0]), region, noise, margin=0.05)
        reach = found.support(tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        torch.testing.assert_close(reach, tensor([0.95, 0.95, 0.3, 0.5]), rtol=1e-12, atol=0)
        assert found.rows == 4
    sloped = Polytope(
        tensor([[3.0, 4.0], [3.0, -4.0], [-1.0, 0.0]]), tensor([5.0, 5.0, 1.0])
    )  # rows of length 5, 5 and 1
    found = invariant_polytope(0.0 * F, tensor([0.0, 0.0]), sloped, noise, margin=0.05)
    torch.testing.assert_close(found.support(sloped.H), tensor([4.75, 4.75, 0.95]), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="a non-empty invariant set"):
        invariant_polytope(F, tensor([0.0, 0.0]), box(0.1), noise, margin=0.05)
    for change, message in (({"margin": 0.0}, "margin > 0"), ({"iterations": 0}, "iterations")):
        with pytest.raises(ValueError, match=message):
            invariant_polytope(F, tensor([0.0, 0.0]), box(1.0), noise, **change)
    with pytest.raises(ValueError, match="convergence within 1 iterations"):
        invariant_polytope(F, tensor([0.0, 0.0]), box(1.0), noise, iterations=1)


def test_outlines_are_drawn_of_sets_that_are_not_thin():
    for half, drawn in ((1e-7, False), (1e-5, True)):
        thin = Polytope.of_box(Box(tensor([-1.0, -half]), tensor([1.0, half])))
        assert (_outline(thin) is not None) == drawn
    for dim, drawn in ((1, False), (2, True), (EXACT, True), (EXACT + 1, False)):  # nor of what takes qhull long
        cube = Polytope.of_box(Box([-1.0] * dim, [1.0] * dim))
        assert (_outline(cube) is not None) == drawn


def test_laws_and_hulls_to_the_letter():
    about = AffineLaw.about(tensor([[2.0, -1.0]]), tensor([1.0, 3.0]), tensor([0.5]))
    assert about(tensor([[1.0, 3.0], [2.0, 3.0]])).tolist() == [[0.5], [2.5]]
    with pytest.raises(ValueError, match="gain of shape"):
        AffineLaw(tensor([1.0, 2.0]), tensor([0.0]))
    with pytest.raises(ValueError, match="offset of shape"):
        AffineLaw(tensor([[1.0, 2.0]]), tensor([0.0, 0.0]))
    initial = tensor([[0.0, 7.0, 0.0], [1.0, 8.0, 0.0], [0.0, 9.0, 1.0], [0.25, 0.0, 0.25]])
    hull = TerminalSet.start(initial, dims=(2, 0), delay=1)
    assert (hull.nx, hull.dims, hull.delay) == (3, (2, 0), 1)
    assert sorted(hull.points.tolist()) == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]  # (x₂, x₀); the inner one is dropped
    x = tensor([[0.4, 99.0, 0.5], [0.4, 99.0, 0.7]])
    assert hull.polytope.contains(x).tolist() == [True, False]
    grown = hull.update(tensor([[1.0, 0.0, 1.0]]))
    assert grown.polytope.contains(x).tolist() == [True, False] and len(grown.hulls) == 2
    assert grown.update(torch.zeros(0, 3).double()).polytope.contains(x).tolist() == [True, True]
    assert len(grown.update(initial).hulls) == 2
    for options, message in (
        ({"dims": ()}, "distinct coordinates"), ({"dims": (0, 0)}, "distinct coordinates"), ({"dims": (3,)}, r"0\.\.2"),
        ({"dims": (-1,)}, "TerminalSet"), ({"delay": -1}, "delay >= 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            TerminalSet.start(initial, **options)
    with pytest.raises(ValueError, match="initial of shape"):
        TerminalSet.start(initial[0])
    with pytest.raises(ValueError, match="certified"):
        hull.update(torch.zeros(1, 2).double())


@pytest.mark.parametrize(("high", "low"), [(math.inf, -1.0), (1.0, -math.inf), (math.nan, -1.0), (-2.0, 2.0)])
def test_a_box_of_cells_that_makes_no_sense_settles_nothing(monkeypatch, high, low):
    """Supports of an extreme region may overflow or cross by their rounding."""
    exact, eye = Polytope.support_outer, torch.eye(2).double()

    def support(self, normals):
        if torch.equal(normals.abs(), eye):
            return tensor([high, 1.0] if bool((normals >= 0).all()) else [-low, 1.0])
        return exact(self, normals)

    case = problem(contraction(), terminal=box(1.0))
    monkeypatch.setattr(Polytope, "support_outer", support)
    found = certify_invariance(case, REST)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE and found.verdict.upper == math.inf and found.cells == 0
    assert found.model is case.model and found.law is REST and found.witness.abs().tolist() == [1.0, 1.0]
    assert found.verdict.lower == pytest.approx(-0.4, rel=1e-9) and found.inputs is case.inputs


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_of_inputs_counts_at_the_vertex_where_the_terms_are_largest(sign):
    """u_1 = ±3.9999 x_1 over x_1 ∈ [−½, 1]: at x_1 = −½ the terms are smaller, and the limit is not near."""
    law = AffineLaw(tensor([[sign * 3.9999, 0.0], [0.0, 0.0]]), tensor([0.0, 0.0]))
    region = Polytope.of_box(Box(tensor([-0.5, -1.0]), tensor([1.0, 1.0])))
    found = certify_invariance(problem(contraction(), terminal=region), law)
    assert found.verdict.upper == pytest.approx(3.9999 - 4.0 + ROUNDING * (3.9999 + 4.0), rel=0, abs=2e-15)


def test_heights_in_many_coordinates_are_infinite_where_a_set_has_no_end():
    """A slab |x_1| ≤ 2 beside |x_i| ≤ 1 for all but the last."""
    dim = EXACT + 1
    H = torch.eye(dim).double()[:-1]
    slab = Polytope(torch.cat([H, -H]), torch.cat([1.0 + H[:, 0]] * 2))
    asked = torch.stack([H[0], -2 * H[1], torch.eye(dim).double()[-1], H[0] + H[1]])
    assert _heights(slab, asked).tolist() == pytest.approx([2.0, 2.0, math.inf, 3.0], rel=1e-9)


@pytest.mark.parametrize("order", [1, -1])
def test_in_many_coordinates_too_no_row_is_left_that_others_imply(order):
    """|x_i| ≤ 1 in six coordinates, beside rows that touch the cube or miss it, before and after them."""
    eye = torch.eye(EXACT + 1).double()
    rows = torch.cat([eye[:1] + eye[1:2], eye, 3 * eye[2:3], -eye, -eye[:1] - eye[3:4]])
    one = torch.ones(EXACT + 1).double()
    tops = torch.cat([tensor([2.5]), one, tensor([3.3]), one, tensor([2.01])])
    if order < 0:
        rows, tops = rows.flip(0), tops.flip(0)
    found = _without_needless(Polytope(rows, tops))
    assert sorted(map(tuple, found.H.tolist())) == sorted(map(tuple, torch.cat([eye, -eye]).tolist()))
    assert found.h.tolist() == [1.0] * 2 * (EXACT + 1)
