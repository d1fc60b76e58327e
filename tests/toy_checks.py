"""A package of tiny checks in a temporary folder: one for each thing that a check can do to its runner."""

from __future__ import annotations

import contextlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOY = textwrap.dedent(
    """
    import contextlib, math, os, pathlib, signal, time
    import torch
    from gpsafe.testbed.check import Check, Evidence, Grade
    from gpsafe.verdict import Verdict, clopper_pearson

    HERE = pathlib.Path(__file__).parent

    def make(name, p, q, sample=None, judge=None, plot=None, shards=3, **kwargs):
        def draw(shard, budget, broken):
            generator = torch.Generator().manual_seed(2 * shard + broken)
            hits = int((torch.rand(400, generator=generator) < (q if broken else p)).sum())
            return {"hits": hits, "n": 400}

        def weigh(samples, broken):
            hits, n = sum(s["hits"] for s in samples), sum(s["n"] for s in samples)
            data = {"hits": [s["hits"] for s in samples], "far": math.inf}
            verdict = Verdict(*clopper_pearson(hits, n), 0.1, witness=f"{hits} misses")
            return Evidence(n, hits / n, verdict, data)

        return Check(
            name=name,
            claim="P(miss) ≤ 0.1 & <script>alert('x')</script>",
            source="Toy 2024, Thm 1",
            assumptions=("rkhs_norm<=B",),
            statistic="share of misses",
            control="Half the width.",
            shards={"quick": shards, "full": 2 * shards},
            sample=sample or draw,
            judge=judge or weigh,
            plot=plot,
            **kwargs,
        )

    def draw_plot(figure, claim, control):
        figure.subplots().plot(claim["hits"])

    def bad_plot(figure, claim, control):
        raise ValueError("no <axis>")

    def raises(shard, budget, broken):
        if shard == 1 and not broken:
            raise RuntimeError("not positive\\n definite")
        return {"hits": 399 * broken, "n": 400}

    def dies_once(shard, budget, broken):
        mark = HERE / "died"
        if shard == 1 and not broken and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"hits": 399 * broken, "n": 400}

    def dies_always(shard, budget, broken):
        if shard == 1 and not broken:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"hits": 399 * broken, "n": 400}

    def slow(shard, budget, broken):
        time.sleep(0.3)
        return {"hits": 399 * broken, "n": 400}

    def unbounded(samples, broken):
        if broken:
            return Evidence(1, math.nan, Verdict(5.0, math.inf, 1.0))
        return Evidence(1, -math.inf, Verdict(-math.inf, 0.5, 1.0, tol=1e-9))

    LEVEL = {"share": 1.0, "spare": 1.0, "nothing": 1.0}

    @contextlib.contextmanager
    def scaled(name, factor):
        LEVEL[name] = factor
        try:
            yield
        finally:
            LEVEL[name] = 1.0

    @contextlib.contextmanager
    def harm(factor):
        with scaled("share", 0.1):
            yield

    def level(shard, budget, broken):  # the claim: share >= 0.8 and spare > 0
        excess = 1.0 if broken else max(0.8 - LEVEL["share"], -LEVEL["spare"] + 1e-3)
        return {"hits": excess, "n": shard}

    def highest(samples, broken):
        worst = max(s["hits"] for s in samples)
        return Evidence(len(samples), worst, Verdict(worst, worst, 0.0))

    def fails(shard, budget, broken):
        if LEVEL["share"] < 0.6:
            raise RuntimeError("too little")
        return {"hits": broken - 0.5, "n": 1}

    def grade(term, name, unseen="", **kwargs):
        return Grade(term, lambda factor: scaled(name, factor), unseen=unseen, **kwargs)

    def slowly(samples, broken):  # decides after the fifth piece
        wide = 1.0 if len(samples) < 5 else 0.05
        ends = (0.5, 1.0) if broken else (0.0, wide)
        return Evidence(len(samples), 0.0, Verdict(*ends, 0.1), {"hits": [s["hits"] for s in samples]})

    CHECKS = (SELECTED)
    """
)

MAKERS = {
    "holds": 'make("holds", 0.02, 0.5, plot=draw_plot)',
    "violated": 'make("violated", 0.3, 0.5, plot=bad_plot)',
    "unproven": 'make("unproven", 0.02, 0.03)',
    "unclear": 'make("unclear", 0.1, 0.5)',
    "raises": 'make("raises", 0, 0, raises)',
    "dies-once": 'make("dies-once", 0, 0, dies_once)',
    "dies-always": 'make("dies-always", 0, 0, dies_always)',
    "slow": 'make("slow", 0, 0, slow, shards=4)',
    "unbounded": 'make("unbounded", 0, 1, judge=unbounded, shards=1, control_shards={"quick": 2, "full": 2})',
    "not-json": 'make("not-json", 0, 0, lambda s, b, k: {"x": object()}, shards=1)',
    "sequential": 'make("sequential", 0, 1, judge=slowly, shards=2, most={"quick": 9, "full": 9})',
    "undecided": 'make("undecided", 0, 1, judge=slowly, shards=2, most={"quick": 4, "full": 4})',
    "graded": 'make("graded", 0, 0, level, highest, grades=('
    'grade("the share", "share", shards=(1,)), grade("spare", "spare", unseen="so they said")))',
    "blind": 'make("blind", 0, 0, level, highest, grades=(grade("nothing", "nothing"),))',
    "blind-told": 'make("blind-told", 0, 0, level, highest, grades=(grade("nothing", "nothing", "it is <nothing>"),))',
    "grade-raises": 'make("grade-raises", 0, 0, fails, highest, grades=(grade("the share", "share"),))',
    "grade-harms": 'make("grade-harms", 0, 0, level, highest, grades=(Grade("the share", harm),))',
    "no-evidence": 'make("no-evidence", 0, 1, judge=lambda samples, broken: 3, shards=1)',
    "no-shards": 'make("no-shards", 0, 1, shards=0)',
}


def write(folder: Path, package: str, *names: str) -> None:
    """Writes a package of the named checks under `folder`."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    body = TOY.replace("SELECTED", "".join(f"{MAKERS[name]}, " for name in names))
    (folder / package / "toy.py").write_text(body, encoding="utf-8")


NUMBER = itertools.count()


@contextlib.contextmanager
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Gives a function from names of checks to the name of a new package that holds them."""
    monkeypatch.syspath_prepend(folder)
    made: list[str] = []

    def make(*names: str) -> str:
        made.append(f"toy_package_{next(NUMBER)}")
        write(folder, made[-1], *names)
        return made[-1]

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] in made]:
        del sys.modules[name]
