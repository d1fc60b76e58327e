"""Decisions, witnesses and boxes of the continuous class against loops over one vector at a time."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import gpytorch
import pytest
import torch
from test_safe_parameters import FAMILY, UNIT, generator, learned, planted, start, vector

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost._task import MonteCarloBound
from gpsafe.cost.base import CostInterval
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.models import GP
from gpsafe.policies.parametric import feedback_family
from gpsafe.rkhs import kernels
from gpsafe.safety import safe_parameters
from gpsafe.safety.safe_parameters import (
    SafeParameters,
    admit,
    box_upper,
    certified_boxes,
    lipschitz_boxes,
    sound_upper,
)
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_pendulum
from gpsafe.systems.task import Task

__all__ = ["learned"]  # a fixture


def rows(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def apart(first, second) -> torch.Tensor:
    """A distance: |Δoffset| and a little."""
    return (first.offset - second.offset.T).abs() + 0.01


def bisected(theta: torch.Tensor, member: torch.Tensor, rounds: int) -> tuple[float, torch.Tensor]:
    low, high = 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        if float(planted((member + middle * (theta - member))[None])) <= 0.2:
            low = middle
        else:
            high = middle
    return low, member + low * (theta - member)


@pytest.mark.parametrize("seed", range(6))
def test_every_decision_is_that_of_a_loop(seed):
    """Bound, then distance, then bisection towards the nearest member of the set as it was, in units of the family's box."""
    certified = rows([-0.3, 2.0], [0.4, 1.7])
    safe = start().add(certified, planted(certified), episode=1, bound="old", rule="bound") if seed % 2 else start()
    theta, rounds, distance = FAMILY.box.sample(8, generator(seed)), 5, apart if seed != 2 else None
    # Refused by the bound, and as good as known by the distance (the same k g) from one member, not from the other.
    theta = torch.cat([theta[:6], rows([-0.1, 6.0], [0.2, 3.4])])
    looked = []

    def upper(of: torch.Tensor) -> torch.Tensor:
        looked.append(len(of))
        return planted(of)

    options = {"family": FAMILY, "episode": 4, "bound": "planted", "rounds": rounds, "distance": distance}
    grown, found = admit(safe, theta, upper, **options)
    scale, witnesses = FAMILY.box.upper - FAMILY.box.lower, {}
    for i, proposal in enumerate(theta):
        value = float(planted(proposal[None]))
        through = {
            j: w.value + float(apart(FAMILY(safe.theta[j][None]), FAMILY(proposal[None])))
            for j, w in enumerate(safe.witnesses)
            if not math.isnan(w.value) and distance is not None
        }
        near = min(through, key=through.__getitem__, default=None)
        nearest = min(range(len(safe)), key=lambda j: float(((proposal - safe.theta[j]) / scale).norm()))
        assert float(found.upper[i]) == pytest.approx(value)
        if value <= 0.2:
            expected = ("bound", 1.0, proposal)
            witnesses[tuple(proposal.tolist())] = ("bound", value, None)
        elif near is not None and through[near] <= 0.2:
            expected = ("lipschitz", 1.0, proposal)
            witnesses[tuple(proposal.tolist())] = ("lipschitz", through[near], near)
        else:
            low, point = bisected(proposal, safe.theta[nearest], rounds)
            expected = ("", low, point)
            if low > 0:
                witnesses[tuple(point.tolist())] = ("bound", float(planted(point[None])), None)
        assert (found.rule[i], float(found.fraction[i])) == expected[:2]
        torch.testing.assert_close(found.fallback[i], expected[2], rtol=0, atol=1e-15)
    new = grown.witnesses[len(safe) :]
    assert grown.witnesses[: len(safe)] == safe.witnesses and len(new) == len(witnesses)
    for point, witness in zip(grown.theta[len(safe) :].tolist(), new, strict=True):
        rule, value, neighbour = witnesses[tuple(point)]
        assert (witness.rule, witness.neighbour, witness.episode, witness.bound) == (rule, neighbour, 4, "planted")
        assert witness.value == pytest.approx(value, abs=1e-14)
    left = sum(rule == "" for rule in found.rule)
    assert looked == [8, *[left] * (rounds if left else 0)] and found.calls == sum(looked)
    assert found.accepted.tolist() == [rule != "" for rule in found.rule]
    assert torch.equal(found.theta, theta) and grown.radius.shape == grown.theta.shape


@pytest.mark.parametrize(("count", "shown", "more"), [(20, 20, None), (23, 20, "and 3 more")])
def test_notebooks_show_twenty_members(count, shown, more):
    told = SafeParameters.initial(torch.arange(2.0 * count).double().reshape(count, 2), budget=0.2)._repr_html_()
    assert told.count("<td>given</td>") == shown and (more in told if more else "more" not in told)


def test_members_are_as_they_were_given():
    safe = start()
    assert len(safe) == 2 and bool(safe.values.isnan().all()) and not bool(safe.radius.any())
    assert [(w.episode, w.rule) for w in safe.witnesses] == [(0, "given")] * 2
    grown = safe.add(rows([0.1, 3.0]), rows(0.2), episode=3, bound="b", rule="lipschitz", neighbours=torch.tensor([1]))
    assert grown.values[2:].tolist() == [0.2] and grown.witnesses[2].neighbour == 1  # the budget itself is within
    for bad in (0.2 + 1e-12, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"values <= 0\.2"):
            safe.add(rows([0.1, 3.0], [0.2, 3.0]), rows(0.1, bad), episode=3, bound="b", rule="bound")
    _, plain = admit(safe, rows([0.9, 3.0]), planted, family=FAMILY, episode=1, bound="b")
    assert plain.calls == 1 + 5  # rounds, if not said
    _, nothing = admit(safe, torch.zeros(0, 2).double(), lambda of: 1 / 0, family=FAMILY, episode=1, bound="b")
    assert (nothing.fallback.shape, nothing.fraction.shape, nothing.upper.shape) == ((0, 2), (0,), (0,))
    asked = []
    _, easy = admit(
        safe, rows([-0.5, 2.0]), lambda of: asked.append(len(of)) or planted(of), family=FAMILY, episode=1, bound="b"
    )
    assert (asked, easy.calls, easy.rule) == ([1], 1, ("bound",))  # nothing is refused: nothing more is asked
    options = {"family": FAMILY, "episode": 1, "bound": "b", "distance": lambda first, second: 1 / 0}
    assert admit(grown, rows([-0.5, 2.0]), planted, **options)[1].rule == ("bound",)  # nor any distance
    assert admit(safe, rows([0.9, 3.0]), planted, **options)[1].rule == ("",)  # S_0 has no values to add it to
    for budget in (-1e-9, math.nan):
        with pytest.raises(ValueError, match="budget"):
            SafeParameters.initial(rows([0.1, 3.0]), budget=budget)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite radius"):
            safe.with_boxes(rows([0.1, bad], [0.1, 0.1]))
    with pytest.raises(ValueError, match="theta of shape"):
        SafeParameters.initial(vector(0.1, 3.0), budget=0.2)
    boxed = grown.with_boxes(rows([0.125, 0.125], [0.0, 0.0], [0.3, 0.1]))
    boxed = boxed.with_boxes(rows([0.125, 0.25], [0.1, 0.1], [0.4, 0.0]))
    assert boxed.radius.tolist() == [[0.125, 0.25], [0.1, 0.1], [0.3, 0.1]]
    asked = rows([-0.625, 1.25], [-0.63, 1.5], [0.3, 3.05], [0.3, 3.2], [-0.5, 3.0])
    assert boxed.covers(asked).tolist() == [True, False, True, False, False]
    assert boxed.nearest(rows([0.0, 2.4]), rows(1.0, 1.0)).tolist() == [1]
    assert boxed.nearest(rows([0.0, 2.4]), rows(0.1, 5.0)).tolist() == [2]
    with pytest.raises(ValueError, match="radius of shape"):
        boxed.with_boxes(torch.zeros(2, 2).double())


def test_each_call_of_a_monte_carlo_bound_has_a_seed_of_its_own(learned):
    plant, confidence, _ = learned
    seeds = []

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Counting(MonteCarloBound):
        name = "counting"
        sound = True

        def evaluate(self, confidence, policies):
            seeds.append(self.seed)
            value = torch.full((policies.num,), 0.25, dtype=torch.float64)
            return CostInterval(0 * value, value, True, self.name)

    upper = sound_upper(Counting(task=Task.of(plant), seed=7, calls=3), confidence, FAMILY)
    for _ in range(3):
        assert upper(rows([0.1, 3.0], [0.2, 3.0])).tolist() == [0.25, 0.25]
    assert seeds == [7, 7 + 1_000_003, 7 + 2 * 1_000_003]
    with pytest.raises(ValueError, match="at most 3 calls"):
        upper(rows([0.1, 3.0]))


def test_the_first_certified_shape_of_the_list_is_taken(learned, monkeypatch):
    _, confidence, dp = learned
    asked = []

    def value(dp, confidence, family, center, radius):
        asked.append((center, radius))
        return 0.1 + radius[:, 0] + center[:, 0]

    monkeypatch.setattr(safe_parameters, "box_upper", value)
    safe = SafeParameters.initial(rows([0.0, 3.0], [0.3, 3.0], [-0.2, 2.0], [0.05, 2.0]), budget=0.2)
    shapes = rows([0.4, 2.0], [0.1, 0.5], [0.05, 1.0], [0.01, 0.1])
    boxed, looked = certified_boxes(safe, dp, confidence, family=FAMILY, index=torch.tensor([3, 0, 1]), shapes=shapes)
    assert boxed.radius.tolist() == [[0.1, 0.5], [0.0, 0.0], [0.0, 0.0], [0.05, 1.0]]
    assert looked == 12
    ((center, radius),) = asked
    torch.testing.assert_close(center, safe.theta[[3, 0, 1]].repeat_interleave(4, 0))
    torch.testing.assert_close(radius, shapes.repeat(3, 1))


def test_lipschitz_boxes_end_where_value_plus_distance_reaches_the_budget():
    """Planted: D = 0.01 + |Δ(k g)|, largest at a corner of the box."""
    theta = rows([0.1, 3.0], [0.2, 2.0], [0.3, 3.0])
    safe = start().add(theta, rows(0.1, 0.15, 0.2), episode=1, bound="b", rule="bound")
    shape = vector(0.25, 0.5)
    found = lipschitz_boxes(safe, FAMILY, apart, shape=shape, rounds=25)
    assert found.shape == (5, 2) and not bool(found[:2].any()) and not bool(found[4].any())  # S_0; no room beside 0.01
    for i, ((g, k), room) in enumerate(zip(theta[:2].tolist(), (0.09, 0.04), strict=True)):
        share = float(found[2 + i, 0]) / 0.25
        assert torch.equal(found[2 + i], share * shape)

        def worst(s, g=g, k=k):
            return max(abs((g + a * s * 0.25) * (k + b * s * 0.5) - g * k) for a in (-1, 1) for b in (-1, 1))

        assert 0.01 < share < 1 and worst(share) <= room + 1e-12 < worst(share + 2**-24) + 1e-12
        coarse = float(lipschitz_boxes(safe, FAMILY, apart, shape=shape, rounds=3)[2 + i, 0]) / 0.25
        assert (8 * coarse).is_integer() and worst(coarse) <= room < worst(coarse + 1 / 8)
    whole = lipschitz_boxes(safe, FAMILY, lambda a, b: 0.0 * apart(a, b), shape=shape)
    assert bool((whole[2:] >= (1 - 2**-29) * shape).all())  # value = budget and D = 0: all of the shape
    for nothing in (-1.0, torch.nan, torch.inf):  # no distance: it must not widen a box
        assert not bool(lipschitz_boxes(safe, FAMILY, lambda a, b, v=nothing: v + 0.0 * apart(a, b), shape=shape).any())
    two = feedback_family(
        -torch.ones(4).double(),
        torch.ones(4).double(),
        input_box=Box(-torch.ones(2).double(), torch.ones(2).double()),
        nx=1,
    )
    with pytest.raises(ValueError, match="one input"):
        lipschitz_boxes(safe, two, apart, shape=torch.ones(4).double())


def test_the_program_of_a_box_is_given_wider_ranges_everywhere(learned, monkeypatch):
    """Known part: |∂p/∂u| times the spread of the inputs; kernel metric and slack: inputs that reach that much further."""
    plant, confidence, dp = learned
    seen = []
    monkeypatch.setattr(
        RobustDP,
        "upper",
        lambda self, enclosure: seen.append(enclosure) or torch.full((len(enclosure.z),), 0.25).double(),
    )
    center, radius = rows([0.3, 5.0], [0.55, 2.0], [0.8, 3.0]), rows([0.02, 0.2], [0.05, 0.5], [0.03, 0.1])
    small = replace(dp, chunk=2 * dp.grid.num)  # two policies at a time, then one
    values = box_upper(small, confidence, FAMILY, center, radius)
    assert [len(e.z) for e in seen] == [2, 1]
    assert bool((values >= 0.25).all()) and bool((values <= 0.25 + 2e-9).all())
    policies = FAMILY(center)
    plain = dp.enclosure(confidence, policies).refine(confidence)
    x, r = plain.centers, plain.radius
    spread = FAMILY.spread(center, radius, x=x, x_radius=r)
    _, _, high = policies.slopes((x - r).unsqueeze(0), (x + r).unsqueeze(0))
    assert bool((high < 1).any()) and bool((high == 1).any())
    B = float(
        plant.known(torch.zeros(1, 1).double(), torch.ones(1, 1).double()) - plant.known(*torch.zeros(2, 1, 1).double())
    )
    for name, expected in (
        ("known_radius", plain.known_radius + abs(B) * spread),
        ("metric", None),
        ("slack", None),
        ("low", plain.low),
        ("known", plain.known),
    ):
        found = torch.cat([getattr(e, name) for e in seen])
        if expected is None:
            reach = high * policies.gain.abs()[:, None, :, 0] * r + spread
            metric = kernels.metric_over_box(plant.kernels[0], torch.cat([r.expand(3, *r.shape), reach], -1)).unsqueeze(
                -1
            )
            expected = metric if name == "metric" else float(plant.rkhs_norm[0]) * metric
        rounded = 0.9e-12 if name in ("known_radius", "slack") else 0.0  # outwards, but for what is no upper end
        assert name in ("low", "known") or bool((found - expected >= (rounded - 1e-15) * expected).all())
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=2e-12)


def test_boxes_of_policies_on_two_states(monkeypatch):
    plant, B = reference_pendulum(), rows([0.05], [-0.2])
    known = AffineKnown(rows([1.0, 0.1], [-0.3, 0.9]), B, rows(0.3, -0.4))
    model = GP.create(plant.kernels, 1e-4, nx=2, nu=1, noise_std=plant.noise_std, outputs=plant.outputs, prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.1, delta=0.1)).update(
        model
    )
    dp, family = (
        RobustDP(Grid(plant.state_box, (5, 4)), Task.of(plant)),
        feedback_family(*rows([-2.0] * 3, [2.0] * 3), input_box=UNIT, nx=2),
    )
    seen = []
    monkeypatch.setattr(RobustDP, "upper", lambda self, wider: seen.append(wider) or torch.zeros(len(wider.z)).double())
    center, radius = rows([0.1, -0.5, 0.3]), rows([0.05, 0.02, 0.1])
    box_upper(dp, confidence, family, center, radius)
    plain, x = dp.enclosure(confidence, family(center)), seen[0].centers
    spread = family.spread(center, radius, x=x, x_radius=seen[0].radius)
    torch.testing.assert_close(seen[0].known_radius, plain.known_radius + spread * B.T.abs(), rtol=1e-11, atol=2e-12)


def test_known_parts_that_bend_in_the_input_and_other_kernels_are_refused(learned):
    plant, confidence, dp = learned

    class Bent(AffineKnown):
        hessian_bound = rows([0.0, 0.0], [0.0, 0.1])[None]

    options = (rows([0.3, 3.0]), rows([0.1, 0.1]))
    known = Bent(*(getattr(plant.known, name) for name in ("A", "B", "c")))
    bent = SimpleNamespace(model=replace(confidence.model, prior=known))
    with pytest.raises(ValueError, match="affine in u"):
        box_upper(dp, bent, FAMILY, *options)

    class BentInTheState(AffineKnown):
        hessian_bound = rows([1e-3, 0.0], [0.0, 0.0])[None]

    state_only = BentInTheState(known.A, known.B, known.c)
    bent = ConfidenceSet(confidence.bound).update(replace(confidence.model, prior=state_only))
    assert float(box_upper(dp, bent, FAMILY, *options)) <= dp.total_ceiling
    wave = gpytorch.kernels.PeriodicKernel().double()
    model = GP.create(wave, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known, mode="theory")
    with pytest.raises(ValueError, match=r"stationary kernels|kernels (whose|with)"):
        box_upper(dp, ConfidenceSet(confidence.bound).update(model), FAMILY, *options)
