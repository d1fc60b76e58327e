"""Results that carry a word, "calibrated" or "certified" say, held to the parts of which it was said.

`dataclasses.replace` hands on every field that it is not given, words too, and tensors can be written on, through NumPy as
well. So who says the word seals the parts: another one in its place is refused where the result is made anew, and numbers that
were written on are noticed where somebody acts on the word. Copies and pickles keep the seal. It keeps no forger out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import numbers_of, same_numbers

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Seal:
    """What a result was made of.

    Attributes:
        parts: fields by name, the objects themselves.
        numbers: copies of the numbers in some of them, see `numbers_of`.
    """

    parts: dict[str, Any]
    numbers: dict[str, tuple[Tensor, ...]]

    def broken(self, result: Any) -> str | None:
        """Which part is another one, or was written on; None if none was."""
        for name, then in self.parts.items():
            if not _same(getattr(result, name), then):
                return f"another {name}"
        for name, then in self.numbers.items():
            now = getattr(result, name)
            # A tensor is compared where it lies: copies of large ones would take most of the time.
            if not same_numbers((now.detach().cpu(),) if isinstance(now, Tensor) else numbers_of(now), then):
                return f"numbers of {name} that were written on"
        return None


def sealed(result: T, *, free: Sequence[str] = (), watched: Sequence[str] = ()) -> T:
    """A dataclass that was just made, with the seal of its maker in `_seal`.

    Args:
        result: with a field `_seal`, None.
        free: fields of which the word does not speak.
        watched: fields or properties whose numbers are looked at, too; of the others it is enough that they are the same
            objects.
    """
    names = [f.name for f in fields(result) if f.init and f.name not in (*free, "_seal")]  # type: ignore[arg-type]
    parts = {name: getattr(result, name) for name in names}
    object.__setattr__(result, "_seal", Seal(parts, {name: numbers_of(getattr(result, name)) for name in watched}))
    return result


def require_unbroken(where: str, result: Any) -> None:
    """Refuses a result whose maker sealed other parts, at the end of a `__post_init__`."""
    broken = None if result._seal is None else result._seal.broken(result)
    if broken is not None:
        raise _require.fail(where, "the parts that it was made of (other ones make another: make it anew)", broken)


def edited(result: Any) -> str | None:
    """What is no longer as it was sealed, or that nobody has vouched for it; None if all is."""
    return "parts that nobody has sealed" if result._seal is None else result._seal.broken(result)


def _same(now: Any, then: Any) -> bool:
    """The same object; of plain values, which a pickle makes anew, an equal one."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, tuple):
        return len(now) == len(then) and all(map(_same, now, then))
    return isinstance(now, str | int | float) and (now == then or (now != now and then != then))
