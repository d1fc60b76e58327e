"""The policy distance equals its formula; witnesses, members and refusals of S_n to the letter."""

import json
import math

import gpytorch
import pytest
import torch

from gpsafe.policies import AffinePolicies
from gpsafe.policies.features import FeaturePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety.safe_set import SafePolicySet, Witness, policy_distance, reachable, through
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


INPUTS = Box(tensor(-1.0, -2.0), tensor(1.0, 2.0))
KNOWN = AffineKnown(tensor([0.9, 0.1], [0.0, 0.8]), tensor([0.03, -0.2], [0.05, 0.01]), tensor(0.3, -0.4))
KERNELS = (kernels.rbf([0.5, 0.6, 1.0, 2.0], variance=0.3), kernels.matern(1.5, [0.9, 0.4, 0.7, 1.5], variance=0.1))
NORM, NOISE, HORIZON, CEILING = tensor(0.2, 0.3), tensor(0.1, 0.4), 4, 2.5


def policies(*offsets) -> AffinePolicies:
    return AffinePolicies(tensor(*offsets), 0.5 * torch.ones(len(offsets), 2, 2).double(), INPUTS)


FIRST = policies((0.0, 0.0), (0.01, -0.02), (0.6, 0.9))
SECOND = policies((0.0, 0.03), (0.9, -1.9))


def distance(first=FIRST, second=None, *, outputs=(1, 0), noise=NOISE, known=KNOWN, kernel=KERNELS):
    return policy_distance(
        first, known, kernel, rkhs_norm=NORM[: len(outputs)], outputs=outputs, noise_std=noise, horizon=HORIZON,
        ceiling=CEILING, others=second,
    )  # fmt: skip


def expected(du, outputs=(1, 0)) -> float:
    """a from δ_i = |∂p_i/∂u|·|Δu| + B_i d_k(Δu), then the total variations of the paths to every time."""
    moved = [sum(abs(float(KNOWN.B[i, j])) * du[j] for j in range(2)) for i in range(2)]
    for j, output in enumerate(outputs):
        step, zero = tensor([0.0, 0.0, *du]), torch.zeros(1, 4).double()
        k0, k1 = (float(kernels.cross(KERNELS[j], zero, z)) for z in (zero, step))
        moved[output] += float(NORM[j]) * math.sqrt(2 * (k0 - k1))
    return summed(math.hypot(*(m / float(s) for m, s in zip(moved, NOISE, strict=True))))


def summed(a: float) -> float:
    """C Σ_{0<t<T} (2Φ(a√t/2) − 1)."""
    return CEILING * sum(math.erf(a * math.sqrt(t / 8)) for t in range(1, HORIZON))


def test_a_large_offset_of_the_known_part_does_not_hide_its_inputs():
    """p(0, e) − p(0, 0) is 0 as computed here; the input matrix is not."""
    small = AffineKnown(KNOWN.A, 1e-8 * KNOWN.B, tensor(0.0, 0.0))
    far = AffineKnown(KNOWN.A, 1e-8 * KNOWN.B, tensor(3e8, -4e8))
    near, moved = (distance(known=known, noise=1e-9 * NOISE, outputs=(), kernel=()) for known in (small, far))
    assert torch.equal(near, moved) and float(moved[0, 2]) > 1.0


def test_distances_are_their_formula():
    square, other = distance(), distance(second=SECOND)
    assert square.shape == (3, 3) and other.shape == (3, 2)
    for table, second in ((square, FIRST), (other, SECOND)):
        for i, j in ((i, j) for i in range(3) for j in range(second.num)):
            du = (FIRST.offset[i] - second.offset[j]).abs().tolist()
            assert float(table[i, j]) == pytest.approx(expected(du), rel=1e-6, abs=1e-7)
    assert float(square[0, 1]) < 1.5 < float(square[0, 2])  # the cap is not what decides here
    pair = AffinePolicies(tensor([0.0], [0.3]), torch.zeros(2, 1, 2).double(), Box(tensor(-1.0), tensor(1.0)))
    known = AffineKnown(KNOWN.A, KNOWN.B[:, :1], KNOWN.c)  # one input, two states
    kernel = (kernels.rbf([0.5, 0.6, 1.0], variance=0.25), kernels.rbf([0.5, 0.6, 2.0], variance=0.125))
    rho = [math.sqrt(2 * v * (1 - math.exp(-0.5 * (0.3 / s) ** 2))) for v, s in ((0.25, 1.0), (0.125, 2.0))]
    delta = [0.03 * 0.3 + 0.3 * rho[1], 0.05 * 0.3 + 0.2 * rho[0]]
    total = summed(math.hypot(*(d / float(s) for d, s in zip(delta, NOISE, strict=True))))
    assert float(distance(pair, known=known, kernel=kernel)[0, 1]) == pytest.approx(total, rel=1e-7)
    one = distance(outputs=(1,), kernel=KERNELS[:1])
    assert float(one[0, 2]) == pytest.approx(expected([0.6, 0.9], outputs=(1,)), rel=1e-6)


def test_what_the_distance_does_not_cover_is_refused():
    for noise in (tensor(0.1, 0.0), tensor(-0.1, 0.4)):
        with pytest.raises(ValueError, match="noise_std > 0"):
            distance(noise=noise)
    with pytest.raises(ValueError, match="two classes of one kind"):
        distance(second=FeaturePolicies.__new__(FeaturePolicies))
    rough = (gpytorch.kernels.PeriodicKernel().double(),) * 2
    with pytest.raises(ValueError, match=r"stationary kernels|kernels (whose|with)"):
        distance(kernel=rough)
    for place, accepted in (((0, 0, 1), True), ((0, 1, 2), False), ((1, 3, 3), False), ((1, 2, 0), False)):
        bent = torch.zeros(2, 4, 4).double()
        bent[place] = bent[place[0], place[2], place[1]] = 0.1

        class Bent(AffineKnown):
            hessian_bound = bent

        known = Bent(KNOWN.A, KNOWN.B, KNOWN.c)
        if accepted:
            assert torch.equal(distance(known=known), distance())
        else:
            with pytest.raises(ValueError, match="affine in u"):
                distance(known=known)


def test_members_and_outsiders_share_the_class_and_witnesses_stay():
    safe = SafePolicySet.initial(5, [4, 0], budget=0.5)
    assert (len(safe), safe.members.tolist(), safe.outsiders.tolist()) == (2, [0, 4], [1, 2, 3])
    assert SafePolicySet.initial(5, [0, 2], budget=0.5).outsiders.tolist() == [1, 3, 4]
    assert safe.members.dtype == safe.outsiders.dtype == torch.long
    assert list(safe.witnesses) == [0, 4] and (safe.witnesses[0].episode, safe.witnesses[0].rule) == (0, "given")
    D = torch.full((5, 5), 9.0).double()
    D[4, 2], D[0, 2], D[1, 3], D[0, 3] = 0.2, 0.1, 0.0, 0.31
    grown = safe.expand(tensor(0.2, 0.5, math.inf, 0.6, 0.1), episode=3, bound="b", distance=D)
    assert grown.members.tolist() == [0, 1, 2, 4] and grown.budget == 0.5 and grown.num == 5  # 3 is near the new 1 only
    assert grown.witnesses[1] == Witness(3, "bound", 0.5, "b") and grown.witnesses[0] == safe.witnesses[0]
    assert grown.witnesses[2].rule == "lipschitz" and grown.witnesses[2].neighbour in (0, 4)
    assert grown.witnesses[2].value == pytest.approx(0.3)
    back = SafePolicySet.from_json(json.loads(json.dumps(grown.to_json(), allow_nan=False)))
    assert math.isnan(back.witnesses[4].value) and {i: w for i, w in back.witnesses.items() if i not in (0, 4)} == {
        i: w for i, w in grown.witnesses.items() if i not in (0, 4)
    }
    assert (back.num, back.budget) == (5, 0.5)
    with pytest.raises(ValueError, match="upper of shape"):
        safe.expand(torch.zeros(4).double(), episode=1, bound="b")
    with pytest.raises(ValueError, match="distance of shape"):
        safe.expand(torch.zeros(5).double(), episode=1, bound="b", distance=torch.zeros(5).double())
    for bad in (-1e-9, math.nan):
        for options in ({"budget": bad, "epsilon": 0.1}, {"budget": 0.5, "epsilon": bad}):
            with pytest.raises(ValueError, match="reachable"):
                reachable([0], torch.zeros(5).double(), D, **options)
        with pytest.raises(ValueError, match="budget"):
            SafePolicySet.initial(5, [0], budget=bad)
    wrong = D.clone()
    wrong[3, 1] = -1e-9
    with pytest.raises(ValueError, match="distance >= 0"):
        safe.expand(torch.zeros(5).double(), episode=1, bound="b", distance=wrong)
    with pytest.raises(ValueError, match="distance >= 0"):
        reachable([0], torch.zeros(5).double(), wrong, budget=0.5, epsilon=0.1)
    with pytest.raises(ValueError, match="num >= 1"):
        SafePolicySet.initial(0, [0], budget=0.5)
    with pytest.raises(ValueError, match=r"0\.\.4"):
        SafePolicySet.initial(5, [0, 5], budget=0.5)


def test_reachable_rounds_go_one_step_each_and_the_margin_is_kept():
    D = torch.full((4, 4), 9.0).double()
    for i in range(3):
        D[i, i + 1] = 0.1
    cost, options = tensor(0.1, 0.1, 0.1, 0.1), {"budget": 0.5, "epsilon": 0.3}
    chain = [reachable([0], cost, D, **options, rounds=r) for r in range(5)]
    assert chain == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3}]
    assert reachable([0], cost, D, **options) == {0, 1, 2, 3}
    assert reachable([0], cost, D, budget=0.5, epsilon=0.3 + 1e-9) == {0}
    assert reachable([1], cost, D.T.contiguous(), **options) == {0, 1}  # from row to column


def test_only_numbers_from_zero_on_pass_through_a_member():
    numbers = [-0.5, -0.0, 0.0, 0.25, math.inf, -math.inf, math.nan]
    found = through(tensor(*numbers), tensor(*[numbers] * len(numbers)))
    expected = [[v + d if v >= 0 and d >= 0 else math.inf for d in numbers] for v in numbers]
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("count", "shown", "more"), [(19, 19, None), (20, 20, None), (21, 20, "and 1 more"), (23, 20, "and 3 more")]
)
def test_notebooks_show_twenty_members(count, shown, more):
    told = SafePolicySet.initial(30, list(range(count)), budget=0.2)._repr_html_()
    assert told.count("<td>given</td>") == shown and (more in told if more else "more" not in told)
