"""ActSafe keeps its promises on the first reference system, and says so when an assumption is false."""

from dataclasses import replace

import pytest
import torch

from gpsafe import AffineKnown
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import ConfidenceSet, Constant, Falsification, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.session import DPSession
from gpsafe.models import GP
from gpsafe.planning.explore import sufficient_episodes
from gpsafe.rkhs import grid as regular_grid
from gpsafe.rkhs import kernels
from gpsafe.rkhs.kernels import cross
from gpsafe.safety.safe_set import PolicyGap, kernels_of, policy_gap
from gpsafe.sets import Box
from gpsafe.systems.reference import reference_1d, reference_1d_policies
from gpsafe.systems.task import Task


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def algorithm():
    system = reference_1d()
    policies, initial = reference_1d_policies()
    model = GP.create(system.kernels, 1e-4, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    dp = RobustDP(
        Grid(Box(vector(-1.0), vector(1.5)), (400,)),
        Task.of(system),
    )
    return ActSafe(system, policies, initial.tolist(), model, bound, dp, episodes=8, threshold=0.3)


@pytest.fixture(scope="module")
def run(algorithm):
    return algorithm.run(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def truth(algorithm):
    dp = algorithm.cost_bound
    enclosure = dp.enclosure(ConfidenceSet(algorithm.bound).update(algorithm.model), algorithm.policies)
    return dp.lower(enclosure.with_residual(algorithm.system.residual_fn(enclosure.z)))


def test_safe_set_expands_far_beyond_the_initial_one_and_stays_safe(run, truth, algorithm):
    sizes = [len(s) for s in run.safe_sets]
    assert sizes[0] == 5 and sizes[-1] >= 45
    assert all(set(a.witnesses) <= set(b.witnesses) for a, b in zip(run.safe_sets, run.safe_sets[1:], strict=False))
    assert bool((truth[run.safe_set.members] <= algorithm.system.budget).all())
    assert run.falsified is None and all(e.cost == 0.0 for e in run.episodes)


def test_expansion_is_followed_by_exploitation(run):
    phases = [e.phase for e in run.episodes]
    assert phases == sorted(phases, key=["expand", "exploit"].index) and "exploit" in phases
    last = run.episodes[-1]
    assert last.policy == int(run.safe_sets[-1].members.max())  # the reward is x: the highest certified set-point


def test_every_executed_policy_was_a_member_when_it_ran(run):
    assert all(e.policy in s for e, s in zip(run.episodes, run.safe_sets[1:], strict=True))


@pytest.mark.parametrize("change", [{"horizon": -1}, {"ceiling": -0.5}])
def test_a_gap_of_a_shorter_or_cheaper_task_is_refused(algorithm, change):
    task, push = algorithm.cost_bound.task, torch.zeros(algorithm.policies.num, algorithm.policies.num).double()
    own = PolicyGap(push, task.horizon, task.cost.ceiling)
    assert algorithm.with_(distance=own).distance is own
    other = replace(own, **{name: getattr(own, name) + less for name, less in change.items()})
    with pytest.raises(ValueError, match="PolicyGap of T >="):
        algorithm.with_(distance=other)


@pytest.mark.parametrize(("change", "told"), [({"noise_std": 100.0}, "noise_std <="), ({"rkhs_norm": 0.5}, "norms >=")])
def test_a_gap_of_a_noisier_plant_or_of_smaller_norms_is_refused(algorithm, change, told):
    """With a hundredfold σ all 81 policies were admitted, 23 of them unsafe."""
    plant, policies = reference_1d(), algorithm.policies
    parts = {"rkhs_norm": plant.rkhs_norm, "noise_std": plant.noise_std}

    def gap(**factors: float) -> PolicyGap:
        scaled = {name: factors.get(name, 1.0) * part for name, part in parts.items()}
        about = {"outputs": plant.outputs, "horizon": plant.horizon, "ceiling": plant.cost.ceiling}
        return policy_gap(policies, plant.known, plant.kernels, **scaled, **about)

    assert algorithm.with_(distance=gap()).unsound is None
    assert algorithm.with_(distance=gap(noise_std=0.5, rkhs_norm=2.0)).unsound is None  # larger than need be
    with pytest.raises(ValueError, match=f"ActSafe: expected a PolicyGap of {told}"):
        algorithm.with_(distance=gap(**change))


@pytest.mark.parametrize("change", ["policies", "others", "kernels", "outputs", "known"])
def test_a_gap_of_other_policies_or_of_another_model_is_refused(algorithm, change):
    """Of 81 times one policy the gap is 0: with it all 81 of the class were admitted, 23 of them unsafe."""
    plant, policies = reference_1d(), algorithm.policies
    one = policies.select(torch.zeros(policies.num, dtype=torch.long))
    longer = [kernels.rbf([50.0, 50.0]) for _ in plant.kernels]
    still = AffineKnown(torch.eye(1), torch.zeros(1, 1), torch.zeros(1))
    about = {"rkhs_norm": plant.rkhs_norm, "noise_std": plant.noise_std, "horizon": plant.horizon}
    about |= {"ceiling": plant.cost.ceiling, "outputs": plant.outputs}
    parts = {"policies": policies, "known": plant.known, "kernel": plant.kernels, **about}
    assert algorithm.with_(distance=policy_gap(**parts)).unsound is None
    wrong = {"policies": {"policies": one}, "others": {"others": one}, "kernels": {"kernel": longer}}
    wrong |= {"outputs": {}, "known": {"known": still}}
    gap = policy_gap(**{**parts, **wrong[change]})
    if change == "outputs":
        gap = replace(gap, kernels=kernels_of([1], plant.kernels))
    with pytest.raises(ValueError, match="ActSafe: expected a PolicyGap of"):
        algorithm.with_(distance=gap)


def test_same_seed_same_run(algorithm, run):
    again = algorithm.with_(episodes=3).run(0)  # an integer is a seed
    assert all(torch.equal(a.states, b.states) for a, b in zip(again.episodes, run.episodes, strict=False))


def test_a_run_until_something_is_certified_is_the_first_part_of_the_whole_one(algorithm, run):
    wanted = len(run.safe_sets[2])
    short = algorithm.run(0, until=lambda safe: len(safe) >= wanted)
    count = next(k for k, safe in enumerate(run.safe_sets) if len(safe) >= wanted)
    assert [s.witnesses.keys() for s in short.safe_sets] == [s.witnesses.keys() for s in run.safe_sets[: count + 1]]
    assert [e.policy for e in short.episodes] == [e.policy for e in run.episodes[: count - 1]]


def test_norm_bound_far_too_small_is_falsified_and_stops_the_run(algorithm):
    wrong = Mixture(rkhs_norm=0.05, subgaussian=0.001, delta=0.1, unchecked=True)
    run = algorithm.with_(bound=wrong, unchecked=True).run(torch.Generator().manual_seed(0))
    assert run.falsified is not None and run.falsified.lower > run.falsified.upper
    assert "assumption" in str(run.falsified) and len(run.episodes) < algorithm.episodes


class Looking(DPSession):
    """Meets an empty F_n in the second episode, where it asks for the exploration of members: nobody looked there before."""

    __slots__ = ()

    def exploration(self, index):
        if len(self.confidence.generations) == 2:
            EMPTY.append(Falsification((0.9, 0.1), 0, 1.0, -1.0))
        return super().exploration(index)

    def falsified(self):
        return EMPTY[0] if EMPTY else super().falsified()


EMPTY: list[Falsification] = []


def test_no_policy_flies_once_the_decision_for_it_has_met_an_empty_set(algorithm):
    """Old bounds rest on the false assumption, too. It was flown as guaranteed, and the refutation was read after it."""
    dp = algorithm.cost_bound

    def start(confidence):
        EMPTY.clear()
        first = dp.enclosure(confidence, algorithm.policies).refine(confidence)
        return Looking(dp, confidence, first)

    watched = algorithm.with_(start=start)
    run = watched.run(0)
    assert run.falsified is EMPTY[0] and len(run.episodes) == 1 and len(run.safe_sets) == 2
    learner = watched.with_(seed=0)
    learner.tell(*learner.rollout(learner.ask()))
    assert learner.logger.rows[0]["guaranteed"]
    for _ in range(2):
        with pytest.raises(ValueError, match="expected F_n that is not empty"):
            learner.ask()
    assert len(learner.standing.safe_sets) == 2
    assert "F_n is empty" in str(learner.falsified) and "falsified" in repr(learner)
    EMPTY.clear()
    assert watched.with_(seed=0).learn(3).told == 1  # it ends there, as after an episode that refutes something


def test_zero_width_certifies_an_unsafe_policy(algorithm, truth):
    """Control: without the confidence width S_n is not safe."""
    heuristic = Constant(rkhs_norm=4.47, subgaussian=0.01, delta=0.1, value=1e-6)
    with pytest.raises(ValueError, match="sound confidence bound"):
        algorithm.with_(bound=heuristic)
    run = algorithm.with_(bound=heuristic, episodes=1, unchecked=True).run(torch.Generator().manual_seed(0))
    assert bool((truth[run.safe_set.members] > algorithm.system.budget).any())
    assert not run.confidence.sound and run.unsound is not None and "constant" in run.unsound


def test_unsound_cost_bounds_are_refused(algorithm):
    class Guess:
        name, sound = "guess", False

    with pytest.raises(ValueError, match="sound cost bound"):
        algorithm.with_(cost_bound=Guess())


def test_a_session_of_other_policies_is_refused(algorithm):
    """As many of them, all harmless: 81 of 81 were "certified", and one that costs 14 of a budget of 0.2 was flown."""
    own, dp = algorithm.policies, algorithm.cost_bound
    harmless = replace(own, offset=own.offset[:1].expand_as(own.offset), gain=own.gain[:1].expand_as(own.gain))
    for others in (harmless, own.select(torch.arange(80))):
        other = algorithm.with_(start=lambda confidence, others=others: DPSession.start(dp, confidence, others))
        with pytest.raises(ValueError, match="session: expected the policies of the run"):
            other.run(0)
    same = replace(own, offset=own.offset.clone())
    assert algorithm.with_(start=lambda confidence: DPSession.start(dp, confidence, same), episodes=1).run(0).episodes


def test_sufficient_episodes_is_finite_huge_and_monotone(algorithm):
    points = regular_grid(vector(-1.0, -1.0), vector(1.5, 1.0), (12, 6))
    eigenvalues = torch.linalg.eigvalsh(cross(algorithm.model.kernels[0], points, points)).clamp_min(0)
    common = {"beta_of": 8.0, "horizon": 20, "ceiling": 1.0, "noise_std": vector(0.01), "prior_std": vector(0.1),
              "regularizer": 1e-4, "domain_eigenvalues": eigenvalues, "outputs": 1}  # fmt: skip
    loose, tight = (sufficient_episodes(epsilon=e, **common) for e in (1.0, 0.1))
    assert 1e6 < loose < tight < float("inf")


class Proportional:
    """u = g (0.4 − x), which says nothing of its limits."""

    def __init__(self, gain: torch.Tensor) -> None:
        self.gain = gain

    @property
    def num(self) -> int:
        return len(self.gain)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (0.4 - x)

    def select(self, index: torch.Tensor) -> "Proportional":
        return Proportional(self.gain[index])

    def slopes(self, lower: torch.Tensor, upper: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        one = torch.ones(self.num, lower.shape[1], 1, dtype=torch.float64)
        return -self.gain, one, one


def test_policies_of_ones_own_beyond_the_inputs_of_the_plant_are_refused(algorithm):
    """What the plant applies is cut to |u| <= 1, and was certified uncut: affine policies with such a box are refused, too."""
    gain = vector(0.05, 0.3).reshape(2, 1, 1)
    assert replace(algorithm, policies=Proportional(gain), initial_safe=[0]).policies.num == 2
    with pytest.raises(ValueError, match="policies within the plant's input box"):
        replace(algorithm, policies=Proportional(4 * gain), initial_safe=[0])
