"""Any model's bars in a policy set and in tubes: what they claim, and that a false claim shows in the counts."""

import math

import pytest
import torch
from gpsafe.experiments._report import line
from hypothesis import given, settings
from hypothesis import strategies as st

from gpsafe import kernels
from gpsafe.algorithms.certification import Certification
from gpsafe.assumptions import Assumption
from gpsafe.calibration import MODELS, Effort, Fitter, theory_band, total_std
from gpsafe.calibration.bars import CONSTANT, SCALES, Bars, bars
from gpsafe.calibration.downstream import BarsTube, explore, filtered, policy_set, tightened, worst_cost
from gpsafe.comparison import PolicySet, task
from gpsafe.confidence import ConfidenceSet
from gpsafe.data import Transitions
from gpsafe.models import GP, Prediction
from gpsafe.tube import GPTube, propagate

F64 = {"dtype": torch.float64}
Z = 1.6448536269514722


def contracting(x, u):
    return 0.8 * x


class Told:
    """Says x⁺ = mean(x, u) with that spread of f* and that noise, in all states."""

    def __init__(self, mean, std, noise, nx, nu=1):
        self.mean, self.std, self.noise, self.nx, self.nu = mean, std, noise, nx, nu

    def predict(self, x, u):
        mean = self.mean(x, u)
        return Prediction(mean, torch.full_like(mean, self.std), torch.full_like(mean, self.noise))

    def condition(self, data):
        return self


def rows(n: int, seed: int = 0, nx: int = 2) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    x, u = torch.randn(n, nx, **F64, generator=generator), torch.randn(n, 1, **F64, generator=generator)
    return Transitions(x, u, 0.9 * x + 0.1 * u + 0.05 * torch.randn(n, nx, **F64, generator=generator))


def process(n: int = 30) -> GP:
    kernel = kernels.rbf([1.0, 1.0, 1.0], 0.1)
    empty = GP.create([kernel, kernel], 0.05**2, nx=2, nu=1, noise_std=0.05, prior=contracting)
    return empty.condition(rows(n))


# -------------------------------------------------------------------------------------------------------------- claims
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_claims_what_the_table_says(scale):
    model, held = process(), rows(40, 1)
    x, u = torch.zeros(3, 2, **F64), torch.zeros(3, 1, **F64)
    claimed, told = bars(model, scale, held), model.predict(x, u)
    assert claimed.assumptions
    (low, high), (under, over) = claimed.of_function(x, u), claimed.of_state(x, u)
    assert bool((low <= high).all() and (under <= over).all())
    beta = theory_band(model).beta
    halves = {
        "plain": (CONSTANT * told.std, total_std(told)),
        "raw": (Z * total_std(told), Z * total_std(told)),
        "theory": (beta * told.std, beta * told.std + Z * told.noise_std),
    }
    if scale in halves:
        for got, half in zip((high - low, over - under), halves[scale], strict=True):
            torch.testing.assert_close(0.5 * got, half)
        torch.testing.assert_close(0.5 * (low + high), told.mean)
    else:  # rows show next states alone: one interval, that of the recalibrated model
        assert torch.equal(low, under) and torch.equal(high, over)
        assert torch.equal(low, claimed.model.interval(x, u)[0])


def test_what_cannot_be_claimed_is_refused():
    networks = Told(lambda x, u: x, 0.1, 0.1, 2)
    with pytest.raises(ValueError, match="or a band to borrow"):
        bars(networks, "theory")
    with pytest.raises(ValueError, match="held-out rows for 'conformal'"):
        bars(process(), "conformal")
    borrowed = bars(networks, "theory", band=theory_band(process()))
    assert any(entry.kind is Assumption.NOT_A_THEOREM for entry in borrowed.assumptions)
    sound = theory_band(process(), rkhs_norm=torch.tensor([1.0, 1.0], **F64))
    kinds = {entry.kind for entry in bars(process(), "theory", band=sound).assumptions}
    assert Assumption.NOT_A_THEOREM not in kinds


@given(st.floats(-3, 3), st.floats(0, 4), st.floats(0.01, 2), st.floats(1e-6, 3), st.booleans())
def test_where_the_function_is_outside_so_is_half_of_symmetric_noise(low, width, noise, away, above):
    """P(x⁺ outside) ≥ ½ wherever f* is: hence P(f* outside) ≤ 2 P(x⁺ outside), and noise that leans breaks it."""
    high = low + width
    f = high + away if above else low - away

    def below(v: float) -> float:
        return 0.5 * math.erfc(-(v - f) / (noise * math.sqrt(2)))

    assert 1 - (below(high) - below(low)) >= 0.5 - 1e-12
    # a noise that jumps back by exactly −away with probability 0.9 is inside the interval: the claim needs symmetry
    back = f - away if above else f + away
    assert low - 1e-9 <= back <= high + 1e-9


# --------------------------------------------------------------------------------------------------------------- tubes
def test_the_plain_tube_of_a_process_is_the_published_one():
    model = process()
    noise = model.noise_std.tolist()
    bound = ConfidenceSet(line.Mixture(rkhs_norm=(1.0, 1.0), subgaussian=tuple(noise), delta=0.1)).update(model)
    ours, theirs = BarsTube(bars(model, "plain")), GPTube(bound, 4, 0.1, "paper")
    plan = torch.zeros(2, **F64), torch.zeros(3, 1, **F64), torch.full((1, 2), -0.3, **F64)
    tube, published = propagate(ours, *plan), propagate(theirs, *plan)
    torch.testing.assert_close(tube.center, published.center)
    torch.testing.assert_close(tube.shape, published.shape, rtol=1e-6, atol=1e-15)
    x, u = torch.ones(1, 2, **F64), torch.ones(1, 1, **F64)
    torch.testing.assert_close(ours.mean(x, u), ours.linearise(x, u).mean)
    wide = propagate(BarsTube(bars(model, "raw")), *plan)
    torch.testing.assert_close(wide.center, tube.center)
    assert bool((wide.factor.norm(dim=(-2, -1))[:, 1:] > 1.5 * tube.factor.norm(dim=(-2, -1))[:, 1:]).all())


def test_claims_are_no_sound_tube():
    tube = BarsTube(bars(process(), "theory"))
    assert Certification(mode="paper").tube(tube, None) is tube
    assert Assumption.PAPER_TUBE in {entry.kind for entry in tube.assumptions}
    with pytest.raises(ValueError, match="a tube model of mode 'sound'"):
        Certification(mode="sound").tube(tube, None)


# --------------------------------------------------------------------------------------------------- policies, flights
CART = task("cart-pole", 0, horizon=30)


def told(mean, half: float = 0.0) -> Bars:
    """Exactly `mean` ± half, of f* and of the next state."""
    model = Told(mean, half, 0.0, CART.plant.nx)
    return Bars(model, "plain", torch.ones(CART.plant.nx, **F64), 1.0, 0.1, ())


def test_the_truth_certifies_the_safe_policies_and_a_false_claim_is_counted():
    found = PolicySet.create(CART, count=5)
    unsafe = found.unsafe()
    right = policy_set(CART, told(CART.plant.mean), count=5, unsafe=unsafe)
    assert right["unsafe_members"] == 0 and right["safe_members"] >= right["true_safe"] - 1 and right["true_unsafe"] > 5
    still = policy_set(
        CART, told(lambda x, u: x.expand(*u.shape[:-1], 4)), count=5, unsafe=unsafe
    )  # "nothing ever moves"
    assert still["unsafe_members"] == still["true_unsafe"]
    assert int(told(lambda x, u: x + 0 * u).misses(CART.plant.mean, CART.goals(50), torch.ones(1, **F64)).sum()) > 0


def test_bars_that_are_no_number_contain_nothing():
    wild = told(lambda x, u: x + 0 * u, math.nan)
    assert bool(wild.misses(lambda x, u: x + 0 * u, CART.goals(50), torch.ones(1, **F64)).all())


@settings(max_examples=6)
@given(st.floats(0, 0.02), st.floats(0, 0.02))
def test_wider_claims_never_lower_the_worst_cost(first, second):
    """Of a policy that errors push over a limit; no error is the least."""
    one = PolicySet.create(CART, count=3).policies.select(torch.tensor([4]))
    narrow, wide = sorted((first, second))
    costs = [
        float(worst_cost(CART, one, told(CART.plant.mean, half), paths=1, signs=4)) for half in (0.0, narrow, wide)
    ]
    assert costs[0] <= min(costs[1:]) and all(0 <= c <= 30 for c in costs)


def test_flights_meet_the_same_noise_and_a_filter_without_doubt_is_none():
    free = filtered(CART, None, episodes=1)
    assert [r["proposed"] for r in free] == ["uniform", "against"] and all(r["violated"] for r in free)
    behind = filtered(CART, told(CART.plant.mean, 1e-3), episodes=1, pairs=2)
    assert not any(r["violated"] for r in behind[:2]) and behind[0]["steps"] == 30 and behind[1]["corrected"] > 0
    assert behind[2]["safe_pairs"] + behind[2]["unsafe_pairs"] == 2


# ------------------------------------------------------------------------------------------------------ robust program
def test_actsafe_with_the_claims_of_anybody():
    system = line.plant(line.dormant(torch.Generator().manual_seed(3)))
    policies = line.set_points(torch.linspace(0, 1.15, 8, **F64))
    program = line.program(system, 60)
    enclosure = program.enclosure(ConfidenceSet(line.sound_bound(system)).update(line.model(system)), policies)

    def flown(claims):
        generator = torch.Generator().manual_seed(0)
        return explore(
            system, policies, program, enclosure, [0, 1], claims, line.probe(), episodes=2, generator=generator
        )

    def sound(seen, number):
        model = line.model(system).condition(seen)
        return bars(model, "theory", band=theory_band(model, rkhs_norm=system.rkhs_norm))

    def blind(seen, number):  # no doubt, and no push
        return bars(Told(system.known, 0.0, 0.0, 1), "plain")

    careful, careless = flown(sound), flown(blind)
    assert not careful.escaped and careless.escaped
    assert len(careful.data) == 6 * system.horizon and torch.equal(careful.data.x[: 4 * 10], careless.data.x[: 4 * 10])
    assert set(careful.safe.members.tolist()) < set(careless.safe.members.tolist())
    assert not line.truth(system, policies, cells=300).unsafe(system.budget)[careful.safe.members].any()
    inside = tightened(enclosure, blind(careful.data, 1), system)
    assert bool((inside.low == inside.high).all()) and bool((inside.high.abs() <= enclosure.cap).all())


# ------------------------------------------------------------------------------------------------ states that are known
@pytest.mark.parametrize("name", [n for n in MODELS if not n.endswith("plain")])  # these have no known part
def test_a_state_that_is_not_learnt_is_the_known_part_with_its_noise(name):
    data = rows(40)
    fitter = Fitter(
        data, prior=contracting, noise_std=torch.tensor([0.3, 0.05], **F64), outputs=(1,),
        effort=Effort(10, iterations=2, inducing=5, hidden=(4,), steps=3),
    )  # fmt: skip
    found = fitter.fit(name).model.predict(data.x, data.u)
    known = contracting(data.x, data.u)[:, 0]
    torch.testing.assert_close(found.mean[:, 0], known)
    assert float(found.std[:, 0].max()) <= 1e-12
    torch.testing.assert_close(found.noise_std.expand_as(found.mean)[:, 0], torch.full_like(known, 0.3))
