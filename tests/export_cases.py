"""What tests of certificates share: asking the checker, and forging.

Forgers come in three strengths: who changes a number (the hash does not fit), who also writes the hash anew (the claim does not
fit), and who writes hashes, claim and assumptions anew, as gpsafe would for the changed problem: only mathematics is left then.
"""

import copy
import json
import re
from collections.abc import Callable

import torch

import gpsafe_check
from gpsafe.assumptions import Assumption
from gpsafe.saved._certificate import digest, written


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def told(text: str | bytes) -> tuple[int, list[str]]:
    """Exit code and lines of the checker."""
    lines: list[str] = []
    return gpsafe_check.check(text if isinstance(text, bytes) else text.encode(), lines.append), lines


def accepted(text: str) -> bool:
    code, lines = told(text)
    assert (code == 0) == (lines[-1] == "accepted") == all(line.startswith("ok  ") for line in lines[:-1])
    return code == 0


def rehashed(tree) -> str:
    return json.dumps(tree | {"sha256": digest({k: v for k, v in tree.items() if k != "sha256"})})


def rewritten(tree) -> str:
    """As gpsafe would write it for this problem and evidence, entries about its numbers included."""
    problem, entries = tree["problem"], []
    outputs = {"": problem}
    if "learned" in problem:
        outputs = {f" (output {one['output']})": one for one in problem["learned"]}
    for entry in tree["assumptions"]:
        kind, words = Assumption[entry["name"]], entry["words"]
        for label, one in outputs.items():
            if kind is Assumption.RKHS_NORM and words.endswith(label):
                words = f"rkhs_norm<={one['rkhs_norm']}{label}"
            if kind is Assumption.SUBGAUSSIAN and words.endswith(label):
                words = f"subgaussian({one['subgaussian']}){label}"
        if kind is Assumption.CALIBRATED:
            words = re.sub("<= .* for", f"<= {problem['radius']} for", words)
        if "half-axes" in words:
            words = f"w in its ellipsoid: half-axes [{', '.join(problem['half_axes'])}], at every step"
        entries.append(kind(words[len(kind.words) :]))
    return written(tree["kind"], problem, tree["evidence"], entries)


def put(*path, value) -> Callable[[dict], None]:
    """Sets one entry; a function of the float there, or a value."""

    def edit(tree) -> None:
        for key in path[:-1]:
            tree = tree[key]
        new = value(float(tree[path[-1]])) if callable(value) else value
        tree[path[-1]] = repr(new) if isinstance(new, float) else new

    return edit


def drop(name: str, index: int) -> Callable[[dict], None]:
    """Deletes one entry of a list."""

    def edit(tree) -> None:
        del tree[name][index]

    return edit


def both(*edits: Callable[[dict], None]) -> Callable[[dict], None]:
    """Several edits."""

    def edit(tree) -> None:
        for one in edits:
            one(tree)

    return edit


def refused_at(text: str, edit: Callable[[dict], None], line: str) -> None:
    """In all three strengths, the strongest at this line."""
    tree = copy.deepcopy(json.loads(text))
    edit(tree)
    code, lines = told(json.dumps(tree))
    assert code == 2 and "sha256" in lines[0]  # with the old hash
    assert told(rehashed(tree))[0] == 1  # with the old claim
    code, lines = told(rewritten(tree))
    assert code == 1 and lines[-1].startswith("refused at ") and line in lines[-1], lines[-2:]
    assert lines[-2].startswith("FAIL") and line in lines[-2]
