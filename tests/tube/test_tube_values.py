"""Tubes equal their recursion term by term, down to the rounding they add: too wide a tube passes every containment test."""

import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from tube_cases import Stated, stated

from gpsafe.tube import core
from gpsafe.tube.core import ROUNDING, START, Linearisation, around_box, outer_sum, propagate, sizes

tensor = partial(torch.tensor, dtype=torch.float64)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def summed(shapes: list[Tensor]) -> Tensor:
    """(Σ s_j) Σ Q_j/s_j, s_j = √tr Q_j; points add nothing."""
    roots = [(math.sqrt(float(Q.trace())), Q) for Q in shapes if float(Q.trace()) > 0]
    return sum((Q / s for s, Q in roots), start=torch.zeros_like(shapes[0])) * sum(s for s, _ in roots)


def segments(box: Tensor) -> list[Tensor]:
    return [torch.diag(torch.where(torch.arange(len(box)) == i, box.square(), 0.0)) for i in range(len(box))]


def test_outer_sums_are_the_formula_with_the_box_as_its_segments():
    a, b, box = draw(0, 3, 3), draw(1, 3, 2), draw(2, 3).abs()
    for factors in ([a], [a, b], [a, b, 0.0 * a]):
        for extra in (None, box, 0.0 * box):
            L = outer_sum(factors, extra)
            expected = summed([f @ f.mT for f in factors] + ([] if extra is None else segments(extra)))
            assert L.shape == (3, 3)
            torch.testing.assert_close(L @ L.mT, expected, rtol=1e-12, atol=1e-13)
    assert float(outer_sum([0.0 * a], 0.0 * box).abs().max()) == 0.0
    small = outer_sum([1e-120 * a], None)  # far below what squares of float64 can hold; still a factor of its size
    torch.testing.assert_close(small @ small.mT * 1e240, 0.0 * a, rtol=0, atol=1e3)
    both = outer_sum([torch.stack([a, 2 * a]), torch.stack([b, b])], torch.stack([box, 3 * box]))
    other = outer_sum([2 * a, b], 3 * box)
    torch.testing.assert_close(both[1] @ both[1].mT, other @ other.mT, rtol=1e-12, atol=1e-13)


def test_sizes_are_sums_of_absolute_terms():
    model, reach, u, gain = stated(3), draw(4, 2, 2).abs(), draw(5, 2, 2), draw(6, 2, 2)
    local = model.linearise(draw(7, 2, 2), u)
    found = sizes(model, local, reach, u, gain)
    for m in range(2):
        for i in range(2):
            value = 1.0 + abs(float(local.mean[m, i]))
            for j in range(2):
                value += abs(float(local.A[m, i, j])) * float(reach[m, j])
                pulled = sum(abs(float(gain[j, k])) * float(reach[m, k]) for k in range(2))
                value += abs(float(local.B[m, i, j])) * (abs(float(u[m, j])) + pulled)
            assert float(found[m, i]) == pytest.approx(value, rel=1e-14)


def recursion(model: Stated, x0: Tensor, inputs: Tensor, gains: list[Tensor]):
    """Of a sound tube, one member at a time, with shape matrices."""
    M, nx = model.num_members, model.nx
    x, Q, c = [x0] * M, [torch.zeros(nx, nx).double()] * M, x0
    centers, shapes, nominal, references = [x], [Q], [], [c]
    for u, K in zip(inputs, gains, strict=True):
        v = [u + K @ (x[m] - c) for m in range(M)]
        rest = []
        for m in range(M):
            size = 1 + x[m].abs() + v[m].abs().sum() + Q[m].trace().sqrt() + K.abs().sum()
            rest.append(model.share * size)
        closed = [model.A[m] + model.B[m] @ K for m in range(M)]
        Q = [
            summed([closed[m] @ Q[m] @ closed[m].T, torch.diag(model.variance[m]), *segments(rest[m])])
            for m in range(M)
        ]
        x = [model.A[m] @ x[m] + model.B[m] @ v[m] + model.c[m] for m in range(M)]
        c = torch.stack(x).mean(0)
        for table, values in ((centers, x), (shapes, Q), (nominal, v)):
            table.append(values)
        references.append(c)
    swap = lambda table: torch.stack([torch.stack(row) for row in table], 1)  # noqa: E731
    return swap(centers), swap(shapes), swap(nominal), torch.stack(references)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("varying", [False, True])
def test_sound_tubes_are_their_recursion(members, varying):
    model, x0, inputs = stated(1, members=members), draw(8, 2), draw(9, 4, 2)
    gain = 0.3 * (draw(10, 4, 2, 2) if varying else draw(10, 2, 2))
    tube = propagate(model, x0, inputs, gain)
    centers, shapes, nominal, references = recursion(model, x0, inputs, list(tube.gain))
    assert torch.equal(tube.gain, gain.expand(4, 2, 2))
    for found, expected in ((tube.center, centers), (tube.inputs, nominal), (tube.reference, references)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tube.shape, shapes, rtol=1e-9, atol=1e-15)
    assert (tube.steps, tube.num_members) == (4, members)
    H = draw(11, 3, 2)
    for k in range(5):
        for m in range(members):
            for i, row in enumerate(H):
                reach = row @ tube.center[m, k] + (row @ shapes[m, k] @ row).clamp_min(0).sqrt()
                assert float(tube.state_support(H)[m, k, i]) == pytest.approx(float(reach), rel=1e-7)
                if k < 4:
                    pulled = row @ tube.gain[k]
                    reach = row @ tube.inputs[m, k] + (pulled @ shapes[m, k] @ pulled).clamp_min(0).sqrt()
                    assert float(tube.input_support(H)[m, k, i]) == pytest.approx(float(reach), rel=1e-7)
    batch = propagate(model, torch.stack([x0, 2 * x0]), inputs, gain)
    torch.testing.assert_close(batch.shape[0], tube.shape)
    torch.testing.assert_close(batch.reference[0], tube.reference)
    torch.testing.assert_close(batch.center[1, :, 0], (2 * x0).expand(members, 2))


def test_paper_tubes_start_small_and_give_every_member_the_same_input():
    model, x0, inputs, gain = stated(1, mode="paper"), draw(8, 2), draw(9, 2, 2), 0.3 * draw(10, 2, 2)
    tube = propagate(model, x0, inputs, gain)
    assert START == 1e-6 and torch.equal(tube.factor[:, 0], START * torch.eye(2).double().expand(2, 2, 2))
    assert torch.equal(tube.inputs, inputs.expand(2, 2, 2))
    for m in range(2):
        closed = model.A[m] + model.B[m] @ gain
        first = summed([1e-12 * closed @ closed.T, torch.diag(model.variance[m])])
        second = summed([closed @ first @ closed.T, torch.diag(model.variance[m])])
        torch.testing.assert_close(tube.shape[m, 1:], torch.stack([first, second]), rtol=1e-9, atol=1e-15)


class Once(Stated):
    """Disturbed at the first step only."""

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        local = super().linearise(x, u)
        return replace(local, variance=local.variance * (x[..., :1] == 0.7))


def test_sound_tubes_widen_by_the_rounding_of_all_sizes():
    """Flat sets show it: across the one direction of A and B the set has the rounding's box alone."""
    direction, across = tensor([3.0, 4.0]), tensor([0.8, -0.6])
    A = torch.outer(direction, tensor([2.0, 0.0]))
    B = torch.outer(direction, tensor([0.0, 0.3]))
    c = tensor([0.5, -7.0])
    model = Stated(A[None], B[None], c[None], tensor([[0.0, 0.0]]))
    x0, inputs, gain = tensor([0.7, -11.0]), draw(2, 2, 2), draw(3, 2, 2)
    tube = propagate(model, x0, inputs, gain)
    assert ROUNDING == 1e-12

    def box(k: int, carried: Tensor) -> Tensor:
        x, factor = tube.center[0, k], tube.factor[0, k]
        reach = x.abs() + tube.reference[k].abs() + factor.abs().sum(-1)
        local = Linearisation(tube.center[0, k + 1], A, B, model.variance[0])
        return ROUNDING * (sizes(model, local, reach, tube.inputs[0, k], gain) + carried.abs().sum(-1))

    first = box(0, torch.zeros(2, 2).double())
    expected = (first.sum() * first).sqrt() * (1 + ROUNDING)
    torch.testing.assert_close(tube.factor[0, 1].norm(dim=-1), expected, rtol=1e-14, atol=0)
    W = tensor([9.0, 4.0])
    for sign in (1.0, -1.0):
        tube = propagate(Once(sign * A[None], sign * B[None], c[None], W[None]), x0, inputs, gain)
        carried = sign * (A + B @ gain) @ tube.factor[0, 1]
        assert float(tube.factor[0, 1].norm()) > 2.9
        second = box(1, carried)
        flat = (carried.norm() + second.sum()) * (across.square() * second).sum()
        assert float(across @ tube.shape[0, 2] @ across) == pytest.approx(float(flat), rel=1e-3, abs=0)
    calm = replace(model, share=0.5)  # R alone: every digit of the widening is seen
    tube = propagate(calm, x0, inputs[:1], gain)
    rest = 0.5 * (1 + x0.abs() + inputs[0].abs().sum() + gain.abs().sum())
    whole = rest + box(0, torch.zeros(2, 2).double()) + ROUNDING * rest
    torch.testing.assert_close(
        tube.factor[0, 1].norm(dim=-1), (whole.sum() * whole).sqrt() * (1 + ROUNDING), rtol=2e-15, atol=0
    )


def test_the_least_ellipsoid_around_a_box_has_its_corners_on_its_boundary():
    found = around_box(tensor([[0.5, 2.0, 3.0], [1.0, 0.0, 4.0]]))
    assert found.shape == (2, 3, 3)
    torch.testing.assert_close(found @ found.mT, torch.diag_embed(tensor([[0.75, 12.0, 27.0], [3.0, 0.0, 48.0]])))


@dataclass(frozen=True)
class Drawn(Stated):
    """With noise that is summed through the loop and scaled step by step."""

    def growth(self, k: int) -> float:
        return 1.0 + 0.5 * k


def test_noise_that_is_summed_is_kept_apart_and_scaled_at_each_step(monkeypatch):
    """S⁺ = (F S Fᵀ ⊕ box)(1 + ρ)², D⁺ = (F D Fᵀ + W)(1 + ρ)², Q = (S ⊕ g_k² D)(1 + ρ)², ρ = 0.01, box = R + ρ·sizes."""
    monkeypatch.setattr(core, "ROUNDING", 0.01)
    plain = stated(1, members=1, nu=1)
    model = Drawn(plain.A, plain.B, plain.c, 4 * plain.variance, plain.share)
    gain, grown = 0.3 * draw(10, 1, 2), 1.01**2
    tube = propagate(model, draw(8, 2), draw(9, 3, 1), gain)
    sure = drawn = torch.zeros(2, 2).double()
    for k in range(3):
        x, u, factor, closed = tube.center[:, k], tube.inputs[:, k], tube.factor[:, k], model.A[0] + model.B[0] @ gain
        local, rest = model.linearise(x, u), model.remainder(x, u, factor, gain)[0]
        reach = x.abs() + tube.reference[k].abs() + factor.abs().sum(-1)
        rest = rest + 0.01 * (sizes(model, local, reach, u, gain)[0] + (closed @ factor[0]).abs().sum(-1) + rest)
        sure = grown * summed([closed @ sure @ closed.T, *segments(rest)])
        drawn = grown * (closed @ drawn @ closed.T + torch.diag(model.variance[0]))
        shape = grown * summed([sure, (1.0 + 0.5 * (k + 1)) ** 2 * drawn])
        torch.testing.assert_close(tube.shape[0, k + 1], shape, rtol=1e-11, atol=1e-14)


@dataclass(frozen=True)
class Boxed(Stated):
    """With a remainder in two boxes, each of which gets an ellipsoid of its own."""

    def boxes(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        rest = self.remainder(x, u, factor, gain)
        return 0.25 * rest, 3.0 * rest


def test_boxes_get_their_least_ellipsoids_the_first_with_the_rounding(monkeypatch):
    """Q⁺ = (F Q Fᵀ ⊕ W ⊕ n diag(b₁ + ρ·sizes)² ⊕ n diag(b₂)²)(1 + ρ)², ρ = 0.01."""
    monkeypatch.setattr(core, "ROUNDING", 0.01)
    plain = stated(1, members=1, nu=1)
    model, gain = Boxed(plain.A, plain.B, plain.c, plain.variance, plain.share), 0.3 * draw(10, 1, 2)
    tube = propagate(model, draw(8, 2), draw(9, 3, 1), gain)
    for k in range(3):
        x, u, factor, closed = tube.center[:, k], tube.inputs[:, k], tube.factor[:, k], model.A[0] + model.B[0] @ gain
        local, rest, carried = model.linearise(x, u), model.remainder(x, u, factor, gain)[0], closed @ factor[0]
        reach = x.abs() + tube.reference[k].abs() + factor.abs().sum(-1)
        size = sizes(model, local, reach, u, gain)[0] + carried.abs().sum(-1) + 3.25 * rest
        boxes = [2 * torch.diag(side.square()) for side in (0.25 * rest + 0.01 * size, 3.0 * rest)]
        shape = 1.01**2 * summed([carried @ carried.T, torch.diag(model.variance[0]), *boxes])
        torch.testing.assert_close(tube.shape[0, k + 1], shape, rtol=1e-11, atol=1e-14)
