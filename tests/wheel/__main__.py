"""Builds what a release publishes, installs it, and runs tests with the compiled wheel installed.

    python -m tests.wheel                           # as `make wheel-test`
    python -m tests.wheel benchmarks --only load    # another program of the checkout

The tests say which books they expect; `make test` runs the same ones without compiled modules.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.service import ROOT
from tests.wheel.pythons import SUPPORTED, pythons

TESTS: Final = (
    "tests/domain",
    "tests/ingest/test_recordings.py",
    "tests/ingest/test_row_encoder.py",
    "tests/sessions/test_any_order.py",
    "tests/sessions/test_borders.py",
    "tests/sessions/test_careful_fold.py",
    "tests/sessions/test_open_sessions.py",
    "tests/sessions/test_reopening.py",
    "tests/sessions/test_session_rows.py",
    "tests/sessions/test_simulated.py",
)
"""The fold's property tests and its rules, the recordings of real servers, memory limits. None that
puts a bug into a class of a compiled module, which is not possible."""
MODULES: Final[Sequence[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "hatch"
]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
INSTALLED_TESTS: Final = ("tests/wheel/distributions.py", "tests/wheel/installed.py")
NOT_COMPILED: Final = {"ACCOUNTING_COMPILE": "0"}
WITHOUT_COMPILER: Final = {"PATH": "/nonexistent"}
PRINT_FILES: Final = (
    "import sys; from importlib import import_module;"
    "print(*(import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')"
)


def build(
    directory: Path, environment: Mapping[str, str], *, source: Path = ROOT, target: str = "wheel"
) -> Path:
    """Build the wheel, or the sdist, into a directory without one, and return its path."""
    before = set(directory.glob("*"))
    command = (sys.executable, "-m", "hatchling", "build", "-t", target, "-d", directory)
    subprocess.run(command, cwd=source, env=os.environ | environment, check=True)
    (built,) = set(directory.iterdir()) - before
    return built


def build_release(directory: Path) -> None:
    """What a release publishes, as `make dist` builds it, and the wheel that its sdist builds."""
    wheel = build(directory, NOT_COMPILED)
    sdist = build(directory, {}, target="sdist")
    with tempfile.TemporaryDirectory() as temporary:
        shutil.unpack_archive(sdist, temporary, filter="data")
        (source,) = Path(temporary).iterdir()
        again = build(directory / "of-sdist", NOT_COMPILED, source=source)
    assert again.name == wheel.name


def install(wheel: Path, directory: Path) -> Path:
    """Install the wheel in a virtual environment, beside this one's packages; its Python."""
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index")
    subprocess.run((*command, "--no-deps", wheel), check=True)
    (packages,) = directory.glob("lib/*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


def check_compiled(python: Path, directory: Path) -> None:
    """Check that exactly the modules of the list run compiled."""
    names = [path.removesuffix(".py").replace("/", ".") for path in MODULES]
    command = (str(python), "-c", PRINT_FILES, *names)
    run = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, text=True, check=True)
    files = [Path(line) for line in run.stdout.splitlines()]
    assert len(files) == len(names)
    assert all(file.suffix == ".so" and not file.is_relative_to(ROOT) for file in files), files


def main(arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        wheel = build(directory / "no-compiler", {"ACCOUNTING_COMPILE": ""} | WITHOUT_COMPILER)
        assert wheel.name.endswith("-py3-none-any.whl"), wheel
        code = 0
        if not arguments:
            if missing := [version for version in SUPPORTED if version not in pythons()]:
                sys.stderr.write(f"not on this machine: Python {', '.join(missing)}\n")
            build_release(directory / "dist")
            environment = os.environ | {"DISTRIBUTIONS": str(directory / "dist")}
            tests = (sys.executable, "-m", "pytest", *INSTALLED_TESTS)
            code = subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode
        wheel = build(directory / "compiled", {"ACCOUNTING_COMPILE": "1"})
        python = install(wheel, directory / "venv")
        # The tests run beside no sources of the package, which would be imported in its place.
        checkout = directory / "checkout"
        shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "accounting", "dist"))
        check_compiled(python, checkout)
        command = (str(python), "-m", *(arguments or ("pytest", *TESTS)))
        return subprocess.run(command, cwd=checkout, check=False).returncode or code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
