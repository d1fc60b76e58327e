"""What a pruned session does beside the robust program: probes, windows, screen and lazy maximum, by loops and by hand."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from cost_cases import generator, make_case

from gpsafe.confidence import ConfidenceSet
from gpsafe.cost import pruned
from gpsafe.cost.grid import Grid
from gpsafe.cost.pruned import Probe, PrunedSession, probe, windowed
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.sets import Box
from gpsafe.systems.base import HingeCost, sample_noise
from gpsafe.systems.task import Task

tensor = partial(torch.tensor, dtype=torch.float64)


@pytest.fixture(scope="module")
def line():
    return make_case("1d", (4, 12))


def test_probes_are_means_over_paths_of_the_worst_pattern():
    """η = 0, ±1, ±sign(x_1), ±sign(x_2) at the edge of the set, `slack` cells added, the same noise for every policy."""
    case = make_case("pendulum", (3,))
    cost = HingeCost(tensor([1.0, 0.5]), -3.0, 6.0)
    task = Task.of(case.system).with_(horizon=4, cost=cost, noise_std=tensor([0.02, 0.05]))
    grid = Grid(Box(tensor([-3.0, -6.0]), tensor([3.0, 6.0])), (60, 40))
    F, policies = case.confidence, case.choose(3, 9)
    found = probe(RobustDP(grid, task), F, policies, generator=generator(5), paths=2, slack=0.75)
    noise = sample_noise(task.noise_std, (4, 1, 14), generator(5))
    patterns = [
        lambda x: 0.0, lambda x: 1.0, lambda x: -1.0, lambda x: math.copysign(1.0, x[0]) if x[0] else 0.0,
        lambda x: -math.copysign(1.0, x[0]) if x[0] else 0.0, lambda x: math.copysign(1.0, x[1]) if x[1] else 0.0,
        lambda x: -math.copysign(1.0, x[1]) if x[1] else 0.0,
    ]  # fmt: skip
    for p in range(2):
        own, costs, visited, width = case.choose((3, 9)[p]), [], [], 0.0
        for k, pattern in enumerate(patterns):
            mean = 0.0
            for n in range(2):
                x = task.initial_state
                for t in range(4):
                    visited.append(x)
                    mean += float(cost(x)) / 2
                    u = own(x.reshape(1, 1, 2)).reshape(-1)
                    low, high = F.bounds(torch.cat([x, u])[None])
                    eta = pattern(x.tolist())
                    half = (high - low)[0] / 2
                    width += float(half.norm()) / (4 * 14)
                    residual = F.model.embed((low + high)[0] / 2 + eta * half)
                    x = F.model.prior(x, u) + residual + 0.75 * eta * grid.size + noise[t, 0, 2 * k + n]
            costs.append(mean)
        assert float(found.cost[p]) == pytest.approx(max(costs), rel=1e-9)
        assert max(costs) > sorted(costs)[-2] + 1e-3
        every = torch.stack(visited)  # x_0 … x_{T−1}: what x_T costs is nobody's business
        torch.testing.assert_close(found.lower[p], every.amin(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.upper[p], every.amax(0), rtol=1e-9, atol=1e-12)
        assert float(found.width[p]) == pytest.approx(width, rel=1e-9)


def test_windows_are_rounded_outwards_to_steps_and_shared():
    grid = Grid(Box(tensor([-1.0, 0.0]), tensor([1.0, 3.0])), (100, 80))
    start = tensor([0.05, 1.4])
    task = Task(start, 3, HingeCost(tensor([1.0, 0.0]), 0.0, 1.0), 0.1, tensor([0.01, 0.01]))
    g = generator(0)
    low = torch.rand(30, 2, dtype=torch.float64, generator=g) * (grid.box.upper - grid.box.lower) * 0.9 + grid.box.lower
    high = low + torch.rand(30, 2, dtype=torch.float64, generator=g) * 0.4
    low[0], high[0] = tensor([-9.0, 0.5]), tensor([9.0, 0.6])
    low[1], high[1] = tensor([4.0, 7.0]), tensor([5.0, 8.0])  # outside, but the start is not
    for options in ({}, {"pad": 0.0, "margin": 0, "step": 1}, {"pad": 0.3, "margin": 2, "step": 4}):
        pad, margin, step = (options.get(k, v) for k, v in (("pad", 0.15), ("margin", 8), ("step", 8)))
        expected: dict[tuple, list[int]] = {}
        for p in range(30):
            cells = []
            for j, n in enumerate(grid.cells):
                size, origin = float(grid.size[j]), float(grid.box.lower[j])
                a, b = min(float(low[p, j]), float(start[j])), max(float(high[p, j]), float(start[j]))
                extra = pad * (b - a) + margin * size
                first = math.floor((a - extra - origin) / size / step) * step
                last = math.floor((b + extra - origin) / size / step) * step + step - 1
                cells += [(min(max(first, 0), n - 1), min(last, n - 1))]
            expected.setdefault(tuple(cells), []).append(p)
        groups = windowed(RobustDP(grid, task), low, high, **options)
        assert len(groups) == len(expected) > 3
        for dp, index in groups:
            first = ((dp.grid.box.lower - grid.box.lower) / grid.size).round().long().tolist()
            cells = tuple((a, a + n - 1) for a, n in zip(first, dp.grid.cells, strict=True))
            assert expected[cells] == index.tolist() and dp.task is task


class Scripted:
    """Replaces probes and bounds of a session by given numbers, and writes down what was asked."""

    def __init__(self, monkeypatch, line, **options):
        self.asked: list[tuple[bool, list[int]]] = []
        self.values: dict[bool, list[float]] = {}
        monkeypatch.setattr(pruned, "probe", lambda *_, **__: self.guess)
        monkeypatch.setattr(PrunedSession, "_bound", self._bound)
        F = line.confidence
        self.sets = [ConfidenceSet(F.bound, F.generations[:n]) for n in (1, 2, 3)]
        policies = line.policies.select(torch.arange(6))
        dp = RobustDP(Grid(line.system.state_box, (20,)), Task.of(line.system))
        self.session = PrunedSession(dp, self.sets[0], policies, generator(1), **options)

    def say(self, cost, width, bounds=None, exploration=None):
        box = torch.zeros(6, 1).double()
        self.guess = Probe(tensor(cost), box - 1.0, box + 1.0, tensor(width))
        self.values = {False: bounds or [9.0] * 6, True: exploration or [9.0] * 6}

    def _bound(self, whole, index, *, exploration):
        self.asked.append((exploration, index.tolist()))
        return tensor([self.values[exploration][i] for i in index.tolist()])


def test_bounds_are_kept_until_the_probe_has_shrunk(monkeypatch, line):
    """d = 0.2. Evaluated: who passes the screen (cost ≤ d), has a width ≤ 0.9 of the last one, and is not certified: 0.2 is."""
    script = Scripted(monkeypatch, line)
    session, every = script.session, torch.tensor([5, 0, 1, 2, 3])
    script.say([0.0, 0.1, 0.2, 0.2001, 0.0, 0.0], [1.0] * 6, [0.2, 0.5, 0.3, 9.0, 9.0, 0.7])
    assert session.upper(every).tolist() == [0.7, 0.2, 0.5, 0.3, math.inf]
    assert session.log == [{"screened": 1, "kept": 0, "evaluated": 4, "refined": 0, "refreshed": 0}]
    assert session.upper(every).tolist() == [0.7, 0.2, 0.5, 0.3, math.inf]  # nothing new
    assert session.log == [{"screened": 2, "kept": 4, "evaluated": 4, "refined": 0, "refreshed": 0}]
    session = session.update(script.sets[1])
    script.say([0.0, 0.0, 0.0, 0.1, 0.0, 0.3], [0.1, 0.9, 0.8, 0.5, 1.0, 0.1], [0.01, 0.6, 0.1, 0.15, 9.0, 0.01])
    assert session.upper(every).tolist() == [0.7, 0.2, 0.5, 0.1, 0.15]
    assert session.log[1] == {"screened": 1, "kept": 0, "evaluated": 3, "refined": 0, "refreshed": 0}
    session = session.update(script.sets[2])
    script.say([0.0] * 6, [0.1, 0.82, 0.1, 0.1, 1.0, 0.9], [0.0] * 6)
    assert session.upper(every).tolist() == [0.0, 0.2, 0.5, 0.1, 0.15]  # 0.82 > 0.9 · 0.9
    assert session.log[2] == {"screened": 0, "kept": 1, "evaluated": 1, "refined": 0, "refreshed": 0}
    assert [index for _, index in script.asked if index] == [[5, 0, 1, 2], [1, 2, 3], [5]]
    assert session.upper(torch.tensor([])).shape == (0,) and len(session.memo.probes) == 1
    session.memo.falsified = "somewhere"
    assert session.upper(every).tolist() == [math.inf] * 5


def test_the_largest_exploration_value_is_refreshed_until_it_is_fresh(monkeypatch, line):
    script = Scripted(monkeypatch, line, batch=1)
    session, every = script.session, torch.arange(6)
    script.say([0.0] * 6, [1.0, 3.0, 2.0, 6.0, 5.0, 4.0], exploration=[5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    assert session.exploration(every).tolist() == [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]
    assert script.asked == [(True, [3, 4, 5, 1, 2, 0])] and session.log[-1]["refreshed"] == 6  # by probed width
    session, script.asked = session.update(script.sets[1]), []
    script.say([0.0] * 6, [1.0] * 6, exploration=[1.0, 3.5, 2.9, 9.0, 9.0, 9.0])
    assert session.exploration(every).tolist() == [1.0, 3.5, 3.0, 2.0, 1.0, 0.5]
    assert script.asked == [(True, [0]), (True, [1])] and session.log[-1]["refreshed"] == 2
    session, script.asked = session.update(script.sets[2]), []
    object.__setattr__(session, "batch", 2)  # a copy by `replace` knows no bounds
    script.say([0.0] * 6, [1.0] * 6, exploration=[0.0, 0.1, 2.5, 9.0, 0.2, 0.3])
    assert session.exploration(torch.tensor([0, 1, 2, 3])).tolist() == [1.0, 0.1, 2.5, 2.0]
    assert script.asked == [(True, [1, 2])]


def test_candidates_are_those_of_the_widest_probes(monkeypatch, line):
    script = Scripted(monkeypatch, line, candidates=2)
    script.say([0.0] * 6, [1.0, 3.0, 2.0, 6.0, 5.0, 4.0], exploration=[5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    found = script.session.exploration(torch.tensor([0, 1, 2, 5]))
    assert found.tolist() == [-math.inf, 4.0, -math.inf, 0.5] and script.asked == [(True, [5, 1])]


def test_bounds_are_those_of_the_windows_rounded_up_and_regions_widen_them(line):
    policies = line.policies.select(torch.arange(0, 81, 20))
    dp = RobustDP(Grid(line.system.state_box, (97,)), Task.of(line.system))
    region = (tensor([[-0.9]] * 5), tensor([[0.4]] * 5))
    session = PrunedSession(dp, line.confidence, policies, generator(1), region=region, slack=0.25)
    own, guess = probe(dp, line.confidence, policies, generator=generator(1), slack=0.25), session.probe()
    assert torch.equal(guess.lower, own.lower.clamp_max(-0.9)) and torch.equal(guess.upper, own.upper.clamp_min(0.4))
    assert torch.equal(guess.cost, own.cost) and session.probe() is guess and len(session.log) == 1
    index = torch.tensor([4, 1])
    found = {name: session._bound(session.dp, index, exploration=name) for name in (False, True)}
    for i, p in enumerate(index.tolist()):
        ((window, _),) = windowed(dp, guess.lower[p : p + 1], guess.upper[p : p + 1])
        enclosure = window.enclosure(line.confidence, policies.select([p])).refine(line.confidence)
        std = line.confidence.model.posterior(enclosure.z)[1].norm(dim=-1)
        for name, value in ((False, window.upper(enclosure)), (True, window.exploration(enclosure, std))):
            said = (
                float(value[0]) * (1 + 1e-9) + 1e-9 if name else float(value[0])
            )  # a bound of the cost is rounded already
            assert float(found[name][i]) == pytest.approx(said, rel=1e-11, abs=1e-13)
    assert session.memo.falsified is None and session.falsified() is None
    with pytest.raises(ValueError, match=r"shrink in \(0, 1\]"):
        dataclasses.replace(session, shrink=1.0001)
    assert dataclasses.replace(session, shrink=1.0).shrink == 1.0


def test_a_point_at_which_the_set_is_empty_is_kept(line):
    narrow = dataclasses.replace(line.confidence.bound, rkhs_norm=1e-3)
    empty = ConfidenceSet(narrow, line.confidence.generations)
    dp = RobustDP(Grid(line.system.state_box, (40,)), Task.of(line.system).with_(budget=20.0))
    session = PrunedSession(dp, empty, line.policies.select([3, 40]), generator(1))
    assert session.upper(torch.tensor([0])).tolist() == [math.inf]
    first = session.memo.falsified
    assert first is not None and session.falsified() is first
    session.upper(torch.tensor([1]))
    assert session.falsified() is first
