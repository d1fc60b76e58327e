"""Intersection, clip and falsification to the digit, on a bound whose every interval is stated; and what a prefix is."""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from gpsafe.assumptions import Assumption
from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.history import is_prefix, posterior_history
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.verdict import Outcome

tensor = partial(torch.tensor, dtype=torch.float64)


@dataclass(frozen=True)
class Stated:
    """Generations are pairs (l, u) of tables over points; the clip is ±4, ±2."""

    sound: bool = False
    unchecked: bool = False

    def check(self, model) -> None: ...

    def prior_width(self, model, z: Tensor) -> Tensor:
        return tensor([4.0, 2.0]).expand(*z.shape[:-1], 2)

    def covers(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.ones(lower.shape[:-1], dtype=torch.bool)

    def interval(self, model, z: Tensor) -> tuple[Tensor, Tensor]:
        index = z[..., 0].long()
        return model[0][index], model[1][index]


FIRST = (tensor([[-9.0, -9.0], [-1.0, -9.0], [-9.0, 0.5]]), tensor([[9.0, 9.0], [3.0, 1.0], [9.0, 9.0]]))
SECOND = (tensor([[-3.0, 1.5], [-2.0, 0.5], [-9.0, -9.0]]), tensor([[1.0, 9.0], [9.0, 9.0], [9.0, 0.25]]))
POINTS = tensor([[0.0, 7.0], [1.0, 8.0], [2.0, 9.0]])


def stated(*generations) -> ConfidenceSet:
    return ConfidenceSet(Stated(), generations)


def test_bounds_are_the_tightest_of_all_intervals_and_of_the_clip():
    low, high = stated(FIRST, SECOND).bounds(POINTS)
    assert low.tolist() == [[-3.0, 1.5], [-1.0, 0.5], [-4.0, 0.5]]
    assert high.tolist() == [[1.0, 2.0], [3.0, 1.0], [4.0, 0.25]]
    low, high = stated(FIRST, SECOND).bounds(POINTS, since=1)
    assert low.tolist() == [[-3.0, 1.5], [-2.0, 0.5], [-4.0, -2.0]]
    assert high.tolist() == [[1.0, 2.0], [4.0, 2.0], [4.0, 0.25]]
    low, high = stated(FIRST, SECOND).bounds(POINTS, since=2)  # none: the clip alone
    assert low.tolist() == [[-4.0, -2.0]] * 3 and high.tolist() == [[4.0, 2.0]] * 3
    grid = POINTS.reshape(3, 1, 2)
    assert torch.equal(stated(FIRST, SECOND).bounds(grid)[0], stated(FIRST, SECOND).bounds(POINTS)[0].unsqueeze(1))
    assert stated(FIRST, SECOND).model is SECOND and stated(FIRST).update(SECOND).generations == (FIRST, SECOND)


def test_the_worst_crossing_is_told_with_point_and_output():
    assert stated(FIRST).falsified(POINTS) is None
    found = stated(FIRST, SECOND).falsified(POINTS)
    assert found is not None
    assert (found.point, found.output, found.lower, found.upper) == ((2.0, 9.0), 1, 0.5, 0.25)
    assert (
        stated(FIRST, SECOND).falsified(POINTS, tol=0.125) is None
    )  # by 0.25, an eighth of 2: what is just the tolerance accuses nobody
    assert stated(FIRST, SECOND).falsified(POINTS, tol=0.12) == found
    assert stated(FIRST, SECOND).falsified(POINTS.reshape(3, 1, 2)) == found
    assert stated(FIRST, SECOND).falsified(POINTS[:2]) is None
    worse = (tensor([[3.0, -9.0], [9.0, -9.0], [math.nan, -9.0]]), 9.0 * torch.ones(3, 2).double())
    found = stated(FIRST, SECOND, worse).falsified(POINTS)
    assert found is not None and (found.point, found.output, found.lower, found.upper) == ((1.0, 8.0), 0, 9.0, 3.0)
    unknown = (torch.full((3, 2), math.nan).double(), 9.0 * torch.ones(3, 2).double())
    assert stated(unknown).falsified(POINTS) is None
    endless = (tensor([[0.0, 0.0], [0.0, math.inf], [0.0, 0.0]]), 9.0 * torch.ones(3, 2).double())
    assert stated(FIRST, endless).falsified(POINTS) is not None
    close = (tensor([[4.0 + 6e-9, 0.0]] * 3), 9.0 * torch.ones(3, 2).double())
    assert stated(close).falsified(POINTS) is not None
    assert stated((close[0] - 3e-9, close[1])).falsified(POINTS) is None


def test_nothing_is_said_of_no_points():
    """It ended in an IndexError of torch."""
    F = ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(
        GP.create(kernels.rbf(1.0), 0.01, nx=2, nu=0, noise_std=0.1)
    )
    for ask in (F.falsified, lambda z: F.contains(lambda z: z, z)):
        with pytest.raises(ValueError, match="expected at least one z"):
            ask(torch.zeros(0, 2))


def test_membership_is_judged_by_the_largest_excess_on_either_side():
    confidence = stated(FIRST)  # [−4, 4] × [−2, 2], but for [−1, 3] × [−2, 1] at point 1 and l = 0.5 at point 2
    middle = tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    inside = confidence.contains(lambda z: middle, POINTS)
    assert (inside.outcome, inside.upper) == (Outcome.HOLDS, -0.5)
    for change, amount, witness in (
        ((1, 0, 3.5), 0.5, [1.0, 8.0]), ((1, 0, -1.25), 0.25, [1.0, 8.0]), ((0, 1, -2.125), 0.125, [0.0, 7.0]),
        ((2, 1, 0.0), 0.5, [2.0, 9.0]), ((2, 1, 2.5), 0.5, [2.0, 9.0]),
    ):  # fmt: skip
        value = middle.clone()
        value[change[0], change[1]] = change[2]
        found = confidence.contains(lambda z, value=value: value, POINTS)
        assert (found.outcome, found.upper, found.witness) == (Outcome.VIOLATED, amount, f"z = {witness}")
        assert confidence.contains(lambda z, value=value: value, POINTS, tol=amount).outcome is Outcome.HOLDS
    edge = middle.clone()
    edge[1, 0] = 3.0 + 3e-9
    assert confidence.contains(lambda z: edge, POINTS).outcome is Outcome.HOLDS
    edge[1, 0] = 3.0 + 5e-9
    assert confidence.contains(lambda z: edge, POINTS).outcome is Outcome.VIOLATED


# ------------------------------------------------------------------------------------------------------- shared factors
KERNELS = (kernels.rbf([0.7, 1.3], 1.5), kernels.matern(2.5, 1.0, 0.5))
BOUND = Mixture(rkhs_norm=(30.0, 20.0), subgaussian=(0.1, 0.3), delta=0.05, unchecked=True)


def observed(count: int, seed: int = 0, **options) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(20, 2, dtype=torch.float64, generator=g)[:count], torch.randn(
        20, 2, dtype=torch.float64, generator=g
    )[:count]


def empty(*regularizer: float) -> GP:
    return GP.create(list(KERNELS), list(regularizer), nx=2, nu=0, noise_std=[0.1, 0.3])


PRIOR = empty(0.01, 0.09)


def model(count: int, seed: int = 0, prior: GP = PRIOR) -> GP:
    return prior.condition_on(*observed(count, seed)) if count else prior


def test_generations_of_one_factor_are_intersected_each_with_its_own_interval():
    """In whatever order they come, among posteriors of other data, with the prior as one of them."""
    z = observed(20, 5)[0]
    generations = [model(9), model(14), model(4, 3), model(0), model(12)]
    low = high = None
    for generation in generations:
        lower, upper = BOUND.interval(generation, z)
        low = lower if low is None else torch.maximum(low, lower)
        high = upper if high is None else torch.minimum(high, upper)
    width = BOUND.prior_width(generations[0], z)
    low, high = torch.maximum(low, -width), torch.minimum(high, width)
    found = ConfidenceSet(BOUND, tuple(generations)).bounds(z)
    torch.testing.assert_close(found[0], low, rtol=0, atol=1e-8)
    torch.testing.assert_close(found[1], high, rtol=0, atol=1e-8)


def test_one_pass_gives_the_posteriors_of_every_output_and_batch_shape():
    z = observed(20, 5)[0]
    for queries in (z, z.reshape(4, 5, 2)):
        mean, std = posterior_history(model(14), [0, 3, 9, 14], queries, chunk=7)
        assert mean.shape == std.shape == (4, *queries.shape)
        for i, count in enumerate((0, 3, 9, 14)):
            one, other = model(count).posterior(queries)
            torch.testing.assert_close(mean[i], one, rtol=0, atol=1e-10)
            torch.testing.assert_close(std[i], other, rtol=0, atol=1e-9)


def test_nobody_hands_a_set_its_lineage():
    with pytest.raises(TypeError):
        ConfidenceSet(BOUND, (), None)  # type: ignore[call-arg]


def test_what_is_a_prefix():
    old, new = model(5), model(9)
    assert is_prefix(old, new) and is_prefix(new, new) and is_prefix(old, model(5)) and is_prefix(model(0), new)
    assert not is_prefix(new, old) and not is_prefix(old, "no model") and not is_prefix("no model", new)  # type: ignore[arg-type]
    assert not is_prefix(model(5, 1), new) and not is_prefix(old, model(0))
    copied, other = empty(0.01, 0.09), replace(PRIOR, regularizer=tensor([0.01, 0.08]))
    for prior in (copied, other):  # kernels are compared as objects
        assert not is_prefix(model(5, prior=prior), new) and not is_prefix(prior, new)
    inputs, targets = observed(5)
    prior = PRIOR
    for i in range(2):
        moved = targets.clone()
        moved[4, i] += 1e-12
        assert not is_prefix(prior.condition_on(inputs, moved), new)
        moved = inputs.clone()
        moved[0, i] += 1e-12
        assert not is_prefix(prior.condition_on(moved, targets), new)
    scale = torch.ones(9).double()
    scale[6] = 2.0
    scaled = prior.condition_on(*observed(9), noise_scale=scale)
    assert is_prefix(old, scaled) and not is_prefix(scaled, new)  # the scales differ later only
    assert is_prefix(prior.condition_on(*observed(5), noise_scale=scale[:5]), scaled)
    scale = scale.clone()
    scale[4] = 1.5
    assert not is_prefix(old, prior.condition_on(*observed(9), noise_scale=scale))
    assert not is_prefix(prior.condition_on(*observed(5), noise_scale=scale[:5]), new)


@pytest.mark.parametrize(
    ("noise", "fits"), [((9.0, 0.2, 0.1), True), ((0.0, 0.3, 0.1), False), ((0.0, 0.1, 0.2), False)]
)
def test_the_noise_of_the_learned_states_is_held_against_that_of_the_bound(noise, fits):
    """R = (0.1, 0.2) of outputs (2, 1): the noise of the first state is its own affair."""
    bound = Mixture(rkhs_norm=1.0, subgaussian=(0.1, 0.2), delta=0.1)
    model = GP.create(
        [kernels.rbf([1.0] * 3)] * 2, 0.04, nx=3, nu=0, noise_std=0.1, outputs=(2, 1), prior=lambda x, u: 0.0 * x
    )
    sound, claimless = ConfidenceSet(bound).update(model), ConfidenceSet(replace(bound, unchecked=True)).update(model)
    claimless.check_noise("test", tensor(noise))
    if fits:
        sound.check_noise("test", tensor(noise))
    else:
        with pytest.raises(ValueError, match="test: expected subgaussian R >= the task's noise"):
            sound.check_noise("test", tensor(noise))


def test_a_bound_that_is_unchecked_claims_nothing():
    assert not ConfidenceSet(BOUND).sound and ConfidenceSet(replace(BOUND, unchecked=False)).sound
    with pytest.raises(ValueError, match="at least one model"):
        _ = ConfidenceSet(BOUND).model


def test_states_without_a_process_are_named_and_shared_data_are_read_once(monkeypatch):
    half = GP.create(kernels.rbf(1.0), 0.01, nx=3, nu=0, noise_std=0.1, outputs=(1,))
    alone = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.05)
    assert ConfidenceSet(alone, (half,)).unlearned == (Assumption.KNOWN_OUTPUTS(" (states [0, 2])"),)
    assert ConfidenceSet(BOUND, (model(5),)).unlearned == ()
    F, z = ConfidenceSet(BOUND, (model(3), model(9))), 0.1 * torch.arange(8).double().reshape(4, 2)
    expected = F.bounds(z)

    def refuse(*_):
        raise AssertionError("an interval of one generation alone")

    monkeypatch.setattr(ConfidenceBound, "interval", refuse)  # generations of one data set come from one pass
    assert torch.equal(F.bounds(z)[0], expected[0]) and torch.equal(F.bounds(z)[1], expected[1])


def test_an_excess_in_a_batch_is_told_with_its_own_point():
    """Points (2, 3, d), two outputs: the largest excess is that of the last point but one, in the first output."""
    z = torch.stack([tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]]), torch.arange(6.0).double().reshape(2, 3)], dim=-1)
    f = torch.zeros(2, 3, 2).double()
    f[1, 1, 0] = 50.0
    found = stated(FIRST).contains(lambda z: f, z)
    assert found.lower == pytest.approx(50.0 - 4.0) and found.witness == "z = [2.0, 4.0]"
    f[1, 1, 0], f[0, 0, 1] = 0.0, -60.0
    assert stated(FIRST).contains(lambda z: f, z).witness == "z = [0.0, 0.0]"


@pytest.mark.parametrize(
    ("crossing", "tol", "empty"), [(3.9e-9, None, False), (4.1e-9, None, True), (0.1, 0.05, False), (0.3, 0.05, True)]
)
def test_ends_that_cross_by_rounding_leave_a_set(crossing, tol, empty):
    one = (torch.full((3, 2), 0.0).double(), torch.ones(3, 2).double())
    one[0][1, 0], one[1][1, 0] = 0.5 + crossing, 0.5
    options = {} if tol is None else {"tol": tol}
    assert stated(one).empty(POINTS, **options).tolist() == [False, empty, False]
    assert (stated(one).falsified(POINTS, **options) is not None) == empty


@pytest.mark.parametrize("unit", [1e6, 1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("bound", [Mixture, ConvexProgram])
def test_a_set_is_empty_in_any_units(bound, unit):
    """A norm that is far less than the data need: in units of 1e-9 nobody noticed, and tubes flew on with a width of 0."""
    z = torch.linspace(-2, 2, 12).double().unsqueeze(-1)
    prior = GP.create(kernels.rbf(1.0, unit**2), 1e-6 * unit**2, nx=1, nu=0, noise_std=1e-3 * unit)
    model = prior.condition_on(z, unit * torch.sin(2 * z))
    F = ConfidenceSet(bound(rkhs_norm=0.5, subgaussian=1e-3 * unit, delta=0.1)).update(model)
    assert F.falsified(z) is not None and bool(F.empty(z).any())
    assert LocalAffine.at(F, z).empty.tolist() == F.empty(z).tolist()
    low = F.bounds(z)[0]
    assert [F.contains(lambda z, s=s: low - s * unit, z).outcome for s in (0.1, 1e-8)] == [Outcome.VIOLATED] * 2
    fine = replace(F.bound, rkhs_norm=20.0)
    assert ConfidenceSet(fine).update(model).falsified(z) is None


def test_deviations_of_the_past_are_numbers_where_rounding_makes_variances_negative():
    """λ = 1e-14 and points that are measured again and again: what they explain exceeds k by rounding."""
    z = torch.linspace(-1, 1, 9).double().repeat(3).unsqueeze(-1)
    empty = GP.create(kernels.rbf(1.0), 1e-14, nx=1, nu=0, noise_std=0.1)
    second = empty.condition_on(z, torch.sin(z)).condition_on(z + 1e-9, torch.sin(z))
    mean, std = posterior_history(second, [0, 27, 54], z)
    assert bool(torch.isfinite(std).all()) and bool((std >= 0).all()) and bool(torch.isfinite(mean).all())


@pytest.mark.parametrize("z", [0.0, 1e-150, 1e-162, 1e-310])
def test_where_a_kernel_underflows_its_mean_is_no_refutation(z):
    """z² of a linear kernel is 0 below 10⁻¹⁶², and k(x, z) is not: [1e-162, 0] around f(z) = 1e-162 was an empty F_n."""
    model = GP.create(kernels.linear(1.0), 0.1, nx=1, nu=0, noise_std=0.1, outputs=(0,))
    found = ConfidenceSet(Mixture(rkhs_norm=2.0, subgaussian=0.1, delta=0.1)).update(
        model.condition_on(tensor([[1.0], [-0.5]]), tensor([[1.0], [-0.5]]))
    )
    at = tensor([[z], [-z]])
    assert found.falsified(at) is None and not bool(found.empty(at).any())
    assert found.contains(lambda x: x, at).outcome is Outcome.HOLDS


class Endless(Stated):
    """Of the first output nothing is known, and no norm is assumed."""

    def prior_width(self, model, z: Tensor) -> Tensor:
        return tensor([math.inf, 2.0]).expand(*z.shape[:-1], 2)

    def interval(self, model, z: Tensor) -> tuple[Tensor, Tensor]:
        width = self.prior_width(model, z)
        return -width, width


def test_an_infinite_interval_hides_nothing_without_a_tolerance():
    """0·∞ was the share: no number, which made a set empty and a value elsewhere the worst."""
    half = ConfidenceSet(Endless(), (None,))
    assert not bool(half.empty(POINTS, tol=0.0).any())
    verdict = half.contains(lambda z: torch.ones(3, 2).double(), POINTS, tol=0.0)
    assert (verdict.outcome, verdict.upper, verdict.threshold) == (Outcome.HOLDS, -1.0, 0.0)
