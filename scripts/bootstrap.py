#!/usr/bin/env python3
"""Sets up `.venv` for this checkout: torch first and with pip, the rest from requirements.lock, then gpsafe.

Standard library only, so it runs before anything is installed and without make:

    python3.11 scripts/bootstrap.py            # set up, or say at once that all is up to date
    python3.11 scripts/bootstrap.py --relock   # write requirements.lock anew from pyproject.toml

torch goes first and with pip because pip's own configuration decides between a CPU and a CUDA build; uv
ignores that configuration, so it never gets to choose a torch. A set-up that was interrupted is started over;
of two calls at the same time one waits for the other. The syntax stays that of Python 3.6, so that an old
Python gets as far as the message that it is too old.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

TORCH = "torch==2.13.0"
UV = "uv==0.13.9"
MINIMUM = (3, 11)
NEEDED = ".".join(map(str, MINIMUM))

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PYPROJECT = ROOT / "pyproject.toml"
LOCK_HEADER = f"""\
# Every package of gpsafe with all its extras, save {TORCH}, which scripts/bootstrap.py installs first.
# Made by `make lock` (scripts/bootstrap.py --relock); do not edit.
"""


class SetupError(Exception):
    """A failed step: one line on what failed and what to do about it."""


def say(line: str) -> None:
    print(f"bootstrap: {line}", flush=True)


def die(line: str, code: int = 1) -> NoReturn:
    print(f"bootstrap: error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


def shown(path: Path) -> str:
    """`path` as a person in the checkout would name it."""
    return str(path.relative_to(ROOT)) if ROOT in path.parents else str(path)


class Venv:
    """The environment's folder and the files that tell its state.

    `stamp` exists only after a complete set-up and holds the fingerprint of what it was made from;
    `unfinished` exists from the first change to the last; `log` has the installers' output; `lock` is held
    during a set-up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        bin_dir, suffix = ("Scripts", ".exe") if os.name == "nt" else ("bin", "")
        self.python = path / bin_dir / f"python{suffix}"
        self.uv = path / bin_dir / f"uv{suffix}"
        self.command = path / bin_dir / f"gpsafe{suffix}"
        self.stamp = path / ".gpsafe-stamp"
        self.unfinished = path / ".gpsafe-unfinished"
        self.log = path.parent / f"{path.name}.log"
        self.lock = path.parent / f"{path.name}.lock"
        self.trash = path.parent / f"{path.name}.trash"
        self.held: tuple[int, ...] = ()  # the lock's descriptor, while this process holds it

    def is_current(self, fingerprint: str) -> bool:
        if self.unfinished.exists() or not (self.python.exists() and self.command.exists()):
            return False
        try:
            return self.stamp.read_text(encoding="utf-8") == fingerprint
        except OSError:
            return False


def fingerprint(venv: Venv) -> str:
    """Hash of all that a set-up depends on. The paths count: a virtual environment cannot be moved."""
    digest = hashlib.sha256()
    for part in (str(ROOT), str(venv.path)):
        digest.update(part.encode() + b"\0")
    for file in (PYPROJECT, LOCK, Path(__file__).resolve()):
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError:
            raise SetupError(f"{shown(file)} is missing: restore it (git checkout -- {shown(file)})") from None
    return digest.hexdigest()


@contextlib.contextmanager
def only_one(venv: Venv) -> "Iterator[None]":
    """Holds the lock for this process and the installers that it starts.

    The system lets go of it when the last of them has ended, however it ended: an installer that outlives a
    killed set-up still keeps the next one waiting.
    """
    venv.lock.parent.mkdir(parents=True, exist_ok=True)
    with open(venv.lock, "a+b") as file:
        if os.name == "nt":
            import msvcrt

            def take() -> None:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            def take() -> None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                venv.held = (file.fileno(),)

        told = False
        while True:
            try:
                take()
                break
            except OSError:
                if not told:
                    say("another set-up is running here, waiting for it")
                    told = True
                time.sleep(0.2)
        yield


# What an installer's output says about why it failed, and what to do. The first match wins.
REASONS = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full: free some space (a CPU set-up takes 3 GB)",
    ),
    (r"No module named pip", "the environment has no pip: remove its folder"),
    (r"ensurepip", "this Python has no ensurepip: install it (Debian and Ubuntu: the package python3-venv)"),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|SSLError",
        "the package index's certificate is not trusted",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|getaddrinfo|nodename nor servname"
        r"|dns error|NewConnectionError|ConnectTimeout|ReadTimeout|Connection refused|Network is unreachable"
        r"|ProxyError|error sending request|Failed to fetch",
        "no network, or the package index cannot be reached: connect, or set an index in pip's configuration",
    ),
    (
        r"No matching distribution|Could not find a version|no wheels with a matching",
        "no build of a package for this Python and system: try Python 3.11 or 3.12 on a 64-bit system",
    ),
)


def run(venv: Venv, what: str, command: "list[str]") -> None:
    """Runs `command` with its output in the log; raises SetupError that says what to do."""
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_USER="0")
    env.setdefault("UV_SYSTEM_CERTS", "1")
    env.pop("PYTHONPATH", None)
    env.pop("PYTHONHOME", None)
    with open(venv.log, "a+b") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        start = log.tell()
        try:
            code = subprocess.call(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=env,
                pass_fds=venv.held,
            )
        except OSError as error:
            raise SetupError(f"{what} failed: cannot start {command[0]}: {error.strerror}") from None
        log.seek(start)
        output = log.read().decode("utf-8", "replace")
    if code == 0:
        return
    for pattern, advice in REASONS:
        if re.search(pattern, output):
            raise SetupError(f"{what} failed: {advice}; then run this again (details: {shown(venv.log)})")
    raise SetupError(f"{what} failed with exit status {code}; see {shown(venv.log)}, then run this again")


def create(venv: Venv) -> None:
    """Makes a fresh environment, in place of one that was left half made or has lost its Python."""
    if sys.version_info < MINIMUM:
        raise SetupError(
            f"Python {NEEDED} or newer is needed, this is {sys.version.split()[0]} ({sys.executable}): "
            f"run `python{NEEDED} scripts/bootstrap.py` or `make PYTHON=python{NEEDED} ...`"
        )
    ours = venv.unfinished.exists() or (venv.path / "pyvenv.cfg").exists()
    if venv.path.exists() and any(venv.path.iterdir()) and not ours:
        raise SetupError(f"{venv.path} is there but is no virtual environment: move it away, then run this again")
    say(f"creating {shown(venv.path)} with Python {sys.version.split()[0]}")
    discard(venv.trash)
    if venv.path.exists() or venv.path.is_symlink():
        venv.path.rename(venv.trash)  # at once: a folder half removed must not pass for an environment
        discard(venv.trash)
    venv.path.mkdir(parents=True)
    venv.unfinished.touch()
    base = getattr(sys, "_base_executable", None) or sys.executable
    run(venv, "creating the environment", [base, "-m", "venv", str(venv.path)])


def discard(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def check_age(venv: Venv) -> None:
    """An environment that somebody else made may have a Python that is too old."""
    config = (venv.path / "pyvenv.cfg").read_text(encoding="utf-8")
    found = re.search(r"^version(?:_info)?\s*=\s*(\d+)\.(\d+)", config, re.MULTILINE)
    if found and tuple(map(int, found.groups())) < MINIMUM:
        raise SetupError(
            f"{shown(venv.path)} has Python {'.'.join(found.groups())}, {NEEDED} or newer is needed: "
            f"remove it, then run `python{NEEDED} scripts/bootstrap.py`"
        )


def install_locked(venv: Venv) -> None:
    """All of requirements.lock, which is complete, hence --no-deps: nothing here can replace torch."""
    pip = [str(venv.python), "-m", "pip"]
    try:
        run(venv, "installing uv", [*pip, "install", "--only-binary", ":all:", UV])
        target = ["--python", str(venv.python), "--no-deps", "-r", str(LOCK)]
        run(venv, "installing the locked packages with uv", [str(venv.uv), "pip", "install", *target])
    except SetupError as error:
        say(f"uv is of no help here ({str(error).split(':')[0]}), going on with pip, which is slower")
        run(venv, "installing the locked packages", [*pip, "install", "--no-deps", "-r", str(LOCK)])


def set_up(venv: Venv, wanted: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(FileNotFoundError):
        venv.log.unlink()
    if venv.unfinished.exists():
        say(f"{shown(venv.path)} was left unfinished, starting over")
    if venv.unfinished.exists() or not venv.python.exists():
        create(venv)
    check_age(venv)
    venv.unfinished.touch()
    with contextlib.suppress(FileNotFoundError):
        venv.stamp.unlink()
    pip = [str(venv.python), "-m", "pip"]
    say(f"installing {TORCH} with pip (the CPU or the CUDA build, as pip is configured)")
    run(venv, f"installing {TORCH}", [*pip, "install", TORCH])
    say(f"installing the packages of {shown(LOCK)}")
    install_locked(venv)
    say("installing gpsafe itself, editable")
    run(venv, "installing gpsafe", [*pip, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT)])
    partial = venv.stamp.with_suffix(".partial")
    partial.write_text(wanted, encoding="utf-8")
    os.replace(partial, venv.stamp)
    venv.unfinished.unlink()
    say(f"done in {time.monotonic() - began:.0f} s")


def relock(venv: Venv) -> None:
    """Writes requirements.lock for all extras and systems: no torch, nothing of its CUDA build, no URL."""
    say("resolving all extras of pyproject.toml for every system and Python 3.11 or newer")
    run(venv, "installing uv", [str(venv.python), "-m", "pip", "install", UV])
    pins, resolved = venv.path / "pins.txt", venv.path / "resolved.txt"
    pins.write_text(TORCH + "\n", encoding="utf-8")
    options = "--universal --all-extras --no-emit-package torch --no-header --no-annotate"
    command = [
        str(venv.uv),
        "pip",
        "compile",
        *options.split(),
        "--python-version",
        NEEDED,
        "--constraint",
        str(pins),
    ]
    run(venv, "resolving", [*command, "-o", str(resolved), str(PYPROJECT)])
    lines = resolved.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not re.match(r"(nvidia|cuda|triton|torch)\b", line)]
    if any("://" in line for line in kept):
        raise SetupError("the resolution names a URL; requirements.lock must not")
    LOCK.write_text(LOCK_HEADER + "\n".join(kept) + "\n", encoding="utf-8")
    say(f"wrote {shown(LOCK)}: {len(kept)} pins")


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up the environment of this checkout.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment's folder (%(default)s)")
    parser.add_argument("--relock", action="store_true", help="write requirements.lock anew, then set up from it")
    options = parser.parse_args()
    venv = Venv(Path(os.path.abspath(options.venv)))

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        if not options.relock and venv.is_current(fingerprint(venv)):
            say(f"{shown(venv.path)} is up to date")
            return
        with only_one(venv):
            if options.relock:
                if not venv.python.exists():
                    create(venv)
                relock(venv)
            wanted = fingerprint(venv)
            if venv.is_current(wanted):
                say(f"{shown(venv.path)} is up to date")
            else:
                set_up(venv, wanted)
    except SetupError as error:
        die(str(error))
    except OSError as error:
        die(f"{error.strerror or error}: {error.filename or shown(venv.path)}")
    except KeyboardInterrupt:
        die("interrupted; the next call starts over", code=130)


if __name__ == "__main__":
    main()
