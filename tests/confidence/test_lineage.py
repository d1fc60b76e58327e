"""Generations of F_n are posteriors of one growing data set: everything else is refused where it can be seen."""

import copy
import math
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_kernel, seeds

from gpsafe.confidence import BOUNDS, ConfidenceSet, Constant, Mixture
from gpsafe.confidence.lineage import REPEATED, _repeated, fingerprint, inconsistency, provably_equal
from gpsafe.data import Transitions
from gpsafe.models import GP, LowRankGP
from gpsafe.rkhs import kernels, random_function
from gpsafe.systems.known import AffineKnown
from gpsafe.verdict import Outcome

ASSUMED = {"rkhs_norm": 5.0, "subgaussian": 0.1, "delta": 0.05}
BOUND = Mixture(**ASSUMED)
KERNELS = [kernels.rbf([0.7, 1.3, 2.0]), kernels.matern(2.5, 1.0, 0.5)]
A, B, C = torch.eye(2).double(), torch.ones(2, 1).double(), torch.zeros(2).double()
DEFAULTS = {"nx": 2, "nu": 1, "noise_std": 0.1, "prior": AffineKnown(A, B, C)}


def empty(kernel=None, regularizer=0.01, **changes) -> GP:
    return GP.create(KERNELS if kernel is None else kernel, regularizer, **{**DEFAULTS, **changes})


def rows(seed: int, n: int) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    x, u, w = (torch.randn(n, d, dtype=torch.float64, generator=g) for d in (2, 1, 2))
    return Transitions(x, u, x + 0.3 * x.sin() + u + 0.1 * w)


def start(n: int = 12) -> tuple[ConfidenceSet, GP, Transitions]:
    data = rows(0, n)
    model = empty().condition(data)
    return ConfidenceSet(BOUND).update(empty()).update(model), model, data


def refused(confidence: ConfidenceSet, model: GP, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        confidence.update(model)
    with pytest.raises(ValueError, match=words):  # nor by the constructor
        ConfidenceSet(confidence.bound, (*confidence.generations, model))
    marked = ConfidenceSet(replace(confidence.bound, unchecked=True), confidence.generations)
    assert not marked.update(model).sound  # who takes the responsibility claims nothing


# ------------------------------------------------------------------------------------ what continues
@given(seeds(), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_appending_is_always_accepted(seed, sizes):
    model = empty()
    confidence = ConfidenceSet(BOUND).update(model)
    for i, size in enumerate(sizes):
        model = model.condition(rows(seed + i, size))
        confidence = confidence.update(model)
        assert confidence.sound and confidence.model is model and confidence.edited is None
    assert len(ConfidenceSet(BOUND, confidence.generations).generations) == len(sizes) + 1


def test_views_copies_and_equal_models_of_the_same_data_continue():
    confidence, model, data = start()
    same = empty([kernels.rbf([0.7, 1.3, 2.0]), kernels.matern(2.5, 1.0, 0.5)], prior=AffineKnown(A, B, C))
    whole = same.condition(data).condition(rows(1, 5))
    for other in (model, LowRankGP.create(model, 6), pickle.loads(pickle.dumps(model)), copy.deepcopy(model), whole):
        assert confidence.update(other).update(whole).sound
    travelled = pickle.loads(pickle.dumps(confidence))
    assert travelled.update(whole).sound


def test_single_observations_may_repeat():
    """Noise on a grid, or none at all, repeats observations by right."""
    data = rows(0, 5)
    confidence, model, _ = start(5)
    assert confidence.update(model.condition(data)).sound
    quiet = empty(noise_std=0.0).condition(rows(0, 20))
    assert ConfidenceSet(BOUND).update(quiet).update(quiet.condition(rows(0, 20))).sound


@pytest.mark.parametrize("n", [7, 12])
def test_only_a_block_that_repeats_inputs_and_outcomes_is_a_repetition(n):
    """The same inputs with other outcomes, the same outcomes at other inputs, and blocks that are short: all are new data."""
    confidence, model, data = start(n)
    model = empty(prior=lambda x, u: 0.0 * x).condition(data)
    confidence = ConfidenceSet(BOUND).update(model)
    other = rows(3, n)
    for again in (Transitions(data.x, data.u, other.x_next), Transitions(other.x, other.u, data.x_next)):
        assert confidence.update(model.condition(again)).sound
    if n < 8:
        assert confidence.update(model.condition(data)).sound
    else:
        refused(confidence, model.condition(data), "repeat rows 0 and on")
        first = Transitions(data.x[:8], data.u[:8], data.x_next[:8])
        refused(confidence, model.condition(first), "rows 12 and on repeat rows 0 and on")
        fewer = Transitions(data.x[:7], data.u[:7], data.x_next[:7])
        assert confidence.update(model.condition(fewer)).sound


def test_a_repetition_is_seen_wherever_it_stands():
    """An episode that is told again, not the first, and not first in what is appended: σ_n shrinks, and nothing was seen."""
    confidence, model, _ = start(12)
    model = model.condition(rows(1, 20))
    confidence = confidence.update(model)
    again = rows(1, 20)
    refused(confidence, model.condition(rows(2, 5) + again), "rows 37 and on repeat rows 12 and on")
    short = Transitions(again.x[5:13], again.u[5:13], again.x_next[5:13])
    refused(confidence, model.condition(short), "rows 32 and on repeat rows 17 and on")
    new = rows(3, 9)
    refused(confidence, model.condition(new + new), "rows 41 and on repeat rows 32 and on")
    assert confidence.update(model.condition(Transitions(short.x.flip(0), short.u.flip(0), short.x_next.flip(0)))).sound


def test_noise_of_one_state_is_enough_for_a_repetition_to_tell_nothing():
    """Without any noise the same is measured again; where one learned state has some, its outcomes would differ."""
    half = empty(noise_std=[0.0, 0.1]).condition(rows(0, 20))
    refused(ConfidenceSet(BOUND).update(half), half.condition(rows(0, 20)), "repeat rows 0 and on")


@pytest.mark.parametrize(
    ("noise_std", "size", "refuses"), [(1e-17, 1.0, False), (1e-12, 1e5, False), (1e-12, 1.0, True)]
)
def test_noise_that_float64_rounds_off_repeats_by_right(noise_std, size, refuses):
    """The same is measured again, as without any: an honest episode was refused."""
    model = empty(noise_std=noise_std).condition(scaled(rows(0, 20), size))
    again = model.condition(scaled(rows(0, 20), size))
    if refuses:
        refused(ConfidenceSet(BOUND).update(model), again, "noise_std = 0 states that there is none")
    else:
        assert ConfidenceSet(BOUND).update(model).update(again).sound


def scaled(data: Transitions, size: float) -> Transitions:
    return Transitions(size * data.x, data.u, size * data.x_next)


@pytest.mark.parametrize("before", range(1, REPEATED))
def test_a_repetition_that_began_before_the_last_generation_is_seen(before):
    """A block of which the first rows were appended with the last data, too few to be one, and the others now."""
    table = torch.arange(3.0 * REPEATED).double().reshape(-1, 1)
    rows_ = torch.cat([table, table[2 : 2 + REPEATED]])
    assert _repeated(rows_, rows_) == (2, len(table))
    assert _repeated(rows_[: len(table) + before], rows_[: len(table) + before]) is None


@pytest.mark.parametrize("first", [(), (empty(),)], ids=["first", "after one without data"])
def test_a_repetition_within_the_first_data_is_one_too(first):
    """Forty observations told thirty times: f* was outside for 11 of 20 seeds at δ = 0.05."""
    data = rows(0, 12)
    refused(ConfidenceSet(BOUND, first), empty().condition(data + data), "rows 12 and on repeat rows 0 and on")


def test_a_kernel_put_in_the_place_of_another_is_no_kernel_of_the_model():
    """Whether or not its numbers can be read."""
    for name in ("rbf", "rational-quadratic"):
        model = empty(make_kernel(name, 3), mode="theory").condition(rows(0, 6))
        assert inconsistency(model) is None
        object.__setattr__(model, "kernels", tuple(copy.deepcopy(kernel) for kernel in model.kernels))
        assert str(inconsistency(model)).startswith("the kernels")


class Slotted:
    """A known part whose number nobody sees: only its values tell."""

    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 0.5

    def __call__(self, x, u):
        return torch.stack([self.rate * x[..., 0] + u.squeeze(-1), self.rate * x[..., 1]], -1)


NOBODY_SEES = Slotted()


def test_a_known_part_without_data_is_held_to_its_values_at_states_and_inputs():
    prior = Slotted()
    model = empty(prior=prior)
    confidence = ConfidenceSet(BOUND).update(model)
    assert confidence.edited is None
    prior.rate = 0.6
    assert "a known part" in str(confidence.edited)
    with pytest.raises(ValueError, match="a known part"):
        confidence.update(model.condition(rows(0, 3)))


def test_a_plant_at_rest_on_a_grid_of_measurements_repeats_by_right():
    confidence, model, data = start(12)
    still = Transitions(*(part[:1].repeat(30, 1) for part in (data.x, data.u, data.x_next)))
    assert confidence.update(model.condition(still)).sound


# -------------------------------------------------------------------------------------- what does not
OTHERS = {
    "kernels": ({"kernel": [KERNELS[0], kernels.matern(2.5, 1.0, 0.5 * (1 + 1e-6))]}, "the same kernels"),
    "kernel family": ({"kernel": [KERNELS[0], kernels.matern(1.5, 1.0, 0.5)]}, "the same kernels"),
    "kernel order": ({"kernel": KERNELS[::-1]}, "the same kernels"),
    "lambda": ({"regularizer": [0.01, 0.01 * (1 + 1e-15)]}, "the same lambda"),
    "noise": ({"noise_std": [0.1, 0.2]}, "the same noise_std"),
    "outputs": ({"kernel": KERNELS[0], "outputs": [0]}, "the same nx, nu and outputs"),
    "order of outputs": ({"outputs": [1, 0]}, "the same nx, nu and outputs"),
    "known part": ({"prior": AffineKnown(A, B, C + 1e-15)}, "the same known part"),
    "kind of known part": ({"prior": lambda x, u: x + u}, "the same known part"),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_another_model_on_the_same_data_is_refused(name):
    changes, words = OTHERS[name]
    confidence, _, data = start()
    refused(confidence, empty(**changes).condition(data), words)
    refused(ConfidenceSet(BOUND).update(empty()), empty(**changes), words)


def picked(index) -> GP:
    data = rows(0, 12)
    return empty().condition(Transitions(data.x[index], data.u[index], data.x_next[index]))


def doctored() -> GP:
    data = rows(0, 12)
    x_next = data.x_next.clone()
    x_next[7, 1] += 1e-15
    return empty().condition(Transitions(data.x, data.u, x_next))


DATA = {
    "none": (empty, "every observation kept"),
    "a prefix": (lambda: picked(slice(0, 11)), "every observation kept"),
    "a selection": (lambda: picked(rows(0, 12).x_next[:, 0] > 0), "every observation kept"),
    "a permutation": (lambda: picked(torch.arange(12).flip(0)), "in their order"),
    "a swap at the end": (lambda: picked([*range(10), 11, 10]), "in their order"),
    "other data": (lambda: empty().condition(rows(5, 12)), "unchanged"),
    "one outcome by one ulp": (doctored, "unchanged"),
    "a selection filled up": (lambda: picked([0, 2, 4, 6, 8, 10]).condition(rows(9, 20)), "unchanged"),
    "new rows first": (lambda: empty().condition(rows(9, 3)).condition(rows(0, 12)), "unchanged"),
    "all data once more": (lambda: picked(slice(None)).condition(rows(0, 12)), "repeat rows 0 and on"),
    "all data and new": (lambda: picked(slice(None)).condition(rows(0, 12) + rows(9, 4)), "repeat rows 0 and on"),
    "other noise scales": (
        lambda: empty().condition(rows(0, 12), noise_scale=torch.full((12,), 1.5).double()),
        "noise scales",
    ),
}


@pytest.mark.parametrize("name", sorted(DATA))
def test_other_data_are_refused(name):
    make, words = DATA[name]
    refused(start()[0], make(), words)


def test_an_earlier_generation_does_not_follow_a_later_one():
    confidence, model, _ = start()
    later = confidence.update(model.condition(rows(1, 3)))
    refused(later, model, "every observation kept")


def test_views_are_held_to_the_same():
    confidence, _, _ = start()
    refused(confidence, LowRankGP.create(picked(torch.arange(12).flip(0)), 6), "in their order")


# ------------------------------------------------------------------------------------ edited in place
def test_kernels_edited_after_creation_are_refused():
    confidence, model, _ = start()
    later = copy.deepcopy(model).condition(rows(1, 3))
    later.kernels[0].outputscale = 0.1
    refused(confidence, later, "edited since")


@pytest.mark.parametrize("name", ["rbf", "rational-quadratic"])
def test_a_kernel_edited_under_a_confidence_set_is_refused(name):
    model = empty(make_kernel(name, 3), mode="theory")
    confidence = ConfidenceSet(BOUND).update(model)
    with torch.no_grad():
        for parameter in model.kernels[0].parameters():
            parameter.add_(1e-9)
    with pytest.raises(ValueError, match=r"edited since|the same kernels"):
        confidence.update(model.condition(rows(0, 3)))


def test_lambda_edited_after_creation_is_refused():
    confidence, model, _ = start()
    later = model.condition(rows(1, 3))
    assert inconsistency(later) is None
    later.regularizer[0] = 1.0
    assert str(inconsistency(later)).startswith("the lambda and data")
    with pytest.raises(ValueError, match="lambda"):
        confidence.update(later)


def test_a_factor_of_another_number_of_data_is_not_that_of_the_model():
    model = empty().condition(rows(0, 6))
    object.__setattr__(model, "inputs", torch.cat([model.inputs, model.inputs[:1]]))
    assert str(inconsistency(model)).startswith("the lambda and data")


def test_data_edited_in_place_are_refused():
    confidence, model, _ = start()
    assert model.targets is not None
    model.targets[3] = 5.0
    with pytest.raises(ValueError, match="unchanged"):
        confidence.update(model.condition(rows(1, 3)))


@dataclass
class Drift:
    """A known part that somebody changes."""

    amount: float

    def __call__(self, x, u):
        return x + self.amount


def test_a_known_part_whose_captured_variable_changes_is_refused():
    captured, owner, tensor = [1.0], Drift(1.0), torch.ones(2).double()

    def change() -> None:
        captured[0], owner.amount = 2.0, 2.0
        tensor.add_(1.0)

    known = (lambda x, u: captured[0] * x, owner, lambda x, u: x * tensor)
    sets = [(ConfidenceSet(BOUND).update(empty(prior=prior)), empty(prior=prior)) for prior in known]
    for confidence, model in sets:
        assert confidence.update(model.condition(rows(0, 3))).sound
    change()
    for confidence, model in sets:
        with pytest.raises(ValueError, match="still has the values"):
            confidence.update(model.condition(rows(0, 3)))


def test_a_known_part_that_changes_only_where_data_lie_is_refused():
    far, data = [0.0], rows(0, 5)
    data = Transitions(data.x + 50.0, data.u, data.x_next)

    def prior(x, u):
        return x + far[0] * (x > 40.0)

    model = empty(prior=prior).condition(data)
    confidence = ConfidenceSet(BOUND).update(model)
    assert confidence.update(model.condition(rows(1, 3))).sound
    far[0] = 1.0
    assert "a known part" in str(confidence.edited)
    with pytest.raises(ValueError, match="still has the values"):
        confidence.update(model.condition(rows(1, 3)))


@pytest.mark.parametrize(("size", "shift"), [(1e6, 0.0), (1.0, 1e-13)])
def test_a_known_part_may_move_by_its_rounding_and_may_not_be_lost(size, shift):
    state = {"factor": size, "shift": 0.0}

    def prior(x, u):
        if state["factor"] is None:
            raise ArithmeticError("lost")
        return state["factor"] * x + state["shift"]

    model = empty(prior=prior)
    confidence = ConfidenceSet(BOUND).update(model)
    state |= {"factor": size * (1 + 1e-13), "shift": shift}
    assert confidence.update(model.condition(rows(1, 3))).sound
    for change in ({"factor": size + 1e-3}, {"factor": size, "shift": 1e-3}, {"factor": None}):
        later = model.condition(rows(1, 3))
        state |= change
        with pytest.raises(ValueError, match="still has the values"):
            confidence.update(later)
        state |= {"factor": size, "shift": 0.0}


def test_data_of_unequal_noise_continue_with_their_scales():
    scale = torch.tensor([1.0, 2.0, 1.5, 1.0, 3.0]).double()
    model = empty().condition(rows(0, 5), noise_scale=scale)
    more = model.condition(rows(1, 3), noise_scale=torch.tensor([2.0, 1.0, 1.0]).double())
    confidence = ConfidenceSet(BOUND).update(model).update(more)
    assert confidence.sound and confidence.edited is None
    assert model.noise_scale is not None
    model.noise_scale[1] = 1.0
    assert confidence.edited == "the noise scales of the earlier generations"


def test_noise_of_which_nothing_was_said_has_scale_one():
    confidence, model, _ = start()
    more = confidence.update(model.condition(rows(1, 3), noise_scale=torch.tensor([2.0, 1.0, 1.0]).double()))
    assert more.sound and more.edited is None


def test_neither_the_mode_of_a_kernel_nor_a_closure_that_is_none_tells_things_apart():
    one, other = kernels.matern(2.5, 1.0), kernels.matern(2.5, 1.0)
    assert fingerprint(one.train()) == fingerprint(other.eval())

    def make():
        return lambda x, u: x + 1.0

    assert make() is not make() and make().__closure__ is None and provably_equal(make(), make())


def test_what_cannot_be_read_is_the_same_only_as_itself():
    def make(ready):
        def known(x, u):
            return x + later

        if ready:
            later = 1.0
        return known

    one, other = make(False), make(False)
    assert provably_equal(one, one) and not provably_equal(one, other) and provably_equal(make(True), make(True))


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: np.array([1.0, 2.0]), np.array([1.0, 3.0])),
        (lambda: np.array([1.0, 2.0]), np.array([[1.0, 2.0]])),
        (lambda: math.nan * 1.0, 1.0),
        (lambda: 0.0, -0.0),  # 1/x tells them apart
        (lambda: 1, True),
        (lambda: None, 0.0),
        (lambda: Drift, Slotted),  # a class is its own content
        (lambda: KERNELS, KERNELS[::-1]),
        (lambda: NOBODY_SEES, Slotted()),
    ],
)
def test_functions_are_the_same_if_what_they_capture_is(make, other):
    def capturing(value):
        return lambda x, u: (x, value)

    assert provably_equal(capturing(make()), capturing(make()))
    assert not provably_equal(capturing(make()), capturing(other))


def test_the_order_in_which_attributes_were_set_says_nothing():
    one, other = kernels.matern(2.5, 1.0), kernels.matern(2.5, 1.0)
    base = vars(other.base_kernel)
    name = next(k for k, v in base.items() if isinstance(v, (bool, float)) and k != "training")
    base[name] = base.pop(name)
    assert list(base) != list(vars(one.base_kernel)) and fingerprint(one) == fingerprint(other)


def test_equal_functions_are_the_same_known_part_and_others_are_not():
    def make(factor):
        return lambda x, u: factor * x

    confidence = ConfidenceSet(BOUND).update(empty(prior=make(0.5)))
    assert confidence.update(empty(prior=make(0.5)).condition(rows(0, 3))).sound
    refused(confidence, empty(prior=make(0.25)).condition(rows(0, 3)), "the same known part")


def test_a_method_is_that_of_its_object():
    class Plant:
        def __init__(self, factor):
            self.factor = factor

        def step(self, x, u):
            return self.factor * x

    @dataclass
    class Stated(Plant):
        factor: float

    one, other = Stated(0.5), Stated(0.25)
    assert provably_equal(one.step, one.step) and provably_equal(one.step, Stated(0.5).step)
    assert not provably_equal(one.step, other.step) and not provably_equal(one.step, Plant(0.5).step)


def test_a_known_part_that_is_not_defined_everywhere_is_no_obstacle():
    def prior(x, u):
        if bool((x < 10).any()):
            raise ArithmeticError("outside")
        return x

    z = 20 + torch.rand(4, 2).double()
    model = empty(prior=prior)
    confidence = ConfidenceSet(BOUND).update(model)
    assert confidence.update(model.condition(Transitions(z, z[:, :1], z))).sound


def test_a_set_that_claims_nothing_may_be_refitted():
    guess = ConfidenceSet(Constant(value=3.0)).update(empty()).update(empty(kernels.rbf(0.2)).condition(rows(0, 5)))
    assert not guess.sound and len(guess.generations) == 2


@pytest.mark.parametrize("name", sorted(set(BOUNDS) - {"constant", "lederer"}))
def test_every_sound_bound_asks_for_the_lineage(name):
    options = {"max_data": 40} if name in ("chowdhury-gopalan", "actsafe") else {}
    lam = 1 + 2 / 40 if options else 0.01
    model = empty(regularizer=lam).condition(rows(0, 12))
    confidence = ConfidenceSet(BOUNDS[name](**ASSUMED, **options)).update(model)
    refused(confidence, empty(regularizer=lam).condition(rows(1, 12)), "unchanged")


# ------------------------------------------------------------------------------- why: the selection
def test_selecting_outcomes_breaks_every_claim_which_is_why_it_is_refused():
    """Only the upper half of the outcomes: unlucky draws that a martingale never sees.

    Refused after an honest generation. A user who selects before building the first posterior cannot be seen: "every
    observation kept" is an assumption, and this is the damage when it is false.
    """
    kernel, grid = kernels.rbf(2.0), torch.linspace(0, 1, 51, dtype=torch.float64).unsqueeze(-1)
    prior = GP.create(kernel, 0.01, nx=1, nu=0, noise_std=0.1)
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.05)
    failures = {"all": 0, "selected": 0}
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        f = random_function(kernel, torch.zeros(1), torch.ones(1), norm=1.0, generator=g)
        z = torch.rand(600, 1, dtype=torch.float64, generator=g)
        noise = 0.1 * torch.randn(600, 1, dtype=torch.float64, generator=g)
        y, upper = f(z).unsqueeze(-1) + noise, (noise > 0).squeeze(-1)
        honest, chosen = prior.condition_on(z, y), prior.condition_on(z[upper], y[upper])
        for name, model in (("all", honest), ("selected", chosen)):
            verdict = ConfidenceSet(bound).update(model).contains(lambda q, f=f: f(q).unsqueeze(-1), grid)
            failures[name] += verdict.outcome is not Outcome.HOLDS
        with pytest.raises(ValueError, match="every observation kept"):
            ConfidenceSet(bound).update(honest).update(chosen)
    assert failures["all"] <= 4  # P(> 4 of 10 at 0.05) < 1e-3
    assert failures["selected"] == 10
