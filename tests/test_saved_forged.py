"""A file is not believed: what does not fit together, or is not so, is refused although its checksums are honest."""

import math

import pytest
import torch
from saved_cases import certificate, examples, grown, process, rewritten
from xmpsc_cases import double_integrator, plan, propose

import gpsafe as gs
from gpsafe.linalg import vector


def model_of(about):
    return about["object"]


def scaled_factor(about, arrays):
    arrays[model_of(about)["factors"][0]["lower"]["array"]] *= 1 + 1e-9


def smaller_inverse(about, arrays):
    arrays[model_of(about)["factors"][0]["inverse"]["array"]] *= 1 + 1e-9


def dense_inverse(about, arrays):
    arrays[model_of(about)["factors"][0]["inverse"]["array"]][0, -1] = 1e-9


def moved_datum(about, arrays):
    arrays[model_of(about)["inputs"]["array"]][3, 1] += 1e-6


def other_lambda(about, arrays):
    arrays[model_of(about)["regularizer"]["array"]] *= 0.5


def other_kernel(about, arrays):
    about["kernels"][0]["variance"] *= 1.001


def quiet_rows(about, arrays):
    arrays[model_of(about)["noise_scale"]["array"]][:] = 0.5


def unknown_mode(about, arrays):
    model_of(about)["mode"] = "certain"


def infinite_target(about, arrays):
    arrays[model_of(about)["targets"]["array"]][0, 0] = math.inf


def missing_field(about, arrays):
    del model_of(about)["noise_scale"]


def missing_array(about, arrays):
    del arrays[model_of(about)["targets"]["array"]]


MODEL_FORGERIES = [scaled_factor, smaller_inverse, dense_inverse, moved_datum, other_lambda, other_kernel, quiet_rows]
MODEL_FORGERIES += [unknown_mode, infinite_target, missing_field, missing_array]


@pytest.mark.parametrize("forge", MODEL_FORGERIES, ids=lambda f: f.__name__)
def test_a_model_whose_parts_do_not_fit_is_refused(forge, tmp_path):
    path = gs.save(tmp_path / "m", process(scaled=True))
    rewritten(path, lambda about, arrays: None)
    gs.load(path)  # control: the rewriting alone changes nothing
    with pytest.raises(ValueError, match=f"what gpsafe.save writes in {path}"):
        gs.load(rewritten(path, forge))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_set_whose_generations_do_not_continue_each_other_is_refused(n, tmp_path):
    def swap(about, arrays):
        generations = about["object"]["generations"]
        generations[n], generations[n + 1] = generations[n + 1], generations[n]

    with pytest.raises(ValueError, match="last generation"):
        gs.load(rewritten(gs.save(tmp_path / "F", grown()), swap))


def witnesses_of(about):
    return dict(about["object"]["witnesses"]["map"])


@pytest.mark.parametrize(
    "change",
    [
        lambda about: witnesses_of(about)[1].update(value=0.6),
        lambda about: witnesses_of(about)[1].update(value={"number": "nan"}),
        lambda about: witnesses_of(about)[1].update(value={"number": "-inf"}),
        lambda about: witnesses_of(about)[1].update(rule="luck"),
        lambda about: witnesses_of(about)[0].update(neighbour=99),
        lambda about: witnesses_of(about)[0].update(neighbour=None),
        lambda about: about["object"]["witnesses"]["map"].append([17, witnesses_of(about)[1]]),
        lambda about: about["object"].update(budget=0.3),
        lambda about: about["object"]["witnesses"].update(map=[]),
    ],
)
def test_a_safe_set_with_a_member_beyond_the_budget_is_refused(change, tmp_path):
    path = gs.save(tmp_path / "S", examples()["SafePolicySet"])
    with pytest.raises(ValueError, match=f"in {path}"):
        gs.load(rewritten(path, lambda about, _: change(about)))


@pytest.mark.parametrize("names", [("budget",), ("theta",), ("radius",)], ids=str)
def test_safe_parameters_that_do_not_fit_are_refused(names, tmp_path):
    def change(about, arrays):
        for name in names:
            if name == "budget":
                about["object"]["budget"] = 0.1
            else:
                array = about["object"][name]["array"]
                arrays[array] = arrays[array][:-1] if name == "theta" else arrays[array] - 1.0

    with pytest.raises(ValueError, match="SafeParameters"):
        gs.load(rewritten(gs.save(tmp_path / "S", examples()["SafeParameters"]), change))


def narrower_tube(about, arrays):
    arrays[about["object"]["tube"]["factor"]["array"]] *= 0.5


def wider_states(about, arrays):
    arrays[about["object"]["problem"]["states"]["h"]["array"]] *= 2.0


def better_verdict(about, arrays):
    about["object"]["verdict"].update(upper=-9.0, lower=-9.0)


def fewer_assumptions(about, arrays):
    about["object"]["assumptions"].pop()


def another_action(about, arrays):
    arrays[about["object"]["action"]["array"]] += 0.5


def no_tube(about, arrays):
    about["object"]["tube"] = None


CERTIFICATE_FORGERIES = [narrower_tube, wider_states, better_verdict, fewer_assumptions, another_action, no_tube]


@pytest.mark.parametrize("forge", CERTIFICATE_FORGERIES, ids=lambda f: f.__name__)
def test_a_certificate_that_the_judge_does_not_confirm_is_refused(forge, tmp_path):
    with pytest.raises(ValueError, match="Certificate whose claims hold"):
        gs.load(rewritten(gs.save(tmp_path / "c", certificate()), forge))


@pytest.mark.parametrize("scale", [1.0, 1e-10])
def test_what_is_loaded_is_the_judges_own_in_any_units(scale, tmp_path):
    """A tube five times as wide, in units in which all of it is below what files of two machines may differ by."""
    plant = gs.AffineKnown(
        torch.tensor([[1.0, 0.1], [0.0, 1.0]]).double(), vector(0.0, 0.1).unsqueeze(-1), vector(0.0, 0.0)
    )
    states, inputs, terminal = (
        gs.Polytope.of_box(gs.Box(-r * scale, r * scale)) for r in (vector(1, 1), vector(1), vector(0.5, 0.5))
    )
    model = gs.tube.LinearTube(plant, scale * vector(0.001, 0.004))
    problem = gs.certify.CertificationProblem(model, states, inputs, terminal, torch.zeros(1, 2).double(), 4)
    shown = gs.judge(problem, scale * vector(0.1, 0.1), vector(0.0), torch.zeros(4, 1).double())
    assert shown.certified

    def wider(about, arrays):
        arrays[about["object"]["tube"]["factor"]["array"]] *= 5.0

    path = gs.save(tmp_path / "c", shown)
    assert torch.equal(gs.load(path).tube.factor, shown.tube.factor)
    if scale == 1.0:
        with pytest.raises(ValueError, match="other tube"):
            gs.load(rewritten(path, wider))
    else:
        assert torch.equal(gs.load(rewritten(path, wider)).tube.factor, shown.tube.factor)


@pytest.mark.parametrize("name", ["reason", "tightest"])
def test_words_about_the_verdict_are_the_judges_own_too(name, tmp_path):
    def other(about, arrays):
        about["object"]["reason"] = "none whatever"
        about["object"]["tightest"]["margin"] = 1e9

    shown = certificate()
    found = gs.load(rewritten(gs.save(tmp_path / "c", shown), other))
    assert getattr(found, name) == getattr(shown, name)


def test_a_refusal_cannot_be_turned_into_a_certificate(tmp_path):
    problem = double_integrator(steps=3)
    shown = gs.judge(problem, vector(0.2, 0.0), vector(0.3), propose(plan(5.0, 0.0, 0.0)))
    assert not shown.certified
    assert not gs.load(gs.save(tmp_path / "c", shown)).certified
    with pytest.raises(ValueError, match="where the judge finds"):
        gs.load(rewritten(tmp_path / "c", better_verdict))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("Witness", ("episode",), "0"),
        ("Witness", ("episode",), 1.5),
        ("Witness", ("bound",), None),
        ("SafePolicySet", ("witnesses", "map", 0, 1, "episode"), {"number": "nan"}),
        ("SafePolicySet", ("witnesses", "map", 0, 1, "episode"), -1),
        ("Certificate", ("distance",), "0.16"),
        ("Certificate", ("proposal", "slack"), None),
        ("CostInterval", ("sound_upper",), 1),
        ("CostInterval", ("delta",), True),
        ("Mixture", ("unchecked",), None),
    ],
)
def test_a_field_of_another_kind_is_refused(name, path, value, tmp_path):
    """No constructor looks at these: a word for a number would fail, or say yes, where it is used."""

    def other(about, arrays):
        tree = about["object"]
        for key in path[:-1]:
            tree = tree[key]
        assert tree[path[-1]] != value or type(tree[path[-1]]) is not type(value)
        tree[path[-1]] = value

    with pytest.raises(ValueError, match=path[-1] if value != -1 else "member 2 by"):
        gs.load(rewritten(gs.save(tmp_path / "o", examples()[name]), other))


@pytest.mark.parametrize("kind", ["float32", ">f8", "complex128"])
def test_arrays_of_another_precision_are_refused(kind, tmp_path):
    """Margins of rounding are those of float64: a posterior with float32 targets is another one."""

    def coarse(about, arrays):
        name = model_of(about)["targets"]["array"]
        arrays[name] = arrays[name].astype(kind)

    with pytest.raises(ValueError, match="float64 or int64 or bool"):
        gs.load(rewritten(gs.save(tmp_path / "m", process()), coarse))


def test_whole_numbers_in_an_array_are_read_as_float64(tmp_path):
    def whole(about, arrays):
        name = model_of(about)["targets"]["array"]
        arrays[name] = arrays[name].round().astype("int64")

    found = gs.load(rewritten(gs.save(tmp_path / "m", process()), whole))
    assert found.targets.dtype == torch.float64 and torch.equal(found.targets, process().targets.round())


def test_members_that_only_vouch_for_each_other_are_refused(tmp_path):
    """0 entered by 3 and 3 by 0, the second of which is not so: nobody was there before them."""

    def circle(about, arrays):
        witnesses_of(about)[1].update(rule="lipschitz", neighbour=0)
        witnesses_of(about)[0].update(neighbour=1)

    with pytest.raises(ValueError, match=r"members \[0, 1\] by each other"):
        gs.load(rewritten(gs.save(tmp_path / "S", examples()["SafePolicySet"]), circle))


def test_a_neighbour_may_stand_after_who_entered_by_it(tmp_path):
    """Written in another order the set is the same."""

    def back(about, arrays):
        about["object"]["witnesses"]["map"].reverse()

    path = gs.save(tmp_path / "S", examples()["SafePolicySet"])
    assert gs.load(rewritten(path, back)).witnesses.keys() == examples()["SafePolicySet"].witnesses.keys()


def test_a_member_that_is_named_twice_is_refused(tmp_path):
    def twice(about, arrays):
        about["object"]["witnesses"]["map"].append(about["object"]["witnesses"]["map"][0])

    with pytest.raises(ValueError, match="once"):
        gs.load(rewritten(gs.save(tmp_path / "S", examples()["SafePolicySet"]), twice))
