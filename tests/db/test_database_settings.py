"""The books are the same whatever the database and the login have set.

Every setting of the server is tried, with the values of ``tests.support.postgres_settings``: all at
once, by halves where they fail; one at a time where EACH_SETTING is set (`make settings`).
`make long` tries groups of them, which hide less of each other, and another value of those that
have several.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from tests.support.books import READER, Books, cloned_database, make_template
from tests.support.postgres_settings import (
    SettingValue,
    awkward_settings,
    grouped,
    set_for_database,
)
from tests.support.servers import PostgresServer
from tests.support.settings_probe import Outputs, run_and_read, texts_of_views
from tests.support.system_postgres import SystemPostgres

ONE_AT_A_TIME: Final = "EACH_SETTING" in os.environ
ALL: Final = 1_000
PARTS: Final = 2
HIDES_VIEWS: Final = "restrict_nonsystem_relation_kind"

Expected = tuple[Outputs, list[str]]


@pytest.fixture(
    scope="module",
    params=[
        "wheel",
        pytest.param("system", marks=[pytest.mark.needs_postgres, pytest.mark.long]),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The Postgres of the wheel, and the system's older one; each with the template."""
    if request.param == "wheel":
        yield request.getfixturevalue("postgres_server")
        return
    # With costs that settings raise, each statement would be compiled, a second for some. The
    # setting itself is tried, and one at a time so are the costs with it.
    with SystemPostgres(settings={} if ONE_AT_A_TIME else {"jit": "off"}) as server:
        make_template(server)
        yield server


@pytest.fixture(scope="module")
def expected(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """What readers see where nothing is set."""
    return run_with(server, [], tmp_path_factory.mktemp("expected"))


def run_with(server: PostgresServer, settings: Sequence[SettingValue], directory: Path) -> Expected:
    """What readers see, of the books and of the views' own texts, where those are set."""
    with cloned_database(server) as name:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            accepted = set_for_database(connection, name, settings)
        books = Books(server, name, directory)
        try:
            outputs = run_and_read(books)
        finally:
            books.close()
        if any(setting.name == HIDES_VIEWS for setting in accepted):
            return outputs, []
        return outputs, texts_of_views(server.url(READER, name))


def problems(
    server: PostgresServer,
    settings: Sequence[SettingValue],
    expected: Expected,
    directories: Iterator[Path],
) -> list[str]:
    """What differs under those settings."""
    try:
        outputs, texts = run_with(server, settings, next(directories))
    except Exception as error:  # noqa: BLE001  # any is a finding, and the next setting is tried
        return [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
    wrong = [name for name, value in outputs.items() if value != expected[0][name]]
    return wrong + (["the texts of the views"] if texts not in ([], expected[1]) else [])


def problems_by_setting(
    server: PostgresServer,
    settings: Sequence[SettingValue],
    expected: Expected,
    directories: Iterator[Path],
) -> dict[str, list[str]]:
    """What differs under each of those settings, or under some that do so only together."""
    if not (wrong := problems(server, settings, expected, directories)):
        return {}
    found: dict[str, list[str]] = {}
    if len(settings) > 1:
        middle = len(settings) // 2
        for half in (settings[:middle], settings[middle:]):
            found |= problems_by_setting(server, half, expected, directories)
    names = ", ".join(f"{setting.name} = {setting.value}" for setting in settings)
    return found or {names: wrong}


def cases() -> Iterator[Any]:
    """Which of the values of each setting, the size of a group, and which part of the groups."""
    if not ONE_AT_A_TIME:
        yield pytest.param(slice(1), ALL, slice(None), id="all")
    for part in range(PARTS):
        parts = slice(part, None, PARTS)
        if ONE_AT_A_TIME:
            yield pytest.param(slice(20), 1, parts)
        else:
            yield pytest.param(slice(1), 40, parts, marks=pytest.mark.long)
            yield pytest.param(slice(1, 2), 40, parts, marks=pytest.mark.long)


@pytest.mark.parametrize(("values", "size", "part"), [*cases()])
def test_no_setting_changes_what_is_booked_or_shown(
    server: PostgresServer,
    expected: Expected,
    values: slice,
    size: int,
    part: slice,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with psycopg.connect(server.url()) as connection:
        settings = list(awkward_settings(connection))
    assert len(settings) > 100
    directories = (tmp_path_factory.mktemp("settings") for _ in count())
    found: dict[str, list[str]] = {}
    chosen = [choices[values] for choices in settings]
    # Where views are hidden, their texts are not compared.
    apart = [any(choice.name == HIDES_VIEWS for choice in choices) for choices in chosen]
    groups = [
        *grouped([choices for choices, hides in zip(chosen, apart, strict=True) if hides], size),
        *grouped(
            [choices for choices, hides in zip(chosen, apart, strict=True) if not hides], size
        ),
    ]
    for group in groups[part]:
        found |= problems_by_setting(server, group, expected, directories)
    assert found == {}
