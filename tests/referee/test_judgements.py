"""Rulings, numbers and words of every test, of outputs that are made up: the worst is told, and R that would save the claim."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gpsafe.linalg import vector
from gpsafe.referee import Ruling, judgements, power, trials
from gpsafe.referee.case import Case, Output
from gpsafe.referee.finding import BAYES, Finding
from gpsafe.referee.noise import Repeats
from gpsafe.referee.norms import Alternative, Growth
from gpsafe.referee.power import Power
from gpsafe.referee.trials import Design, Tried
from gpsafe.rkhs import kernels

ROWS, FIRST, NORM, R, DELTA = 12, 4, 2.0, 0.5, 0.01
M = ROWS - FIRST
TESTS = ("norm", "kernel", "time", "level", "tail", "held", "bars", "shape", "memory")
DESIGN = Design(
    kernels.rbf([1.0]), NORM, R, DELTA, torch.linspace(0, 1, ROWS, dtype=torch.float64).unsqueeze(-1), FIRST,
    torch.arange(ROWS) - 1, 1.0,
)  # fmt: skip
TRIED = Tried(
    {}, {"own": vector(1.0), "kernel": vector(1.2), "time": vector(1.4)}, vector(0.3), vector(1e-2), torch.zeros(7, 1),
    vector(-0.5), vector(float(M)), (torch.full((M, 1), 0.4, dtype=torch.float64), torch.zeros(M).double()),
    vector(-1.0), vector(-2.0),
)  # fmt: skip
HITS = {d: dict.fromkeys(TESTS, 0 if d == power.NONE else 30) for d in (
    power.NONE, "a norm of 1.5 B", "a norm of 3 B", judgements.SHORT, "noise of 1.5 R", "noise of 3 R", judgements.RARE,
    power.MEMORY)}  # fmt: skip
GROWTH = Growth((4, 8, 16), (0.25, 0.5, 1.0), (4.0, 5.0, 6.0))


def output(name: str = "a", *, hits: dict[str, dict[str, int]] = HITS, **changes: Any) -> Output:
    own = {key: changes.pop(key) for key in list(changes) if key in Tried.__dataclass_fields__}
    made = {"growth": GROWTH, "others": (), "random": vector(1.0, 2.0, 3.0, 4.0, 9.0), "power": Power(40, hits),
            "lattice": 0.0, "lag": (0.25, 7), "design": DESIGN} | changes  # fmt: skip
    return Output(name=name, tried=replace(TRIED, **own), **made)


def case(*outputs: Output, stated: Any = ("kernel", "B", "R"), **changes: Any) -> Case:
    each = outputs or (output(),)
    words = SimpleNamespace(stated=frozenset(stated), words=lambda name: f"{name}!")
    made = {"rows": SimpleNamespace(runs=3, first=FIRST, linked=5), "claim": words, "outputs": each, "share": DELTA,
            "origin": "recorded", "repeats": Repeats(0, 0, (math.nan,) * len(each), (math.nan,) * len(each)),
            "power": power.weakest([o.power for o in each])} | changes  # fmt: skip
    return cast(Case, SimpleNamespace(**made))


def found(name: str, *outputs: Output, **changes: Any) -> Finding:
    given = case(*outputs, **changes)
    every = [*judgements.of_noise(given), *judgements.of_norm(given), *judgements.of_kernel(given)]
    assert [one.name for one in every] == [
        "repeats", "copies", "level", "tail", "time", "memory", "norm", "growth", "upper", "kernel", "shape", "held", "bars"
    ]  # fmt: skip
    return next(one for one in every if one.name == name)


LOG = math.log(1 / DELTA)
TOLD: dict[str, tuple[dict[str, Any], float, float, dict[str, Any], float]] = {
    # test: what stands, statistic, threshold; what is refuted, its statistic
    "norm": ({}, 1.0, NORM, {"lower": TRIED.lower | {"own": vector(3.0)}}, 3.0),
    "kernel": ({}, 1.2, NORM, {"lower": TRIED.lower | {"kernel": vector(3.0)}}, 3.0),
    "time": ({}, 1.4, NORM, {"lower": TRIED.lower | {"time": vector(3.0)}}, 3.0),
    "level": ({}, 0.3, R, {"level": vector(0.7)}, 0.7),
    "tail": ({}, 2.0, -math.log10(DELTA / 2), {"tail": vector(1e-4)}, 4.0),
    "held": ({}, -0.5, 0.0, {"held": vector(0.1)}, 0.1),
    "bars": ({}, 1.0, 1.0, {"bars": vector(9.0 * M)}, 3.0),
    "shape": ({}, -1.0, LOG, {"shape": vector(9.0)}, 9.0),
    "memory": ({}, -2.0, LOG, {"memory": vector(9.0)}, 9.0),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_test_tells_its_number_its_limit_and_its_ruling(name):
    _, value, limit, wrong, other = TOLD[name]
    stands, refuted = found(name), found(name, output("b", **wrong), output())
    assert stands.ruling is Ruling.STANDS and stands.statement.split(" Correlation")[0]
    assert (stands.statistic, stands.threshold) == pytest.approx((value, limit))
    assert (refuted.statistic, refuted.threshold) == pytest.approx((other, limit)) and refuted.ruling is Ruling.REFUTED
    assert "(refuted for b)" in refuted.statement and "refuted for" not in found(name, output("b", **wrong)).statement
    assert (stands.level, refuted.level) == (DELTA, 2 * DELTA) and "30 of 40 trials" in stands.power
    if name in ("norm", "level"):
        times = {"norm": ("0.5 of B = 2", "(1.5 times)"), "level": ("0.5 is claimed", "(1.4 times)")}[name]
        assert times[0] in stands.statement and times[1] in refuted.statement
    if name == "tail":
        return  # its table is of shares
    assert refuted.rows == (("b", pytest.approx(other), pytest.approx(limit), "refuted"),
                            ("a", pytest.approx(value), pytest.approx(limit), "not refuted"))  # fmt: skip
    assert refuted.head[0] == "output" and len(refuted.head) == 4


@pytest.mark.parametrize("name", TOLD)
def test_a_test_that_hardly_notices_its_last_defect_is_vacuous(name):
    last = judgements.DEFECTS[name][-1]
    for hits, ruling in ((8, Ruling.VACUOUS), (9, Ruling.STANDS)):  # of 40: no more than a fifth
        weak = HITS | {last: HITS[last] | {name: hits}}
        one = found(name, output(hits=weak))
        assert one.ruling is ruling
        assert (f"even “{last}” would be noticed rarely" in one.statement) == (ruling is Ruling.VACUOUS)
    silent = found(
        name, output(hits={power.NONE: HITS[power.NONE]})
    )  # where the defect was not tried nothing is said of it
    assert silent.ruling is Ruling.STANDS and silent.power == ""
    wrong = found(name, output(hits=HITS | {last: HITS[last] | {name: 0}}, **TOLD[name][3]))
    assert wrong.ruling is Ruling.REFUTED


def test_the_worst_of_several_is_that_of_the_largest_ratio():
    a, b = output("a", level=vector(0.3)), output("b", level=vector(0.4), design=replace(DESIGN, noise=5.0))
    assert found("level", a, b).statistic == 0.3 and "residuals of a" in found("level", b, a).statement
    near, far = output("c", held=vector(-0.1)), output("e", held=vector(-3.0))  # whose limit is 0: the first was told
    assert found("held", far, near).statistic == -0.1 and "closest: c, −0.1 R" in found("held", far, near).statement
    lost = output("d", level=vector(math.nan))
    assert found("level", lost, a).statistic == found("level", a, lost).statistic == 0.3


def test_what_rests_on_the_claim_is_told_with_the_noise_that_would_save_it():
    def others(*refuted: tuple[float, bool]) -> tuple[Alternative, ...]:
        return tuple(Alternative(factor, {"own": 0.0}, ("norm",) if wrong else ()) for factor, wrong in refuted)

    wrong = TOLD["norm"][3]
    saved = output("b", others=others((0.5, False), (1.0, True), (2.0, True), (4.0, False), (8.0, False)), **wrong)
    assert "With this kernel and B, no test refutes from R = 2 (4 R) for b on." in found("norm", saved).statement
    lost = output("c", others=others((0.25, False), (1.0, True), (16.0, True)), **wrong)
    told = "No R up to 16 times the claimed one would save the claim with this kernel and B."
    assert told in found("norm", lost).statement and told in found("norm", saved, lost).statement
    again = output("f", others=others((1.0, True), (2.0, False), (4.0, True), (8.0, False)), **wrong)
    assert "from R = 4 (8 R) for f on." in found("norm", again).statement  # it was "from 2 R on"
    twice = output("d", others=others((1.0, True), (2.0, False)), **wrong)
    assert "R = 2 (4 R) for b and 1 (2 R) for d on." in found("norm", saved, twice).statement
    alone = output(
        "e", others=others((1.0, False)), **wrong
    )  # one of the tests at its edge: the claimed R itself would do
    assert "no test refutes from" not in found("norm", alone).statement and told not in found("norm", alone).statement
    for name in ("bars", "shape", "memory"):  # of the Bayesian reading R is no repair
        assert (
            "With this kernel and B" not in found(name, replace(saved, tried=output(**TOLD[name][3]).tried)).statement
        )


def test_each_test_names_what_it_rests_on():
    bayes = {name for name in TOLD if BAYES in found(name).assumes}
    assert bayes == {"bars", "shape", "memory"} and all(found(n).assumes == (BAYES,) for n in bayes)
    for name in set(TOLD) - bayes:
        assert found(name).assumes == (judgements.JOINT, judgements.MARTINGALE)
        loose = found(name, rows=SimpleNamespace(runs=0, first=FIRST, linked=5))
        assert loose.assumes == (judgements.JOINT, judgements.DRAWN)
        if name != "time":
            drawn = found(name, rows=SimpleNamespace(runs=0, first=FIRST, linked=5), origin="drawn")
            assert drawn.assumes == (judgements.JOINT, judgements.MARTINGALE)
    chosen = {name: found(name, stated=("kernel", "B")).assumes[0] for name in set(TOLD) - bayes}
    assert chosen.pop("held") == judgements.CHOSEN and set(chosen.values()) == {judgements.JOINT}


def test_memory_is_asked_of_rows_that_follow_each_other():
    for name in ("time", "memory"):
        for changes, why in (
            ({"origin": "drawn"}, "gpsafe drew the noise itself"),
            ({"rows": SimpleNamespace(runs=0, first=FIRST, linked=0)}, "no row is said to follow another"),
            ({"rows": SimpleNamespace(runs=2, first=FIRST, linked=0)}, "No two kept rows are successive"),
        ):
            one = found(name, **changes)
            assert one.ruling is Ruling.NOT_APPLICABLE and why in one.statement
    assert "errors, model error included: a 0.25 and b 0.25" in found("time", output(), output("b")).statement
    heard = {"memory": vector(9.0)}
    quiet = {"errors": (torch.full((M, 1), 0.1, dtype=torch.float64), TRIED.errors[1])}
    alone = found("memory", output(**heard, **quiet))
    assert alone.ruling is Ruling.NOT_APPLICABLE and "far below R" in alone.statement and "a 0.25" in alone.statement
    assert alone.claim == found("memory").claim
    assert found("memory", output(**heard, **quiet), output("b", **heard)).ruling is Ruling.REFUTED
    assert found("memory", output(**heard, **quiet), output("b")).ruling is Ruling.NOT_APPLICABLE  # b does not refute
    assert found("memory", output(**quiet)).ruling is Ruling.STANDS


def test_repeats_bound_noise_whatever_f_is():
    few = found("repeats", repeats=Repeats(2, 0, (math.nan,), (math.nan,)))
    assert few.ruling is Ruling.NOT_APPLICABLE and few.statement.startswith("2 pairs of judging rows")
    two = (output("a"), output("b", design=replace(DESIGN, noise=0.1)))
    for low, ruling in ((0.09, Ruling.STANDS), (0.1, Ruling.STANDS), (0.2, Ruling.REFUTED)):
        one = found("repeats", *two, repeats=Repeats(5, 0, (0.3, low), (0.4, 0.6)))
        assert one.ruling is ruling and (one.statistic, one.threshold) == (low, 0.1)
        assert ("That does not make it true" in one.statement) == (ruling is Ruling.STANDS)
        assert one.statement.startswith("5 pairs") and "the noise of b needs R ≥" in one.statement
        assert one.rows == (("a", 0.3, 0.4, R), ("b", low, 0.6, 0.1)) and one.level == 2 * DELTA
        assert one.assumes == (judgements.MARTINGALE, judgements.REPEATED, "nothing about f, k or B")
    first = found("repeats", *two, repeats=Repeats(5, 0, (0.6, 0.05), (0.4, 0.6)))
    assert first.ruling is Ruling.REFUTED and first.statistic == 0.6


def test_copies_are_told_where_noise_has_a_density():
    none, some = (Repeats(n, n, (math.nan,), (math.nan,)) for n in (0, 2))
    assert (
        found("copies", repeats=none).ruling is Ruling.STANDS and "0 pairs" in found("copies", repeats=none).statement
    )
    one = found("copies", repeats=some)
    assert one.ruling is Ruling.REFUTED and (one.statistic, one.threshold, one.level) == (2.0, 0.0, 0.0)
    assert found("copies", repeats=some, origin="drawn").ruling is Ruling.NOT_APPLICABLE
    stepped = found("copies", output(lattice=0.05), repeats=some)
    assert stepped.ruling is Ruling.STANDS and "Measured values move in steps (a by 0.05)" in stepped.statement
    assert "Measured values" not in found("copies", output(lattice=0.05), repeats=none).statement
    assert "Measured values" in found("repeats", output(lattice=0.05), repeats=none).statement


def test_tails_are_shown_in_standard_deviations_of_the_forecast():
    """√(R² + v) with R = 0.5: 1, 2 and 3 of them, and the worst."""
    errors = torch.tensor([0.5, -0.6, 1.1, -1.6, 2.5, 0.0, 0.0, 0.0]).double().unsqueeze(-1)
    spread = torch.zeros(M, dtype=torch.float64)
    wide = output("w", errors=(errors, spread + 1.2))  # √(0.25 + 1.44) = 1.3
    one = found("tail", wide, output("a", errors=(errors, spread)))
    assert one.head == ("output", "beyond 1 sd", "beyond 2 sd", "beyond 3 sd", "worst, sd")
    assert one.rows[1] == ("a", 0.5, 3 / 8, 2 / 8, pytest.approx(5.0))
    assert one.rows[0] == ("w", 2 / 8, 0.0, 0.0, pytest.approx(2.5 / 1.3))
    assert "25.0% of the 8 forecasts of a miss" in one.statement and "the worst by 5." in one.statement
    assert found("tail", output(tail=vector(0.0))).statistic == 300.0


def test_growth_is_read_where_there_is_some():
    def growing(exponent: float) -> Growth:
        return Growth((8, 32), (1.0, 4.0**exponent), (1.0, 1.0))

    for exponent, ruling in ((0.14, Ruling.STANDS), (0.16, Ruling.VACUOUS)):
        one = found("growth", output("a", growth=growing(exponent)), output("b", growth=growing(0.1)))
        assert one.ruling is ruling and one.statistic == pytest.approx(exponent) and "lower bound of a" in one.statement
        assert ("hardly at all" in one.statement) == (ruling is Ruling.STANDS) and one.level is None
        assert one.head == ("output", "n = 8", "n = 32", "exponent") and one.rows[1][:3] == ("b", 1.0, 4.0**0.1)
    none = output("a", growth=Growth((8, 32), (0.0, 1.0), (1.0, 1.0)))
    assert found("growth", none).ruling is Ruling.VACUOUS and "no growth to read" in found("growth", none).statement
    assert "lower bound of b" in found("growth", none, output("b", growth=growing(0.1))).statement


def test_what_is_published_from_above_stands_beside_what_is_proved():
    one = found("upper")
    assert (
        one.ruling is Ruling.VACUOUS
        and one.rows == (("a", 1.0, 6.0, 9.0, 3.0, NORM),)
        and one.assumes == judgements.OVER
    )
    assert "of 5 random functions" in one.statement and "and B, stated." in one.statement
    assert "twice the norm of the first rows' mean" in found("upper", stated=("kernel",)).statement


def test_kernels_without_anything_shorter_are_left_to_the_other_outputs():
    """Of two outputs the first had no stationary kernel: no trial was counted, and "no power" was no reason to be vacuous; the
    other way round nothing was examined at all (KeyError)."""
    plain = {d: {t: n for t, n in tests.items() if t != "kernel"} for d, tests in HITS.items() if d != judgements.SHORT}
    weak = HITS | {judgements.SHORT: HITS[judgements.SHORT] | {"kernel": 1}}
    for both in ((output("a", hits=plain), output("b", hits=weak)), (output("b", hits=weak), output("a", hits=plain))):
        one = found("kernel", *both)
        assert one.ruling is Ruling.VACUOUS and [row[0] for row in one.rows] == ["b"] and "1 of 40" in one.power
    for name in ("kernel", "shape"):
        one = found(name, output(hits=plain))
        assert one.ruling is Ruling.NOT_APPLICABLE and "no closed stationary form" in one.statement
    asked = {name: found(name).claim for name in ("kernel", "shape", "time", "memory")}
    assert asked["kernel"].endswith("than every f of the ball could.") and asked["time"].endswith(
        "(any f of the ball)."
    )
    assert all("as the process draws it" in asked[name] for name in ("shape", "memory"))
    held = found("held")
    assert held.claim == "F_n of the first 4 rows contains f at the other 8."
    assert found("norm").claim == "‖f‖_k ≤ B (B B!)."


def test_families_of_forecasters_are_those_of_the_trials():
    assert set(TRIED.lower) == set(trials.FAMILIES)
