"""Reads what a package of checks or experiments says of itself without loading what it computes with.

Names, titles and claims stand in modules that import torch and all of gpsafe: seconds, for one line of text. Here those
modules are run with stand-ins for all that is neither Python's own nor theirs. A stand-in may be called, subclassed, passed on
and calculated with, but never *read*: to compare, print, count or loop over it stops the attempt, and the modules are imported
as they are. So no text or number that depends on one reaches a list (but for what `hasattr`, `isinstance` and `is` ask, which
go unnoticed), and no list can be older than the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

from gpsafe import _require

T = TypeVar("T")
_lock = threading.Lock()


_CALCULATE = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_READ = """
    iter next len bool str repr format int float complex index bytes contains eq ne lt le gt ge round trunc floor ceil enter
    exit fspath instancecheck subclasscheck reversed length_hint
"""


class _Read(BaseException):
    """A stand-in was looked at. No Exception: a module that catches those must not take this for an answer."""


class _StandIn:
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _StandIn()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return _StandIn()

    __getitem__ = __neg__ = __pos__ = __abs__ = __invert__ = __call__
    __hash__ = object.__hash__

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return ()


def _stop(*_: Any, **__: Any) -> Any:
    raise _Read


for _name in _CALCULATE.split():
    for _side in ("", "r"):
        setattr(_StandIn, f"__{_side}{_name}__", _StandIn.__call__)
for _name in _READ.split():
    setattr(_StandIn, f"__{_name}__", _stop)


_true_replace = dataclasses.replace


def _replace(obj: Any, /, **changes: Any) -> Any:
    """Python's own asks for the fields of what it changes, which a stand-in has not."""
    return obj if type(obj) is _StandIn else _true_replace(obj, **changes)


_true_names = _require.names


def _names(where: str, value: Any, allowed: Any) -> Any:
    """Which names there are a stand-in does not know: they are asked for once the module is loaded whole."""
    return value if type(allowed) is _StandIn else _true_names(where, value, allowed)


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _StandIn()


class _Finder:
    """Puts a stand-in for every module that could be imported and is not one of `real`."""

    def __init__(self, real: Sequence[str]) -> None:
        self.real = real

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top, inside = name.split(".")[0], [f"{real}.".startswith(f"{name}.") for real in self.real]
        if top in sys.stdlib_module_names or any(inside) or any(name.startswith(f"{real}.") for real in self.real):
            return None
        if name == top and not any(
            finder.find_spec(name, path)
            for finder in sys.meta_path
            if finder is not self and hasattr(finder, "find_spec")
        ):
            return None  # it is not installed: the import fails, as it would without us
        return ModuleSpec(name, self, is_package=True)  # pyright: ignore[reportArgumentType]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []


@contextlib.contextmanager
def _standing_in(package: str) -> Iterator[None]:
    """Within it, modules of `package` find stand-ins; afterwards nothing that was imported meanwhile is left."""
    with _lock:
        finder, before = _Finder((package, "gpsafe.testbed", "gpsafe._require")), set(sys.modules)
        tops = ("gpsafe", package.partition(".")[0])
        names = {name: set(vars(sys.modules[name])) for name in before if name.partition(".")[0] in tops}
        sys.meta_path.insert(0, finder)
        dataclasses.replace, _require.names = _replace, _names
        try:
            yield
        finally:
            dataclasses.replace, _require.names = _true_replace, _true_names
            sys.meta_path.remove(finder)
            for name in set(sys.modules) - before:
                del sys.modules[name]
            for name, known in names.items():  # submodules and lazy names are put into their packages, too
                for new in set(vars(sys.modules[name])) - known:
                    delattr(sys.modules[name], new)


def read(look: Callable[[str], T], package: str, fits: Callable[[T], bool]) -> T:
    """``look(package)``, with stand-ins if that answers, else as it is.

    Args:
        look: imports the modules of a package and says what is in them.
        package: its name.
        fits: whether an answer is whole: no stand-in where text or numbers belong, and nothing that failed.
    """
    try:
        with _standing_in(package):
            found = look(package)
            if fits(found):
                return found
    except KeyboardInterrupt:
        raise
    except BaseException:  # whatever stand-ins may cause; what is really wrong comes again
        pass
    return look(package)
