"""What follows from a claim, in words: rulings and sentences of numbers that are made up."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from gpsafe.referee import Ruling
from gpsafe.referee.case import Case
from gpsafe.referee.consequences import of_refit, of_region
from gpsafe.referee.finding import shown
from gpsafe.referee.reach import Region
from gpsafe.referee.refit import Refit


def test_numbers_are_shown_with_three_digits_and_signs_of_their_own():
    told = [shown(v) for v in (0.012345, -2.0, 1e-9, math.inf, -math.inf, math.nan)]
    assert told == ["0.0123", "−2", "1e−09", "∞", "−∞", "–"]


ALIKE = Refit(0.0, 20, (0.5, 2.0), 1.0, 1.1, (3.0, 4.0), 0.9)


@pytest.mark.parametrize(("ratio", "ruling"), [(4.7, Ruling.REFUTED), (4.5, Ruling.STANDS)])  # ln(1/0.01) = 4.61
def test_frozen_hyperparameters_are_refuted_by_a_ratio_above_one_over_the_level(ratio, ruling):
    case = cast(Case, SimpleNamespace(share=0.01, outputs=[SimpleNamespace(name=name) for name in ("a", "b")]))
    found = of_refit(case, [ALIKE, replace(ALIKE, log_ratio=ratio)])
    assert found.ruling is ruling and (found.statistic, found.threshold) == (ratio, math.log(100))
    assert found.level == 0.02 and [row[0] for row in found.rows] == ["a", "b"]
    assert "of b become 0.5 to 2 times" in found.statement
    assert ("refuted for b" in found.statement) == (ruling is Ruling.REFUTED)
    assert ("do not prefer the refitted ones" in found.statement) == (ruling is Ruling.STANDS)


def test_a_region_of_which_nothing_is_proved_is_vacuous_and_one_that_is_proved_has_no_rest():
    none, some, every = (Region(9, yes, *rest, (0.1, 0.2)) for yes, *rest in ((0, 4, 3, 2), (2, 4, 2, 1), (9, 0, 0, 0)))
    told = [of_region(region, 30, 0.05) for region in (none, some, every)]
    assert [found.ruling for found in told] == [Ruling.VACUOUS, Ruling.STANDS, Ruling.STANDS]
    assert told[1].statistic == 2 / 9 and "In 2 of 9 cells" in told[1].statement
    assert "within 0.1 and 0.2 of the mean of 30 rows" in told[1].statement
    assert "2 have no row near, in 1 β is too large for the σ that the rows leave, 4 are undecided" in told[1].statement
    assert "Of the rest" not in told[2].statement
