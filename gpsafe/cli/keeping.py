"""``gpsafe keep``: finished pieces of an experiment, copied to where git can hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpsafe.cli.common import UsageError, parse

USAGE = "usage: gpsafe keep NAME [--results FOLDER] [--to FOLDER] [--seeds 0 1 2] [--fresh]"


@dataclass(frozen=True)
class KeepOptions:
    """Copies what is finished of each seed, whole seeds and pieces, with the tensors compressed.

    gpsafe run NAME --results FOLDER goes on from the copy, gpsafe report NAME --results FOLDER draws it. Exit code 1 if a
    seed is refused.
    """

    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """Where the results are: FOLDER/NAME/<seed>/. They may be at work."""
    to: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("kept")
    """Where to keep them: FOLDER/NAME/<seed>/. Other arguments need another one (kept/full). The same as --results: what is
    there is compressed.
    """
    seeds: tuple[int, ...] = ()
    """These seeds only (default: all)."""
    fresh: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Forget what is kept of these seeds first."""


def keep(words: Sequence[str]) -> int:
    """``gpsafe keep``: loads no experiment. Exit code 1 if a seed cannot be kept."""
    if list(words) in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if not words or words[0].startswith("-"):
        raise UsageError(f"expected the name of an experiment first\n{USAGE}")
    name, known = words[0], [f.name for f in dataclasses.fields(KeepOptions)]
    options: KeepOptions = parse(KeepOptions, words[1:], prog=f"gpsafe keep {name}", known=known)
    from gpsafe.testbed import lock, store
    from gpsafe.testbed.experiment_keep import keep
    from gpsafe.testbed.experiment_store import Folder

    home, target = (folder / name for folder in (options.results, options.to))
    there = sorted(int(path.name) for path in (home.iterdir() if home.is_dir() else ()) if path.name.isdecimal())
    seeds = [seed for seed in there if not options.seeds or seed in options.seeds]
    if missing := sorted(set(options.seeds).difference(there)) or ([] if seeds else ["any"]):
        raise UsageError(f"expected results in {home}, got none of seed {', '.join(map(str, missing))}")
    try:
        store.require_writable("--to", target / "done.json")
    except ValueError as error:
        raise UsageError(str(error)) from None
    refused = 0
    for seed in seeds:
        try:
            kept = keep(Folder(home / str(seed)), Folder(target / str(seed)), fresh=options.fresh)
        except (ValueError, lock.Busy) as error:
            refused += 1
            print(f"seed {seed} is not kept: {error}")
            continue
        for note in kept.notes:
            print(f"seed {seed}: {note}")
        size = f"{sum(kept.sizes) / 1000:.0f} kB, at most {max(kept.sizes, default=0) / 1000:.0f} a piece"
        end = "finished" if kept.finished else f"not finished: gpsafe run {name} --results {options.to} goes on"
        print(f"seed {seed}: {len(kept.sizes)} pieces, {kept.new} of them new, {size}; {end}")
    print(f"kept in {target}; gpsafe report {name} --results {options.to} draws what is finished")
    return 1 if refused else 0
