"""The benchmarks run, and their ratios are what they say."""

import json
import time

import pytest

from experiments.benchmarks import __main__ as bench
from experiments.benchmarks import common as benchmarks

SWEEP = ("sweep-workers", "sweep-store", "sweep-scheduler")


def test_ratio_is_the_median_within_rounds():
    found = benchmarks.ratio([4.0, 9.0, 10.0], [2.0, 3.0, 1.0])
    assert found["median"] == 3.0
    assert found["of_minima"] == 4.0
    assert benchmarks.ratio([4.0], [2.0])["median"] == 2.0


def test_contestants_alternate():
    order: list[str] = []
    seconds = benchmarks.paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4  # one warm-up round
    assert len(seconds["a"]) == len(seconds["b"]) == 3


def test_control_a_slower_contestant_is_seen():
    seconds = benchmarks.paired({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, 3)
    assert benchmarks.ratio(seconds["slow"], seconds["fast"])["median"] > 2


def test_names_are_unique():
    benchmarks.benchmark("only-in-a-test")(lambda settings: {})
    try:
        with pytest.raises(ValueError, match="unique names"):
            benchmarks.benchmark("only-in-a-test")(lambda settings: {})
    finally:
        del benchmarks.BENCHMARKS["only-in-a-test"]


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="expected names in"):
        bench.main(bench.Arguments(only=("no-such-benchmark",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "gp-posterior",
        "gp-low-rank",
        "gp-append",
        "planning-step",
        "certificate",
        "sac",
        "refit",
        "baselines",
        "loop",
        "ranges",
        "explorers",
        *SWEEP,
    ],
)
def test_benchmarks_run_and_write_their_environment(name, tmp_path):
    out = tmp_path / "results.json"
    bench.main(bench.Arguments(rounds=2, quick=True, json=out, only=(name,)))
    result = json.loads(out.read_text())
    assert set(result["benchmarks"]) == {name}
    assert result["environment"]["versions"]["torch"]
    if name == "gp-posterior":
        assert result["benchmarks"][name]["rows"][0]["largest_difference"] < 1e-8
