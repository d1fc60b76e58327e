"""Everything shows itself in a line, however much it holds; tables in notebooks are escaped."""

import dataclasses
import html.parser
import inspect

import pytest
import torch
from learner_cases import continuous, finite, practical
from xmpsc_cases import double_integrator, plan, propose

import gpsafe as gs
from gpsafe import _show
from gpsafe.algorithms import ContinuousRun, Explanation
from gpsafe.certify import judge
from gpsafe.confidence import ConfidenceSet
from gpsafe.models import LowRankGP, sample_functions
from gpsafe.rkhs import RKHSFunction
from gpsafe.sets import Box, Ellipsoid, Polytope, Zonotope
from gpsafe.verdict import Verdict

LIMIT = 400


def found_in(value: object, seen: dict[int, object], depth: int = 6) -> None:
    """Collects the dataclass objects of the library that can be reached from `value`."""
    if id(value) in seen or depth == 0:
        return
    if isinstance(value, (tuple, list)):
        for item in value[:4]:
            found_in(item, seen, depth)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if "._" not in f"{type(value).__module__}.{type(value).__name__}":  # rooms and names of the house
            seen[id(value)] = value
        for field in dataclasses.fields(value):
            if not field.name.startswith("_"):
                found_in(getattr(value, field.name, None), seen, depth - 1)


@pytest.fixture(scope="module")
def certificate():
    problem = double_integrator()
    return judge(problem, plan(0.0, 0.0)[:, 0], plan(0.0)[0], propose(torch.zeros(8, 1, dtype=torch.float64)))


@pytest.fixture(scope="module")
def run():
    return finite(episodes=2).run(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def things(certificate, run):
    eye = torch.eye(40, dtype=torch.float64)
    big = [Box(-eye[0], eye[0]), Polytope(torch.cat([eye, -eye]), torch.ones(80).double()), Ellipsoid(eye[0], eye)]
    big += [
        Zonotope(eye[0], eye),
        RKHSFunction(run.confidence.model.kernels[0], torch.rand(50, 2).double(), torch.rand(50)),
    ]
    big += [LowRankGP.create(run.confidence.model, 4)]
    big += [sample_functions(run.confidence.model, num=3, generator=torch.Generator().manual_seed(0))]
    big += [continuous(), practical(), finite()]
    generator = torch.Generator().manual_seed(0)
    big += [
        gs.Ensemble.create(2, 1, generator=generator, normalizers=None),
        run.confidence.model.predict(eye[:, :1], eye[:, :1]),
    ]
    big += [gs.Pendulum(), gs.CartPole(), gs.DoubleIntegrator(), Verdict(0.0, 1.0, 2.0, witness="w" * 5000)]
    seen: dict[int, object] = {}
    found_in([certificate], seen)
    found_in([run], seen)
    for thing in big:
        found_in(thing, seen)
    return list(seen.values())


def test_all_that_is_met_in_use_has_a_short_line(things):
    kinds = {type(thing).__name__ for thing in things}
    assert {"ActSafeRun", "GP", "ConfidenceSet", "Certificate", "Tube", "Ensemble", "RobustDP", "Episode"} <= kinds
    assert len(kinds) > 30
    for thing in things:
        text = repr(thing)
        assert len(text) <= LIMIT and "\n" not in text and "tensor(" not in text, (type(thing), text[:200])


def test_every_class_of_the_face_that_can_hold_tensors_has_its_own_line():
    """Objects that are not equal by value (eq=False) are those that hold arrays or models."""
    for name in dir(gs):
        kind = getattr(gs, name)
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and not getattr(kind, "__dataclass_params__").eq:  # noqa: B009
            source = inspect.getsourcefile(kind.__repr__)
            assert source is not None and "gpsafe" in source, name  # that of a dataclass has no file of ours


def test_the_decorator_is_what_makes_it_short():
    """Control: without it a set of forty dimensions shows a wall."""

    @dataclasses.dataclass(frozen=True, eq=False)
    class Bare:
        value: torch.Tensor

    bare = Bare(torch.rand(40, 40))
    assert len(repr(bare)) > LIMIT
    assert repr(_show.short(Bare)(torch.rand(40, 40))) == f"{Bare.__qualname__.rpartition('.')[2]}(value=<40×40>)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([1.0, 2.5]), "[1, 2.5]"),
        (torch.tensor(0.1), "0.1"),
        (torch.zeros(0), "<0>"),
        (torch.zeros(7), "<7>"),
        (torch.tensor([True]), "[True]"),
        (1 / 3, "0.333333"),
        ((1,), "(1,)"),
        ([1, "a"], "[1, 'a']"),
        (range, "range"),
        ({i: i for i in range(3)}, "<3 items>"),
        (list(range(7)), "<7 items>"),
        ("x" * 100, "'" + "x" * 57 + "…'"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
)
def test_values_in_a_line(value, text):
    assert _show.brief(value) == text


class _Balanced(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_notebooks_get_small_escaped_tables(certificate, run):
    evil = Verdict(0.0, 1.0, 2.0, witness="<script>alert(1)</script>")
    unsound = dataclasses.replace(run, unsound="<b>no & no</b>")
    learner, theta = run.learner, torch.rand(30, 2, dtype=torch.float64)
    explained = Explanation(0.3, {"width": -0.1, "all": -0.2, "nominal": -0.3}, 3, 9, 0.1, 0.2, (0.1, 0.2), 0.3)
    members = gs.safety.SafeParameters.initial(theta, budget=0.1)
    continuous = ContinuousRun((), members, run.confidence, None)
    for thing in (
        evil,
        certificate,
        run,
        unsound,
        run.safe_set,
        learner,
        explained,
        members,
        continuous,
        run.confidence,
    ):
        text = thing._repr_html_()
        parser = _Balanced()
        parser.feed(text)
        assert parser.open == [] and parser.tags <= {"table", "caption", "tr", "td", "th"}
        assert len(text) < 8000
    assert "&lt;script&gt;" in evil._repr_html_() and "HOLDS" in evil._repr_html_()
    assert certificate.outcome.value in certificate._repr_html_() and str(len(run.safe_set)) in run._repr_html_()


def test_what_matters_is_in_the_line(certificate, run):
    assert repr(certificate).startswith(f"Certificate({certificate.outcome.value}")
    assert (
        repr(run.safe_set)
        == f"SafePolicySet({len(run.safe_set)} of {run.safe_set.num} policies, budget={run.safe_set.budget:g})"
    )
    assert f"{len(run.episodes)} episodes" in repr(run)
    assert repr(ConfidenceSet(run.confidence.bound)).startswith("ConfidenceSet(bound=Mixture")
