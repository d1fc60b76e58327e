"""Draws the README's figure from a stored guarantee report: python -m experiments.readme_figure [report/report.json]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from gpsafe import plotting
from gpsafe.testbed import store
from gpsafe.testbed.check import discover


@dataclass(frozen=True)
class Arguments:
    """Where to read and write."""

    report: Path = Path("report/report.json")
    check: str = "actsafe-executed-safe"
    out: Path = Path("docs/figures/actsafe.png")


def main(arguments: Arguments) -> None:
    """One check's figure, from its stored evidence."""
    records = {record["name"]: record for record in json.loads(arguments.report.read_text())["checks"]}
    if arguments.check not in records:
        raise SystemExit(f"{arguments.report}: expected a check among {sorted(records)}, got {arguments.check!r}")
    record, check = records[arguments.check], discover()[arguments.check]
    assert check.plot is not None
    with plotting.style(size=9):
        figure = plotting.figure(8.4, 3.6)
        check.plot(figure, record["data"], record["control_data"])
    store.write_bytes(arguments.out, plotting.save(figure, kind="png", dpi=130))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
