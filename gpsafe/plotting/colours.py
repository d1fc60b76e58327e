"""Which colour, dash and mark stands for what. Loads no library for pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any

from gpsafe import _require


@dataclass(frozen=True)
class Theme:
    """The colours of a page. Lines and text stand out from it by a contrast ratio of at least 3 (WCAG 2).

    The hues are those of Okabe & Ito, made darker on a light page and lighter on a dark one, and moved until the two of the
    first eight (`Theme.series`) that are hardest to tell apart differ by a ΔE (CIEDE2000) of more than 11 for an eye with all
    cones and for one without those of red or of green, and of more than 8 without those of blue.
    """

    name: str
    page: str
    ink: str
    grey: str
    faint: str
    """Fills and grids: not for lines that say something."""
    blue: str
    orange: str
    green: str
    red: str
    purple: str
    sky: str
    olive: str

    @property
    def series(self) -> tuple[str, ...]:
        """Eight colours in the order in which unnamed things take them."""
        return self.blue, self.orange, self.green, self.red, self.purple, self.sky, self.olive, self.ink


LIGHT = Theme(
    name="light",
    page="#ffffff",
    ink="#1b1f24",
    grey="#7a828b",
    faint="#dde2e7",
    blue="#0e4c94",
    orange="#de760a",
    green="#1c9975",
    red="#d24946",
    purple="#b866a7",
    sky="#2398df",
    olive="#635a09",
)
DARK = Theme(
    name="dark",
    page="#14181d",
    ink="#e6e9ec",
    grey="#8b949e",
    faint="#333a43",
    blue="#3487fe",
    orange="#dead68",
    green="#0b8f65",
    red="#ee1701",
    purple="#c65698",
    sky="#1bcafe",
    olive="#f6f61c",
)
THEMES: Mapping[str, Theme] = {theme.name: theme for theme in (LIGHT, DARK)}
CURRENT: ContextVar[Theme] = ContextVar("theme of gpsafe.plotting", default=LIGHT)

_SOLID, _DASHED, _DOTTED, _MIXED = "-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5))
_DASHES = (_SOLID, _DASHED, _DOTTED, _MIXED)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

NOUNS: Mapping[str, tuple[str, Any, str]] = {
    # what is, and what is allowed
    "truth": ("ink", _SOLID, ""),
    "limit": ("ink", _DASHED, ""),
    "data": ("ink", "", "."),
    "executed": ("ink", "", "o"),
    "safe": ("green", _SOLID, "o"),
    "unsafe": ("red", _DASHED, "X"),
    "unknown": ("grey", _DOTTED, "."),
    "published": ("grey", _MIXED, "x"),
    "proposed": ("grey", _SOLID, ""),
    # what is believed
    "mean": ("blue", _SOLID, ""),
    "band": ("blue", _SOLID, ""),
    "gp": ("blue", _SOLID, "o"),
    "ensemble": ("orange", _DASHED, "s"),
    "sparse-gp": ("sky", _DASHED, "D"),
    "mc-dropout": ("red", _DOTTED, "v"),
    "laplace": ("purple", _MIXED, "P"),
    # how its uncertainty was mended
    "as-trained": ("grey", _SOLID, "o"),
    "sigma-scaling": ("orange", _DASHED, "s"),
    "isotonic": ("purple", _MIXED, "P"),
    "conformal": ("green", _SOLID, "^"),
    "weighted-conformal": ("sky", _DASHED, "D"),
    "adaptive-conformal": ("olive", _DOTTED, "*"),
    "certified": ("blue", _SOLID, "o"),
    "refused": ("red", "", "x"),
    "terminal": ("ink", _MIXED, ""),
    # a check and its control
    "claim": ("blue", _SOLID, "o"),
    "control": ("red", _DASHED, "X"),
    # what acts in a filtered step
    "plan": ("blue", _SOLID, "o"),
    "stored": ("green", _SOLID, "s"),
    "backup": ("orange", _SOLID, "^"),
    "initial": ("olive", _SOLID, "D"),
    "soft": ("red", _SOLID, "v"),
    "unfiltered": ("purple", _SOLID, "X"),
    # modes of a filter, arms of X-MPSC
    "none": ("ink", _DOTTED, "X"),
    "paper": ("red", _DASHED, "v"),
    "prior": ("purple", _SOLID, "P"),
    "invariant": ("green", _SOLID, "s"),
    "certain": ("sky", _DASHED, "D"),
    "sound": ("blue", _SOLID, "o"),
    "mbpo": ("orange", _DASHED, "^"),
    "safe-controller": ("olive", _MIXED, "*"),
    "certain-95": ("sky", _DASHED, "D"),
    "certain-50": ("orange", _MIXED, "s"),
    # where a plan may end
    "hull": ("orange", _DASHED, "^"),
    "hull-all": ("sky", _MIXED, "D"),
    # what a model of one simulator is worth in another
    "home": ("purple", _SOLID, "P"),
    "known": ("sky", _DASHED, "D"),
    "analytic": ("orange", _DASHED, "^"),
    "widened": ("blue", _SOLID, "o"),
    "bullet": ("green", _SOLID, "s"),
    # what may go wrong, and what is gained
    "escaped": ("blue", _SOLID, "o"),
    "unsafe-certified": ("orange", _DASHED, "s"),
    "unsafe-executed": ("red", _MIXED, "^"),
    "falsified": ("green", _DOTTED, "D"),
    "violations": ("red", _SOLID, "X"),
    "reward": ("blue", _SOLID, "o"),
    "covered": ("sky", _SOLID, "s"),
    # learners without a certificate
    "cpo": ("grey", _SOLID, "s"),
    "trpo-lagrangian": ("grey", _DASHED, "^"),
    "ppo-lagrangian": ("grey", _DOTTED, "D"),
    "lbpo": ("ink", _SOLID, "v"),
    "sqrl": ("ink", _DASHED, "P"),
    "safety-layer": ("ink", _DOTTED, "x"),
    # calibration: test data like those learnt from or of the other kind, and what bars are found to be
    "same-kind": ("blue", _SOLID, "o"),
    "other-kind": ("orange", _DASHED, "s"),
    "over-confident": ("orange", _DASHED, "v"),
    "under-confident": ("blue", _MIXED, "^"),
    "well-calibrated": ("green", _SOLID, "o"),
    # certifiers held against each other
    "policy-set": ("sky", _MIXED, "D"),
    "tube-paper": ("orange", _DASHED, "v"),
    "tube-sound": ("blue", _SOLID, "o"),
    "shield": ("green", _DOTTED, "s"),
    # filters of an expected cost
    "account": ("blue", _SOLID, "o"),
    "informed-account": ("green", _DASHED, "s"),
    "pointwise": ("orange", _MIXED, "^"),
    "prior-policy": ("ink", _DOTTED, "D"),
    # bounds of a cost
    "scenario-tube": ("blue", _SOLID, "o"),
    "gaussian-tube": ("sky", _DASHED, "D"),
    "robust-dp": ("green", _MIXED, "s"),
    "total-variation": ("orange", _DASHED, "^"),
    "hallucinated": ("purple", _DOTTED, "v"),
    "sampled": ("red", _DOTTED, "X"),
    # who explores
    "actsafe": ("blue", _SOLID, "o"),
    "greedy": ("orange", _DASHED, "s"),
    "uniform": ("purple", _DOTTED, "^"),
    "mean-greedy": ("red", _MIXED, "X"),
}
"""Noun → hue, dash, mark. Nouns that meet in one picture differ in more than the hue. "Sparse GP" is the noun sparse-gp."""


def _key(noun: Any) -> Any:
    return noun.lower().replace(" ", "-") if isinstance(noun, str) else noun


@dataclass(frozen=True)
class Look:
    """How a line looks: `axes.plot(x, y, **look.line)`, or only its colour."""

    colour: str
    dash: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """For a line without marks."""
        return {"color": self.colour, "linestyle": self.dash}

    @property
    def marked(self) -> dict[str, Any]:
        """For a line with marks."""
        return {**self.line, "marker": self.marker}

    @property
    def points(self) -> dict[str, Any]:
        """For marks alone."""
        return {"color": self.colour, "linestyle": "", "marker": self.marker or "o"}


def theme() -> Theme:
    """The one in use: LIGHT outside of `style`."""
    return CURRENT.get()


def colour(noun: str) -> str:
    """The colour of a noun, or of a part of the page (page, ink, grey, faint), in the theme in use.

    >>> colour("safe") == LIGHT.green
    True
    """
    parts = ("page", "ink", "grey", "faint")
    if noun in parts:
        return getattr(theme(), noun)
    return getattr(theme(), NOUNS[_require.one_of("colour", "noun", _key(noun), (*NOUNS, *parts))][0])


def look(noun: str) -> Look:
    """Colour, dash and mark of a noun in the theme in use."""
    hue, dash, marker = NOUNS[_require.one_of("look", "noun", _key(noun), NOUNS)]
    return Look(getattr(theme(), hue), dash, marker)


def looks(names: Iterable[Any]) -> dict[Any, Look]:
    """Looks for names that are no nouns, all different in the pair of dash and mark too (up to 32), in the order given.

    A name that is a noun keeps its own look, and the others take none of its colours as long as there are free ones.
    """
    listed = list(dict.fromkeys(names))
    given = {name: look(name) for name in listed if _key(name) in NOUNS}
    taken = {found.colour for found in given.values()}
    used = {(str(found.dash), found.marker) for found in given.values()}
    pairs = [(_DASHES[(k + k // 8) % 4], _MARKERS[k % 8]) for k in range(32)]
    pairs = iter([(dash, marker) for dash, marker in pairs if (str(dash), marker) not in used])
    hues = chain((hue for hue in theme().series if hue not in taken), cycle(theme().series))
    for name in listed:
        if name not in given:
            pair = next(pairs, None)
            if pair is None:
                raise _require.fail("looks", "at most 32 names", str(len(listed)))
            given[name] = Look(next(hues), *pair)
    return {name: given[name] for name in listed}


def ramp(count: int) -> list[str]:
    """Colours for things in order (episodes, epochs), early to late: from sky to ink, each as clear on the page as sky."""
    _require.count("ramp", "count", count)
    ends = [[int(end[i : i + 2], 16) for i in (1, 3, 5)] for end in (theme().sky, theme().ink)]
    shares = [k / max(count - 1, 1) for k in range(count)]
    return ["#" + "".join(f"{round((1 - t) * a + t * b):02x}" for a, b in zip(*ends, strict=True)) for t in shares]
