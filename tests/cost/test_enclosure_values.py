"""Boxes of next means over cells against loops: every term of the range, the slack, the cap and the running intersection."""

import math
from dataclasses import replace

import pytest
import torch
from cost_cases import make_case
from step_cases import Curved, draw, tensor
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import enclosure
from gpsafe.cost.enclosure import EMPTY, Enclosure, bend, closed_loop_range, enclose, grow, jacobians, residual_reach
from gpsafe.cost.in_cell import InCell
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown


class Bent(AffineKnown):
    """With a stated bound of its curvature (it need not be one: only the arithmetic is looked at)."""

    @property
    def hessian_bound(self) -> Tensor:
        nz = self.A.shape[0] + self.B.shape[1]
        return draw(3, self.A.shape[0], nz, nz).abs()


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("nu", [1, 2])
def test_the_closed_loop_range_is_its_formula(nu, curved):
    rest = 0.07 if curved else 0.0
    known = Bent(tensor([[1.0, 0.1], [-0.3, 0.9]]), 0.5 * draw(4, 2, nu), tensor([0.05, -0.1]))
    affine = AffinePolicies(0.3 * draw(5, 3, nu), draw(6, 3, nu, 2), Box(-torch.ones(nu), 0.8 * torch.ones(nu)))
    policies = Curved(affine, rest) if curved else affine
    centers, radius = 0.7 * draw(7, 6, 2), 0.3 * draw(8, 6, 2).abs()
    middle, reach, inputs = closed_loop_range(known, policies, centers, radius)
    _, low, high = affine.slopes((centers - radius)[None], (centers + radius)[None])
    u = affine(centers[None])
    partly = 0
    for p in range(3):
        K = affine.gain[p].tolist()
        for n in range(6):
            r, s, S = radius[n].tolist(), low[p, n].tolist(), high[p, n].tolist()
            partly += s[0] < S[0]
            rows = [sum(abs(K[v][j]) * r[j] for j in range(2)) for v in range(nu)]
            dz = r + [S[v] * (rows[v] + rest) for v in range(nu)]
            for v in range(nu):
                assert float(inputs[p, n, v]) == pytest.approx(dz[2 + v], rel=1e-13)
            for i in range(2):
                A, B, H = known.A[i].tolist(), known.B[i].tolist(), known.hessian_bound[i]
                if nu == 1:
                    exact = max(sum(abs(A[j] + t * B[0] * K[0][j]) * r[j] for j in range(2)) for t in (s[0], S[0]))
                else:
                    mid = [0.5 * (a + b) for a, b in zip(s, S, strict=True)]
                    exact = sum(abs(A[j] + sum(B[v] * mid[v] * K[v][j] for v in range(2))) * r[j] for j in range(2))
                    exact += sum(abs(B[v]) * 0.5 * (S[v] - s[v]) * rows[v] for v in range(2))
                exact += sum(abs(B[v]) * S[v] * rest for v in range(nu))
                exact += 0.5 * sum(float(H[j, k]) * dz[j] * dz[k] for j in range(2 + nu) for k in range(2 + nu))
                mean = sum(a * x for a, x in zip(A, centers[n].tolist(), strict=True)) + float(known.c[i])
                mean += sum(b * v for b, v in zip(B, u[p, n].tolist(), strict=True))
                assert float(middle[p, n, i]) == pytest.approx(mean, rel=1e-12, abs=1e-14)
                terms = sum(
                    abs(v) * (abs(c) + d)
                    for v, c, d in zip(A + B, centers[n].tolist() + u[p, n].tolist(), dz, strict=True)
                )
                margin = 1e-12 * exact + 1e-13 * (abs(mean) + terms)
                assert float(reach[p, n, i]) - exact == pytest.approx(margin, rel=0, abs=2e-15)
    assert 2 < partly < 18


def test_rounding_outwards_is_relative():
    assert grow(tensor([0.0, 3.0, 2e-9]), 1e-9).tolist() == pytest.approx(
        [0.0, 3 + 3e-9, 2e-9 + 2e-18], rel=1e-15, abs=0
    )


def test_jacobians_by_forward_differentiation_or_the_known_parts_own():
    def bare(x, u):
        return torch.stack([x[..., 0] * u[..., 1] + u[..., 0] ** 2, x[..., 1] ** 3, x[..., 0] * x[..., 1]], -1)

    x, u = draw(1, 4, 5, 3), draw(2, 4, 5, 2)
    a, b = jacobians(bare, x, u)
    zero = torch.zeros_like(x[..., 0])
    rows = [(u[..., 1], zero, zero), (zero, 3 * x[..., 1] ** 2, zero), (x[..., 1], x[..., 0], zero)]
    torch.testing.assert_close(a, torch.stack([torch.stack(row, -1) for row in rows], -2))
    rows = [(2 * u[..., 0], x[..., 0]), (zero, zero), (zero, zero)]
    torch.testing.assert_close(b, torch.stack([torch.stack(row, -1) for row in rows], -2))
    known = AffineKnown(draw(3, 3, 3), draw(4, 3, 2), draw(5, 3))
    a, b = jacobians(known, x, u)
    assert torch.equal(a, known.A.expand(4, 5, 3, 3)) and torch.equal(b, known.B.expand(4, 5, 3, 2))


def two_outputs() -> ConfidenceSet:
    """Two learned outputs with different kernels, the second first and partly linear."""
    parts = (
        kernels.rbf([0.5, 2.0, 1.0], 0.49),
        kernels.additive(kernels.rbf([1.0, 0.7, 3.0], 0.25), kernels.linear(0.04)),
    )
    known = AffineKnown(torch.eye(2).double(), tensor([[0.1], [0.2]]), tensor([0.0, 0.0]))
    model = GP.create(parts, 0.01, nx=2, nu=1, noise_std=0.1, outputs=(1, 0), prior=known)
    return ConfidenceSet(Mixture(rkhs_norm=(1.7, 0.6), subgaussian=0.1, delta=0.1)).update(model)


def test_what_the_norm_says_over_a_box_is_its_closed_form():
    F, z, dz = two_outputs(), draw(1, 4, 3), 0.2 * draw(2, 4, 3).abs()
    metric, slack, cap = residual_reach(F, z, dz)
    scales, variances, norms = (tensor([0.5, 2.0, 1.0]), tensor([1.0, 0.7, 3.0])), (0.49, 0.25), (1.7, 0.6)
    for n in range(4):
        for j in range(2):
            far = float((dz[n] / scales[j]).square().sum())
            squared = 2 * variances[j] * (1 - math.exp(-far / 2))
            sup = variances[j]
            if j == 1:
                squared += 0.04 * float(dz[n].square().sum())
                sup += 0.04 * float((z[n].abs() + dz[n]).square().sum())
            distance = math.sqrt(squared)
            assert float(metric[n, j]) == pytest.approx(distance, rel=1e-9)
            assert norms[j] * distance * (1 + 0.5e-12) < float(slack[n, j]) < norms[j] * distance * (1 + 2e-12)
            assert float(cap[n, j]) == pytest.approx(norms[j] * math.sqrt(sup), rel=1e-12)
            assert float(cap[n, j]) >= norms[j] * math.sqrt(sup) * (1 - 2e-16)


def test_an_enclosure_before_data_is_the_ball_at_the_centres():
    F = two_outputs()
    policies = AffinePolicies(0.3 * draw(1, 2, 1), draw(2, 2, 1, 2), Box(-torch.ones(1), torch.ones(1)))
    centers, radius = draw(3, 4, 2), 0.1 * draw(4, 4, 2).abs()
    found = enclose(centers, radius, F, policies)
    middle, reach, inputs = closed_loop_range(F.model.prior, policies, centers, radius)
    assert torch.equal(found.known, middle) and torch.equal(found.known_radius, reach)
    assert torch.equal(found.z, torch.cat([centers.expand(2, 4, 2), policies(centers[None])], -1))
    metric, slack, cap = residual_reach(F, found.z, torch.cat([radius.expand(2, 4, 2), inputs], -1))
    assert torch.equal(found.metric, metric) and torch.equal(found.slack, slack) and torch.equal(found.cap, cap)
    for j, kernel in enumerate(F.model.kernels):
        ball = (1.7, 0.6)[j] * kernel(found.z, diag=True).detach().sqrt()
        torch.testing.assert_close(found.high[..., j], ball, rtol=1e-9, atol=0)
    assert torch.equal(found.low, -found.high) and found.outputs == (1, 0) and found.generations == 0
    assert found.source is F and found.kernels == F.model.kernels


def test_generations_are_intersected_once_each():
    whole = make_case("1d", (4, 12)).confidence
    policies = make_case("1d", ()).policies.select(torch.tensor([4, 20]))
    first = ConfidenceSet(whole.bound, whole.generations[:2])
    centers, radius = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None], torch.full((9, 1), 0.05).double()
    bare = enclose(centers, radius, first, policies)
    early = bare.refine(first)
    late = early.refine(whole)
    low, high = whole.bounds(bare.z)
    torch.testing.assert_close(late.low, torch.maximum(bare.low, low))
    torch.testing.assert_close(late.high, torch.minimum(bare.high, high))
    assert bool((late.high < early.high).any()) and bool((late.low > early.low).any())
    assert (early.generations, late.generations) == (2, len(whole.generations))
    assert late.source is whole and late.refine(whole) is late
    assert early.inner is not None and late.inner is not None and early.peak is not None and late.peak is not None
    alone = replace(bare, low=late.low, high=late.high)._narrowed(
        whole
    )  # by the gradients of the newest posterior alone
    assert alone.inner is not None and alone.peak is not None
    assert torch.equal(late.inner[0], torch.maximum(early.inner[0], alone.inner[0]))
    assert torch.equal(late.inner[1], torch.minimum(early.inner[1], alone.inner[1]))
    assert torch.equal(late.peak, torch.fmin(early.peak, alone.peak))
    mixed = alone.inner[0] + 1e-3 * draw(3, 2, 9, 1), alone.inner[1] + 1e-3 * draw(4, 2, 9, 1)
    found = replace(early, inner=mixed).refine(whole).inner
    assert found is not None and bool((found[0] > alone.inner[0]).any()) and bool((found[1] < alone.inner[1]).any())
    assert torch.equal(found[0], torch.maximum(mixed[0], alone.inner[0]))
    assert torch.equal(found[1], torch.minimum(mixed[1], alone.inner[1]))
    narrow = replace(early, low=early.low.clamp_min(0.0), high=early.high.clamp_max(1e-3)).refine(whole)
    assert bool((narrow.low >= 0).all()) and bool((narrow.high <= 1e-3).all())
    cut = replace(late, cap=0.1 * late.high.amax() * torch.ones_like(late.cap))
    for one in (late, cut):
        (low, high), ends = one.middle(), (torch.maximum(one.low, -one.cap), torch.minimum(one.high, one.cap))
        assert torch.equal(low, one.known + ends[0]) and torch.equal(high, one.known + ends[1])
    assert bool((cut.high > cut.cap).any()) and bool((cut.low < -cut.cap).any())
    assert late.policies is not None
    for index in ([1], [0], [1, 0]):
        picked = replace(late, spread=draw(5, 2, 9, 1)).select(torch.tensor(index))
        for name in ("z", "known", "known_radius", "metric", "slack", "low", "high", "cap", "peak"):
            assert torch.equal(getattr(picked, name), getattr(late, name)[index])
        assert picked.spread is not None and torch.equal(picked.spread, draw(5, 2, 9, 1)[index])
        assert picked.inner is not None and picked.policies is not None
        assert all(torch.equal(mine, whole[index]) for mine, whole in zip(picked.inner, late.inner, strict=True))
        assert torch.equal(picked.policies(centers[None]), late.policies(centers[None])[index])
    with pytest.raises(ValueError, match=r"Enclosure.refine: expected a confidence set that continues"):
        late.refine(make_case("1d", (20, 30)).confidence)


def test_the_bend_is_half_the_curvature_whatever_its_entries():
    class Flat(AffineKnown):
        hessian_bound = torch.ones(2, 3, 3, dtype=torch.float64)

    known = Flat(torch.eye(2).double(), draw(4, 2, 1), tensor([0.0, 0.0]))
    policies = AffinePolicies(torch.zeros(1, 1), tensor([[[2.0, 0.0]]]), Box(-9 * torch.ones(1), 9 * torch.ones(1)))
    loop = enclosure.around(policies, tensor([[0.1, 0.2]]), tensor([[0.3, 0.5]]))
    torch.testing.assert_close(bend(known, loop), tensor([[[0.5 * (0.3 + 0.5 + 0.6) ** 2] * 2]]))


@pytest.mark.parametrize("nu", [1, 2])
def test_boxes_of_gradients_are_those_of_the_closed_loop_with_the_slope_of_the_mean(nu, monkeypatch):
    """p(c) ± (sup |(a + b S K)d| + ½ dzᵀH dz + rounding) + what `InCell` says, with ∇μ_n in a and b; rounding made visible."""
    known = Bent(tensor([[1.0, 0.1], [-0.3, 0.9]]), 0.5 * draw(4, 2, nu), tensor([0.05, -0.1]))
    scales = [0.5, 2.0, 1.0, 1.5][: 2 + nu]
    model = GP.create(kernels.rbf(scales, 0.49), 0.01, nx=2, nu=nu, noise_std=0.1, outputs=(1,), prior=known)
    model = model.condition_on(draw(1, 8, 2 + nu), 0.3 * draw(2, 8, 1))
    F = ConfidenceSet(Mixture(rkhs_norm=1.7, subgaussian=0.1, delta=0.1)).update(model)
    policies = AffinePolicies(0.3 * draw(5, 2, nu), draw(6, 2, nu, 2), Box(-torch.ones(nu), 0.8 * torch.ones(nu)))
    centers, radius = 0.7 * draw(7, 5, 2), 0.05 * draw(8, 5, 2).abs()
    bare = enclose(centers, radius, F, policies)
    monkeypatch.setattr(enclosure, "grow", lambda value, relative: value + 1e10 * relative)
    monkeypatch.setattr(enclosure, "ROUNDING", 0.02)
    found, loop = bare.refine(F), enclosure.around(policies, centers, radius)
    (said,) = InCell.of(F, bare.z, loop)
    assert found.inner is not None and found.peak is not None
    assert torch.equal(found.peak, said.peak)
    gradient, dz = model.gradient(bare.z.reshape(-1, 2 + nu))[0].reshape(2, 5, 2 + nu), loop.reach
    a, b = known.A.expand(2, 5, 2, 2).clone(), known.B.expand(2, 5, 2, nu).clone()
    a[..., 1, :], b[..., 1, :] = a[..., 1, :] + said.slope[..., 0, :2], b[..., 1, :] + said.slope[..., 0, 2:]
    torch.testing.assert_close(said.slope[..., 0, :], gradient, rtol=0.1, atol=0.05)  # that of the nearest anchor
    rows = loop.rows(a, b)
    for p in range(2):
        for n in range(5):
            c = [float(v) for v in known(centers[n], policies(centers[n][None, None])[p, 0])]
            for i in range(2):
                slope, far = torch.cat([a[p, n, i], b[p, n, i]]).abs(), bare.z[p, n].abs() + dz[p, n]
                reach = float(rows[p, n, i]) + 0.01 + 0.02 * (abs(c[i]) + float(slope @ far))
                reach += 0.5 * float(dz[p, n] @ known.hessian_bound[i] @ dz[p, n])
                least = most = 0.0
                if i == 1:
                    value, half, error = (float(v[p, n, 0]) for v in (said.value, said.half, said.error))
                    least = max(float(found.low[p, n, 0]) - error, value - half)
                    most = min(float(found.high[p, n, 0]) + error, value + half)
                assert float(found.inner[0][p, n, i]) == pytest.approx(c[i] - reach + least, rel=1e-12, abs=1e-13)
                assert float(found.inner[1][p, n, i]) == pytest.approx(c[i] + reach + most, rel=1e-12, abs=1e-13)
    for name, end, free in (("low", 0, -math.inf), ("high", 1, math.inf)):  # an end that is lost says nothing
        lost = replace(bare, **{name: math.nan * bare.low})._narrowed(F).inner
        assert bool((lost[end][..., 1] == free).all()) and bool(torch.isfinite(lost[1 - end]).all())
        assert bool(torch.isfinite(lost[end][..., 0]).all())
    outer, moved = replace(found, inner=None).boxes(), 0.1 * draw(9, 2, 5, 2)
    low, high = replace(found, inner=(outer[0] + moved, outer[1] + moved.flip(0))).boxes()
    torch.testing.assert_close(low, outer[0] + moved.clamp_min(0.0), rtol=0, atol=1e-15)
    torch.testing.assert_close(high, outer[1] + moved.flip(0).clamp_max(0.0), rtol=0, atol=1e-15)


def handmade(low, high, slack, cap, outputs=(1, 0)) -> Enclosure:
    known = tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]])
    low, high, slack, cap = (tensor(v).expand(1, 4, 2) for v in (low, high, slack, cap))
    none = torch.zeros(4, 2).double()
    return Enclosure(none, none, none, known, 0.25 + 0 * known, slack, slack, low, high, cap, (), outputs)


def test_a_box_is_the_known_part_and_what_the_set_and_the_ball_leave():
    low = [[-0.2, -0.3], [0.1, 0.0], [0.3, 0.3], [-2.0, 0.5]]
    high = [[0.4, 0.1], [0.6, 0.0], [0.3 - 9 * EMPTY, 0.5], [-1.9, 0.5 - 0.5 * EMPTY]]
    low_box, high_box = handmade(low, high, [0.05, 0.5], [10.0, 0.6]).boxes()
    expected_low = [
        [1.0 - 0.25 - 0.6, 2.0 - 0.25 - 0.25],
        [3 - 0.25 - 0.5, 4 - 0.25 + 0.05],
        [5 - 0.25 - 0.2, 6 - 0.25 + 0.25],
    ]
    expected_high = [[1.25 + 0.6, 2.25 + 0.45], [3.25 + 0.5, 4.25 + 0.65], [5.25 + 0.6, 6.25 + 0.35 - 9e-9]]
    torch.testing.assert_close(low_box[0, :3], tensor(expected_low), rtol=0, atol=1e-14)
    torch.testing.assert_close(high_box[0, :3], tensor(expected_high), rtol=0, atol=1e-14)
    high[3][1] = 0.5 - 0.7 * EMPTY
    found = handmade(low, high, [0.05, 0.5], [10.0, 0.6])
    low_box, high_box = found.boxes()  # no function is left that the other boxes could hold of
    assert bool((low_box == -math.inf).all()) and bool((high_box == math.inf).all())
    assert found.empty() and not found.empty(tol=1.2 * EMPTY)
    assert not handmade([0.3, 0.3], [0.3 - 0.9 * EMPTY, 0.3], [0.1, 0.1], [1.0, 1.0]).empty()
    value = draw(1, 1, 4, 2)
    one = found.with_residual(value)
    assert torch.equal(one.low, value) and torch.equal(one.high, value) and torch.equal(one.slack, found.slack)


@pytest.mark.parametrize("missing", ["metric_over_box", "variance_over_box"])
def test_a_kernel_without_one_of_its_suprema_is_refused_by_name(monkeypatch, missing):
    F = two_outputs()
    monkeypatch.setattr(kernels, missing, lambda *_: None)
    with pytest.raises(ValueError, match="kernels with suprema over boxes"):
        residual_reach(F, draw(1, 4, 3), draw(2, 4, 3).abs())
