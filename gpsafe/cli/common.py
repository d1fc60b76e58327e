"""What the subcommands share: mistakes as one line, widths, and tyro's complaints made short."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import tyro

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}


class UsageError(Exception):
    """One line for the user; exit code 2."""


def width() -> int | None:
    """Width for a pipe or a file: wide enough for every column. None on a terminal, which knows its own."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(60, int(os.environ["COLUMNS"]))
    return None if sys.stdout.isatty() else 160


def see_current_folder() -> None:
    """Makes packages of the current folder importable; a console script has its own folder first instead."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def parse(
    options: Any, words: Sequence[str], *, prog: str, description: str | None = None, known: Sequence[str] = ()
) -> Any:
    """Options read by tyro from a dataclass type; its framed complaint becomes one line.

    Args:
        options: the type.
        words: what the user wrote.
        prog: name of the command.
        description: what its help says first (default: the type's docstring).
        known: names of the options, to propose one for a misspelt one.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, prog=prog, args=list(words), description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
    # A frame: a title (above a rule, on plain terminals), the complaint, a rule or an empty line, more.
    framed = [line.strip("│ ") for line in complaint.getvalue().splitlines()]
    body = framed[1:] if framed[:1] and framed[0].startswith("╭") else framed[2:]
    lines = list(itertools.takewhile(lambda line: set(line) - set("─-"), body))
    said = " ".join(lines) or "the options are wrong"
    names = [f"--{name.replace('_', '-')}" for name in known]
    wrong = [word.split("=")[0] for word in words if word.startswith("--")] if "nrecognized" in said else []
    near = [match for word in wrong if word not in names for match in difflib.get_close_matches(word, names, n=1)]
    raise UsageError(f"{said}{''.join(f'; did you mean {name}?' for name in near)} See {prog} --help")
