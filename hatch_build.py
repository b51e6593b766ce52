"""Compiles the modules that run for every event into the wheel, where a C compiler is.

pyproject.toml lists them. Each stays in the wheel as Python too: that is what runs where nothing
could be compiled, and in an editable install. The environment variable ``ACCOUNTING_COMPILE``: a
build with ``1`` fails where it can't compile, one with ``0`` does not compile.
"""

import atexit
import os
import shlex
import shutil
import sysconfig
from contextlib import chdir
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_MYPY_OPTIONS = (
    "--config-file=",
    "--no-site-packages",
    "--ignore-missing-imports",
    "--follow-imports=silent",
    "--cache-dir=/dev/null",
)


class CompileHook(BuildHookInterface[BuilderConfig]):
    """Adds the compiled modules to a wheel, beside those that they were made from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("ACCOUNTING_COMPILE", "")
        if version == "editable" or wanted == "0":
            return
        directory = mkdtemp()
        atexit.register(shutil.rmtree, directory)
        try:
            if wanted != "1":
                _require_compiler()
            with chdir(self.root):
                _compile(self.config["modules"], directory)
        except Exception as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"the wheel is of Python only: {error}")
            return
        built = Path(directory) / "lib"
        for path in built.rglob("*.*"):
            build_data["force_include"][str(path)] = str(path.relative_to(built))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _require_compiler() -> None:
    """Raise FileNotFoundError without a C compiler or Python's headers."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        raise FileNotFoundError(f"no C compiler {compiler}")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise FileNotFoundError(f"no {header}")


def _compile(modules: list[str], directory: str) -> None:
    # Imported here: an editable install needs neither.
    from mypyc.build import mypycify  # noqa: PLC0415
    from setuptools import Distribution  # noqa: PLC0415

    try:
        extensions = mypycify(
            # Without the types of other packages, which may be missing here: `make check` has them.
            [*_MYPY_OPTIONS, *modules],
            debug_level="0",
            target_dir=directory,
            group_name="accounting",
        )
    except SystemExit as error:
        raise RuntimeError("mypyc failed") from error
    command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = f"{directory}/lib", f"{directory}/temp"
    command.ensure_finalized()
    command.run()
