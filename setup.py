"""A wheel has the checks and the experiments inside the package: gpsafe.proofs_checks and gpsafe.experiments.

In a checkout they lie beside it, where people read and change them, and an editable install sees them there under the
same names (`gpsafe/__init__.py`).
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BESIDE = ("proofs_checks", "experiments")
KINDS = {".py", ".json"}


class BuildPy(build_py):
    """Builds what stands beside the package into it."""

    def _beside(self) -> list[Path]:
        return [path for name in BESIDE for path in sorted(Path(name).rglob("*")) if path.suffix in KINDS]

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in self._beside():
                target = Path(self.build_lib, "gpsafe", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, self._beside())]


setup(cmdclass={"build_py": BuildPy})
