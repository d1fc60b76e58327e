#!/usr/bin/env python3
"""Builds the source distribution, and from it alone the wheel, into dist/: what it lacks, the wheel lacks."""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from setuptools import build_meta

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def main() -> None:
    DIST.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "source")  # setuptools would read the build folders of the checkout
        ignored = shutil.ignore_patterns(
            ".git", ".venv*", "build", "dist", "results", "report", "bench", "*.egg-info", "__pycache__"
        )
        shutil.copytree(ROOT, copy, ignore=ignored)
        os.chdir(copy)
        sdist = build_meta.build_sdist(str(DIST))
        with tarfile.open(DIST / sdist) as archive:
            archive.extractall(folder, filter="data")
        os.chdir(Path(folder, sdist.removesuffix(".tar.gz")))
        wheel = build_meta.build_wheel(str(DIST))
    print(f"dist: wrote dist/{sdist} and dist/{wheel}")


if __name__ == "__main__":
    main()
