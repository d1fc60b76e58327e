"""One vocabulary: every entry of every list has a kind and a sentence, and nothing that a bound uses is left out."""

import pickle
from pathlib import Path

import pytest
import torch
from cost_cases import make_case
from filter_cases import linear_filter
from learner_cases import continuous, finite
from shield_cases import case_of, shield_of

from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.hallucinated import Hallucinated
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.sampled import Sampled
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.tube import GPTube

A = Assumption
SET = {A.RKHS_NORM, A.SUBGAUSSIAN, A.FIXED_KERNEL, A.ALL_OBSERVATIONS}
LOOP = SET | {A.TASK, A.GAUSSIAN_NOISE, A.EXACT_STATE, A.EXACT_INPUT, A.ROUNDING}
BOXES = {A.KNOWN_DERIVATIVES, A.COST_RANGE}
USED = {
    "robust-dp": LOOP | BOXES,
    "gaussian-tube": LOOP | BOXES,
    "scenario-tube": LOOP | BOXES | {A.MONTE_CARLO_SEED},
    "total-variation": LOOP | {A.MONTE_CARLO_SEED},
    "sampled": LOOP | {A.MONTE_CARLO_SEED},
    "hallucinated": LOOP | {A.MONTE_CARLO_SEED},
}


def kinds(entries: tuple[str, ...]) -> set[Assumption]:
    assert all(isinstance(entry, Believed) and entry.startswith(entry.kind.words) for entry in entries)
    return {entry.kind for entry in entries if isinstance(entry, Believed)}


def bounds(case, cells):
    task, sampling = case.task["task"], {"seed": 1, "samples": 4}
    found = [
        GaussianTube(task=task), ScenarioTube(task=task, **sampling, anchors=2), TotalVariation(task=task, **sampling),
        Sampled(task=task, **sampling, draws=2, features=8), Hallucinated(task=task, **sampling, search_paths=2, steps=0),
    ]  # fmt: skip
    return [RobustDP(Grid(case.system.state_box, cells), task), *found]


def test_every_cost_bound_lists_what_it_uses():
    case = make_case("1d", (4,))
    found = {b.name: kinds(b.evaluate(case.confidence, case.choose(2)).assumptions) for b in bounds(case, (60,))}
    assert found == USED


def test_learners_of_a_safe_set_list_what_its_members_rest_on():
    """The cost bound's own list, S_0, and a table of distances, of which nothing can be read."""
    for learner in (finite(), continuous()):
        assert kinds(learner.assumptions) == USED["robust-dp"] | {A.INITIAL_SET}
    count = finite().policies.num
    stated = finite(distance=torch.zeros(count, count).double()).assumptions
    assert [entry for entry in stated if entry.kind is A.GIVEN] == [
        "distances true: |J(π, f) − J(π′, f)| ≤ D(π, π′) for every f of norm B"
    ]


def test_states_without_a_process_of_their_own_are_listed():
    case = make_case("pendulum", (4,))
    for bound in bounds(case, (40, 40))[:3]:
        entries = bound.evaluate(case.confidence, case.choose(2)).assumptions
        assert "unlearned outputs equal the known part (states [0])" in entries


def test_the_shield_speaks_of_an_episode_and_the_filter_of_a_plan():
    shield, case = shield_of(case_of()), case_of()
    expected = SET | {
        A.TASK,
        A.NOISE_BOX,
        A.KNOWN_OUTPUTS,
        A.KNOWN_DERIVATIVES,
        A.EXACT_STATE,
        A.EXACT_INPUT,
        A.ROUNDING,
    }
    assert kinds(shield.assumptions) == expected
    told = next(e for e in shield.assumptions if e.kind is A.NOISE_BOX)
    assert "every step of the episode" in told and "0.162" in told  # 2 states, 30 steps, 3 σ: 60·P(|Z| > 3)
    tube = GPTube(case.confidence, steps=5, delta=0.01)
    assert kinds(tube.assumptions) == SET | {
        A.NOISE_ELLIPSOID, A.GAUSSIAN_NOISE, A.KNOWN_OUTPUTS, A.KNOWN_DERIVATIVES, A.ROUNDING
    }  # fmt: skip
    assert any("5 steps of one plan" in e for e in tube.assumptions)
    assert {A.EXACT_STATE, A.EXACT_INPUT, A.NOISE_ELLIPSOID} <= kinds(linear_filter().assumptions)


def test_a_users_own_words_are_kept_as_such_and_repetitions_are_not():
    entries = listed(A.RKHS_NORM("<=2"), ["my own words", A.RKHS_NORM("<=2")])
    assert entries == ("rkhs_norm<=2", "my own words") and entries[1].kind is A.GIVEN
    again = pickle.loads(pickle.dumps(entries))
    assert again == entries and [e.kind for e in again] == [e.kind for e in entries]


@pytest.mark.parametrize("kind", list(Assumption))
def test_every_kind_has_words_of_its_own_and_a_sentence(kind):
    assert kind.sentence.endswith(".") and (kind.words or kind is A.GIVEN)
    others = [other.words for other in Assumption if other not in (kind, A.GIVEN)]
    assert kind is A.GIVEN or not any(words.startswith(kind.words) and words == kind.words for words in others)


def test_the_document_lists_the_whole_vocabulary():
    table = (Path(__file__).parents[1] / "docs" / "theory.md").read_text().replace("\\|", "|")
    for kind in Assumption:
        entry = kind.words or "(the user's words)"
        assert f"| `{kind.name}` | {entry} | {kind.sentence} |" in table
