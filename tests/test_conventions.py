"""The project's own rules, which no other tool checks."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IGNORED = [
    ".git/",
    *(ROOT / ".gitignore").read_text().splitlines(),
]
# Split so that this file does not match.
ADDRESSES = re.compile(
    r"pypi" + r"\.(org|python)|python" + r"hosted\.org|file:" + "///"
    r"|(?<!no-emit-)\bindex" + r"-url|\bfind" + r"-links|\btrusted" + "-host"
)
PURE = {
    "abc", "bisect", "calendar", "collections", "dataclasses", "datetime", "decimal", "difflib",
    "enum", "fractions", "functools", "hashlib", "heapq", "hmac", "importlib", "ipaddress",
    "itertools", "json", "math", "operator", "re", "typing", "unicodedata", "uuid", "zoneinfo",
}  # fmt: skip
"""Modules of the standard library that do no I/O, except to read the data of an installed package;
the domain imports only these."""
ROOMS = sorted(path.parent for path in (ROOT / "accounting").glob("*/__init__.py"))
QUERY = re.compile(r"^-- name: (\w+)\n((?:--.*\n)*)", re.MULTILINE)


def project_files() -> Iterator[Path]:
    """Every file of the project except those that .gitignore names; needs no git."""
    yield from _files_below(ROOT)


def _files_below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        name = path.name + "/" if path.is_dir() else path.name
        if any(fnmatch(name, pattern) for pattern in IGNORED):
            continue
        if path.is_dir():
            yield from _files_below(path)
        else:
            yield path


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        yield from parsed_package(package)


@cache
def parsed_package(package: str) -> list[tuple[str, ast.Module]]:
    """The modules of a directory: most tests read the same ones."""
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_bytes()))
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module or ""


def used_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def test_one_file_says_the_version_and_everything_else_has_it_from_there() -> None:
    """The changelog names it too, as its newest section; `make image` passes it to the image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert metadata.version(project["name"]) == version, "the environment is older: make check"
    literal = re.compile(rf"(?<![\d.]){re.escape(version)}(?![\w.]*\d)".encode())
    naming = [path for path in project_files() if literal.search(path.read_bytes())]
    assert [str(path.relative_to(ROOT)) for path in naming] == ["CHANGELOG.md", "pyproject.toml"]
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]
    dry_run = ("make", "--dry-run", "--no-print-directory", "image")
    shown = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"--build-arg VERSION={version} --tag turn-accounting:{version} " in shown
    assert "org.opencontainers.image.version=$VERSION" in (ROOT / "Dockerfile").read_text()


def test_no_file_contains_the_address_of_a_package_index() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in project_files()
        for match in ADDRESSES.finditer(path.read_text(errors="replace"))
    }
    assert found == set()


def test_no_file_names_the_directory_of_this_checkout() -> None:
    here = str(ROOT)
    if len(ROOT.parts) < 3:
        here = f"{here}/accounting"  # a Dockerfile may contain a root as short as /src
    found = [
        str(path.relative_to(ROOT))
        for path in project_files()
        if here.encode() in path.read_bytes()
    ]
    assert found == []


def test_every_dependency_is_locked_with_a_hash() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        blocks = re.split(r"\n(?=[a-z0-9])", lock.read_text().split("make lock\n", 1)[1])
        assert blocks, lock
        for block in blocks:
            assert re.match(r"[a-z0-9._-]+==\S+ ", block), block
            assert "--hash=sha256:" in block, block


def test_every_module_has_a_docstring() -> None:
    lacking = [
        name
        for name, tree in sources("accounting", "tests", "benchmarks", "migrations")
        if tree.body and ast.get_docstring(tree) is None
    ]
    assert lacking == []


def test_every_room_describes_itself() -> None:
    assert len(ROOMS) > 10
    lacking = [
        room.name
        for room in ROOMS
        if not (docstring := ast.get_docstring(ast.parse((room / "__init__.py").read_bytes())))
        or docstring.startswith("TODO")
    ]
    assert lacking == []


def test_every_query_is_described_and_used() -> None:
    """A query's name stands in a string literal of its own room."""
    files = [room / "queries.sql" for room in ROOMS if (room / "queries.sql").exists()]
    assert len(files) > 5
    undescribed, unused = [], []
    for file in files:
        room = file.parent.name
        literals = {
            node.value
            for _, tree in sources(f"accounting/{room}")
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
        }
        for match in QUERY.finditer(file.read_text()):
            name, comment = match.groups()
            if not re.match(r"-- [A-Z].*\w.*\.$", comment.replace("\n-- ", " ").strip()):
                undescribed.append(f"{room}: {name}")
            if name not in literals:
                unused.append(f"{room}: {name}")
    assert undescribed == []
    assert unused == []


def test_the_domain_imports_only_modules_without_io() -> None:
    """Import-linter can forbid modules by name; this rule allows them by name."""
    found = {
        f"{name} imports {module}"
        for name, tree in sources("accounting/domain")
        for module in imported_modules(tree)
        if module.split(".")[0] not in PURE and not module.startswith("accounting.domain")
    }
    assert found == set()
    assert set(sys.stdlib_module_names) >= PURE


def test_no_name_is_vague() -> None:
    vague = re.compile(r"(^|/)(utils?|helpers?|common|misc)(\.py|/)")
    names = [name for name, _ in sources("accounting", "tests", "benchmarks")]
    assert [name for name in names if vague.search(name)] == []
    classes = [
        f"{name}: {node.name}"
        for name, tree in sources("accounting")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and re.search(r"(Manager|Handler|Helper|Utils?)$", node.name)
    ]
    assert classes == []


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        ("no mocks", re.compile(r"(^|\.)((Magic|Async)?Mock|mock|mocker)(\.|$)")),
        ("no skips", re.compile(r"^pytest\.(mark\.)?(skip|skipif|importorskip|xfail)$")),
        ("no sleeps: wait for a condition", re.compile(r"^((time|asyncio)\.)?sleep$")),
    ],
)
def test_tests_use_real_servers_and_conditions(rule: str, pattern: re.Pattern[str]) -> None:
    """Only ``tests.support.servers.wait_until`` sleeps, between two checks of its condition."""
    found = [
        f"{name}: {used}"
        for name, tree in sources("tests")
        for used in used_names(tree)
        if pattern.search(used) and name != "tests/support/servers.py"
    ]
    assert found == [], rule


def test_no_test_imports_from_another_test() -> None:
    """Builders that several tests use are in ``tests/support``.

    The faults, the histories and the tests of the wheel are programs of their own.
    """
    test = re.compile(r"(^|\.)(conftest|test_\w+)$")
    program = re.compile(r"^tests\.(chaos|histories|wheel)(\.|$)")
    found = [
        f"{name}: {module}"
        for name, tree in sources("tests", "benchmarks")
        for module in imported_modules(tree)
        if test.search(module)
        or (
            re.match(r"tests\.(?!support\b)", module)
            and not ((match := program.match(module)) and name.startswith(f"tests/{match[1]}/"))
        )
    ]
    assert found == []
