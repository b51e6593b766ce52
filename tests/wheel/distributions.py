"""What the sdist and the wheel contain, and what their metadata says.

`make wheel-test` runs this, and says in DISTRIBUTIONS where they are; its name keeps it out of
`make test`.
"""

import os
import tarfile
import tomllib
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata

from tests.support.service import ROOT

BUILT: Final = Path(os.environ["DISTRIBUTIONS"])
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STEM: Final = f"turn_accounting-{PROJECT['version']}"
LICENCES: Final = ("LICENSE", "htmx-LICENSE", "uplot-LICENSE")
NOT_SHIPPED: Final = ("tests", "benchmarks", "docs", "deploy", "examples")


@pytest.fixture(scope="module")
def wheel() -> dict[str, bytes]:
    """The files of the wheel."""
    with ZipFile(BUILT / f"{STEM}-py3-none-any.whl") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist() -> dict[str, bytes]:
    """The files of the sdist."""
    with tarfile.open(BUILT / f"{STEM}.tar.gz") as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {
            name.removeprefix(f"{STEM}/"): file.read()
            for name, file in files.items()
            if file is not None
        }


def test_the_metadata_is_valid_and_that_of_the_project(
    wheel: dict[str, bytes], sdist: dict[str, bytes]
) -> None:
    content = wheel[f"{STEM}.dist-info/METADATA"]
    assert content == sdist["PKG-INFO"]
    Metadata.from_email(content, validate=True)
    metadata: Message = BytesParser().parsebytes(content)
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["License-Expression"] == "MIT AND 0BSD"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_all("Provides-Extra") == sorted(PROJECT["optional-dependencies"])
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]
    assert [Path(name).name for name in metadata.get_all("License-File") or ()] == list(LICENCES)


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    """With migrations and templates, and what is of others with its licence."""
    packages = {"accounting": "accounting", "migrations": "accounting/migrations"}
    sources = {
        f"{target}/{path.relative_to(ROOT / package)}"
        for package, target in packages.items()
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in wheel if not name.startswith(f"{STEM}.dist-info/")}
    assert shipped == sources
    for library, licence in (("htmx", "Zero-Clause BSD"), ("uplot", "The MIT License")):
        vendored = [name for name in shipped if f"/static/vendor/{library}-" in name]
        assert len(vendored) >= 2
        assert licence in wheel[f"accounting/web/static/vendor/{library}-LICENSE"].decode()


def test_the_sdist_has_all_that_the_checkout_has(sdist: dict[str, bytes]) -> None:
    """So that who packages it can run its tests."""
    assert {name.split("/")[0] for name in sdist} >= {
        *NOT_SHIPPED, "accounting", "migrations", "LICENSE", "Makefile", "CHANGELOG.md",
        "requirements-dev.lock", "hatch_build.py",
    }  # fmt: skip
    assert not [
        name for name in sdist if "__pycache__" in name or name.startswith((".venv", "dist"))
    ]


def test_the_wheel_is_the_same_when_the_sdist_builds_it(wheel: dict[str, bytes]) -> None:
    with ZipFile(BUILT / "of-sdist" / f"{STEM}-py3-none-any.whl") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == wheel
