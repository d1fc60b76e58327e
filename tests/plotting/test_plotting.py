"""One language for pictures: colours that every eye can tell apart, labels that never overlap, and settings left alone."""

from __future__ import annotations

import ast
import inspect
import itertools
import subprocess
import sys
from dataclasses import asdict, fields

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats
from scipy.optimize import minimize

from gpsafe import plotting
from gpsafe.plotting import charts
from gpsafe.plotting.labels import EndLabels
from gpsafe.sets import Box, Ellipsoid
from tests.plotting.colour_vision import SIGHT, contrast, least_difference

THEMES = (plotting.LIGHT, plotting.DARK)
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"]
X = np.linspace(0.0, 1.0, 7)
RUNS = np.cumsum(np.ones((3, 7)), 1) + np.arange(3.0)[:, None]
BALL = Ellipsoid(torch.zeros(2).double(), torch.eye(2).double())
LIMITS = ([-1.0, -1.0], [1.0, float("inf")])
CALLS = {  # every function of the face that takes axes, with something to draw
    "band": lambda axes: plotting.band(axes, X, X - 1, X + 1, mean=X, truth=X, data=(X, X), label="mean"),
    "certified_map": lambda axes: plotting.certified_map(
        axes, X, X[:5], np.outer(X[:5], X) > 0.3, safe=np.outer(X[:5], X) > 0.4
    ),
    "draw": lambda axes: plotting.draw(axes, BALL),
    "forest": lambda axes: plotting.forest(axes, [("a", 0.5, 0.0, np.inf), ("b", 1, 1, 1)], threshold=0.5),
    "growth": lambda axes: plotting.growth(axes, {"actsafe": RUNS, "greedy": RUNS}, safe=(6, 8), total=10),
    "intervals": lambda axes: plotting.intervals(axes, X, X, X - 0.1, X + np.nan, label="claim"),
    "label_ends": lambda axes: plotting.label_ends(plotting.band(axes, X, X, X + 1, mean=X, label="mean")),
    "learning_curves": lambda axes: plotting.learning_curves(axes, {"sound": RUNS, "paper": RUNS}, kind="bootstrap"),
    "legend_beside": lambda axes: plotting.legend_beside(plotting.band(axes, X, X, X + 1, label="band")),
    "limit": lambda axes: plotting.limit(plotting.limit(axes, 0.5, label="limit"), 0.5, upright=True, label="limit"),
    "outlines": lambda axes: plotting.outlines(axes, np.stack([X, X], 1), np.stack([X, X], 1) + 0.1),
    "phase": lambda axes: plotting.phase(axes, [np.stack([X, X], 1)] * 3, box=LIMITS, names=["a", "b", "c"]),
    "reliability": lambda axes: plotting.reliability(axes, X, X**2, low=X**2, high=X, label="GP"),
    "sets": lambda axes: plotting.sets(axes, {"safe": Box([-1.0, -1], [1, 1]), "terminal": BALL}),
    "state_box": lambda axes: plotting.state_box(axes, *LIMITS),
    "tube": lambda axes: plotting.tube(axes, [BALL, BALL], box=LIMITS, terminal=BALL, path=torch.zeros(3, 2)),
}


# --------------------------------------------------------------------------------------------- colours
@pytest.mark.parametrize("theme", THEMES, ids=lambda t: t.name)
def test_lines_and_text_stand_out_from_the_page(theme):
    for name, value in asdict(theme).items():
        if name not in ("name", "page", "faint"):
            assert contrast(value, theme.page) >= 3, name
    assert contrast(theme.ink, theme.page) > 12


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", THEMES, ids=lambda t: t.name)
def test_the_first_eight_are_told_apart_by_every_eye(theme, sight):
    apart, *pair = least_difference(list(theme.series), sight)
    assert apart > (8 if sight == "tritanopia" else 11), pair


def test_control_the_unadjusted_hues_do_not_stand_out_and_two_greens_are_not_told_apart():
    assert min(contrast(c, "#ffffff") for c in OKABE_ITO) < 1.5
    assert (
        least_difference(["#1c9975", "#8f8a74"], "deuteranopia")[0]
        < 8
        < 15
        < least_difference(["#1c9975", "#8f8a74"], "normal")[0]
    )


def test_nouns_have_one_look_each_and_the_arms_of_a_picture_differ_in_more_than_colour():
    for theme in ("light", "dark"):
        with plotting.style(theme):
            together = (
                ("prior", "paper", "invariant", "certain", "sound", "mbpo", "safe-controller", "none"),
                ("cpo", "trpo-lagrangian", "ppo-lagrangian", "lbpo", "sqrl", "safety-layer"),
                ("plan", "stored", "backup", "initial", "soft", "unfiltered"),
                ("scenario-tube", "gaussian-tube", "robust-dp", "total-variation", "hallucinated", "sampled"),
                ("actsafe", "greedy", "uniform", "mean-greedy"),
                ("claim", "control"),
                ("gp", "sparse-gp", "ensemble", "mc-dropout", "laplace"),
                ("as-trained", "sigma-scaling", "isotonic", "conformal", "weighted-conformal", "adaptive-conformal"),
                ("none", "hull", "hull-all", "invariant"),
                ("none", "home", "known", "analytic", "widened", "bullet"),
                ("none", "paper", "certain-95", "certain-50", "sound"),
                ("escaped", "unsafe-certified", "unsafe-executed", "falsified"),
                ("safe", "unsafe", "unknown"),
            )
            for family in together:
                found = [plotting.look(noun) for noun in family]
                for one, other in itertools.combinations(found, 2):
                    assert (str(one.dash), one.marker) != (str(other.dash), other.marker)
            assert len({plotting.colour(noun) for noun in together[0]}) == 8
    assert plotting.look("Sparse GP") == plotting.look("sparse-gp")
    assert plotting.looks(["GP", 3])["GP"] == plotting.look("gp")
    with pytest.raises(ValueError, match="expected noun in"):
        plotting.colour("#ff0000")


@given(st.lists(st.sampled_from([*plotting.NOUNS, *"abcdefghijklmnopqrstuvwxyz"]), unique=True, max_size=16))
def test_any_names_get_looks_that_differ_and_nouns_keep_theirs(names):
    found = plotting.looks(names)
    assert list(found) == names
    new = [look for name, look in found.items() if name not in plotting.NOUNS]
    assert len({(str(look.dash), look.marker) for look in new}) == len(new)
    assert all(found[name] == plotting.look(name) for name in names if name in plotting.NOUNS)
    taken = {found[name].colour for name in names if name in plotting.NOUNS}
    free = set(plotting.LIGHT.series) - taken
    assert len(free & {look.colour for look in new}) == min(len(free), len(new))


@pytest.mark.parametrize("theme", THEMES, ids=lambda t: t.name)
def test_a_ramp_is_clear_on_the_page_from_end_to_end(theme):
    with plotting.style(theme.name):
        shades = plotting.ramp(9)
    against = [contrast(shade, theme.page) for shade in shades]
    assert min(against) >= 3
    assert against == sorted(against)
    assert len(set(shades)) == 9


# --------------------------------------------------------------------------------------------- labels
LABELS = st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 20)), min_size=1, max_size=12)


@given(LABELS, st.floats(-50, 0), st.floats(0, 50))
def test_no_two_labels_overlap_and_their_order_is_kept(labels, low, high):
    wanted, sizes = (np.array(v) for v in zip(*labels, strict=True))
    found = plotting.spread(wanted, sizes, low, high)
    order = np.argsort(wanted, kind="stable")
    gaps = np.diff(found[order]) - (sizes[order][:-1] + sizes[order][1:]) / 2
    assert (gaps >= -1e-9).all()
    if sizes.sum() <= high - low:
        assert (found - sizes / 2 >= low - 1e-9).all()
        assert (found + sizes / 2 <= high + 1e-9).all()


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=5))
def test_labels_move_as_little_as_they_can(wanted):
    order = np.argsort(wanted, kind="stable")
    found = plotting.spread(wanted, [3.0] * len(wanted), -30, 30)
    limits = [{"type": "ineq", "fun": lambda c, i=i, j=j: c[j] - c[i] - 3} for i, j in itertools.pairwise(order)]
    best = minimize(lambda c: ((c - wanted) ** 2).sum(), found + 0.1, constraints=limits, method="SLSQP")
    assert ((found - wanted) ** 2).sum() <= best.fun + 1e-5


def test_labels_that_are_apart_stay_where_they_are():
    assert plotting.spread([5.0, 1.0], [2.0, 2.0], 0.0, 10.0).tolist() == [5.0, 1.0]
    assert plotting.spread([], [], 0.0, 1.0).tolist() == []
    with pytest.raises(ValueError, match="as many sizes"):
        plotting.spread([1.0], [], 0.0, 1.0)
    with pytest.raises(ValueError, match="finite places"):
        plotting.spread([np.nan], [1.0], 0.0, 1.0)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_at_line_ends_do_not_overlap_when_drawn(scale):
    figure = plotting.figure("single")
    axes = figure.subplots()
    names = [f"arm {k}" for k in range(8)]
    curves = {name: np.full((2, 5), 1.0 + 0.001 * k) for k, name in enumerate(names)}
    plotting.learning_curves(axes, curves)
    axes.set_yscale(scale)
    axes.plot(X, X + np.nan, label="nowhere")
    plotting.label_ends(axes)
    plotting.save(figure, kind="png", dpi=100)
    (found,) = [a for a in axes.artists if isinstance(a, EndLabels)]
    renderer = figure._get_renderer()
    found.place(renderer)
    boxes = [text.get_window_extent(renderer) for text in found.texts]
    assert len(boxes) == 9
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert sorted(box.y0 for box in boxes[:8]) == [box.y0 for box in boxes[:8]]  # the lowest line first
    assert found.texts[0].get_text() == "arm 0 (n = 2)"


def test_bands_are_named_too_and_nothing_is_cut_off_when_a_figure_is_cut_to_what_is_drawn():
    figure = plotting.figure("single")
    axes = plotting.band(figure.subplots(), X, X, X + 2, truth=X, label="a band with a long name")
    plotting.label_ends(axes)
    (found,) = [a for a in axes.artists if isinstance(a, EndLabels)]
    found.place(renderer := figure._get_renderer())
    heights = {text.get_text(): text.get_window_extent(renderer).y0 for text in found.texts}
    assert heights["a band with a long name"] > heights["truth"]
    figure.draw(renderer)
    around = figure.get_tightbbox(renderer).transformed(figure.dpi_scale_trans)
    for text in found.texts:
        box = text.get_window_extent(renderer)
        assert around.x0 <= box.x0 + 1e-6 and box.x1 <= around.x1 + 1e-6


# --------------------------------------------------------------------------------------------- functions and settings
def test_every_function_of_the_face_that_takes_axes_is_tried_here():
    taking = {
        name
        for name in plotting.__all__
        if inspect.isfunction(getattr(plotting, name))
        and "axes" in inspect.signature(getattr(plotting, name)).parameters
    }
    assert taking == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axes_in_axes_out_in_colours_of_the_theme_and_no_setting_is_left_behind(name, theme):
    before, other = dict(matplotlib.rcParams), {t.name: t for t in THEMES}
    with plotting.style(theme) as used:
        figure = plotting.figure("single")
        axes = figure.subplots()
        assert CALLS[name](axes) is axes
        svg = plotting.save(figure).decode().lower()
    assert dict(matplotlib.rcParams) == before
    assert plotting.theme() is plotting.LIGHT
    wrong = set(asdict(other["light" if theme == "dark" else "dark"]).values()) - set(asdict(used).values())
    assert not [colour for colour in wrong if colour in svg]
    assert used.page in svg
    assert used.ink in svg


def test_a_figure_that_fails_leaves_no_setting_behind():
    before = dict(matplotlib.rcParams)
    with pytest.raises(ZeroDivisionError), plotting.style("dark"):
        _ = 1 / 0
    assert dict(matplotlib.rcParams) == before
    assert plotting.theme() is plotting.LIGHT


def test_text_is_readable_in_print_at_any_size_asked_for():
    for size in (1.0, 7.0, 8.0, 12.0):
        settings = plotting.rc("light", size=size)
        sizes = [
            v
            for k, v in settings.items()
            if k.endswith(("size", "fontsize")) and k not in ("lines.markersize", "errorbar.capsize")
        ]
        assert len(sizes) >= 8
        assert min(v for v in sizes if isinstance(v, float)) >= 7.0


def test_sizes_are_those_of_a_paper(tmp_path):
    assert plotting.figure("single").get_size_inches()[0] == 3.25
    assert plotting.figure("double", 2.0).get_size_inches().tolist() == [6.75, 2.0]
    assert plotting.figure(4.0).get_size_inches()[0] == 4.0
    with pytest.raises(ValueError, match="figure: expected width"):
        plotting.figure("wide")
    figure = plotting.figure("single")
    assert plotting.save(figure, tmp_path / "a.pdf").startswith(b"%PDF")
    assert (tmp_path / "a.pdf").read_bytes() == plotting.save(figure, kind="pdf")
    with pytest.raises(ValueError, match="save: expected kind"):
        plotting.save(figure, tmp_path / "a.txt")


def test_matplotlib_waits_until_a_picture_is_asked_for():
    code = (
        "import sys, gpsafe as gs; from gpsafe.plotting import colour, looks; looks(['a']);"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules; gs.plotting.figure();"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------- numbers
def test_intervals_of_means_are_those_of_student_and_of_the_bootstrap():
    values = np.random.default_rng(0).normal(size=(12, 4))
    mean, low, high = plotting.summarised(values, level=0.9)
    expected = stats.t.interval(0.9, 11, values.mean(0), stats.sem(values))
    np.testing.assert_allclose([low, high], expected, rtol=1e-12)
    _, low, high = plotting.summarised(values, kind="bootstrap", level=0.9)
    reference = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    np.testing.assert_allclose([low, high], reference, atol=0.05)
    assert (plotting.summarised(values, kind="bootstrap", level=0.9)[1] == low).all()
    assert np.isnan(plotting.summarised(values[:1])[1]).all()
    assert (plotting.summarised(values)[0] == mean).all()
    with pytest.raises(ValueError, match="kind"):
        plotting.summarised(values, kind="normal")


def test_a_certificate_that_is_wrong_cannot_be_overlooked():
    certified, safe = np.eye(3, dtype=bool), np.ones((3, 3), dtype=bool)
    axes = Figure().subplots()
    plotting.certified_map(axes, X[:3], X[:3], certified, safe=safe)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["safe, not certified (66.7 %)", "certified (33.3 %)"]
    safe[1, 1] = False
    axes = Figure().subplots()
    plotting.certified_map(axes, X[:3], X[:3], certified, safe=safe)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[-1] == "certified, not safe (11.1 %)"
    with pytest.raises(ValueError, match="certified as Booleans"):
        plotting.certified_map(axes, X[:3], X[:3], certified.astype(float))


def test_outlines_are_the_boxes():
    axes = plotting.outlines(Figure().subplots(), [[0.0, 1.0], [2.0, 3.0]], [[0.5, 2.0], [4.0, 3.5]])
    (drawn,) = axes.collections
    ends = [path.get_extents().extents.tolist() for path in drawn.get_paths()]
    assert ends == [[0.0, 1.0, 0.5, 2.0], [2.0, 3.0, 4.0, 3.5]]


def test_bad_input_is_refused_in_words():
    axes = Figure().subplots()
    with pytest.raises(ValueError, match="outlines: expected corners"):
        plotting.outlines(axes, [0.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="learning_curves: expected a with 2 axes"):
        plotting.learning_curves(axes, {"a": X})
    with pytest.raises(ValueError, match=r"forest: expected lower ≤ upper .* a: \[1"):
        plotting.forest(axes, [("a", 0.0, 1.0, 0.5)])
    with pytest.raises(ValueError, match="intervals: expected finite"):
        plotting.intervals(axes, X, X, X - np.inf, X + 1)
    with pytest.raises(ValueError, match="state_box: expected low < high"):
        plotting.state_box(axes, [1.0, 0.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="looks: expected at most"):
        plotting.looks(range(70))
    assert charts.FILL < 0.3


def test_the_theme_names_every_colour():
    tree = ast.parse(inspect.getsource(plotting.Theme))
    named = {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    assert named == {field.name for field in fields(plotting.Theme)}
