"""README.md and the other pages agree with the code: commands, links, views, pictures."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import pytest
import typer
from typer.core import TyperGroup

from accounting.cli.demo import SCENARIO
from accounting.cli.main import COMMANDS, import_command
from accounting.ops.servers import turnserver_conf_line
from accounting.simulator import play

ROOT: Final = Path(__file__).resolve().parents[2]
BYTES: Final = ("received_bytes", "sent_bytes", "peer_received_bytes", "peer_sent_bytes")
README: Final = (ROOT / "README.md").read_text()
PAGES: Final = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_shows_the_output_of_the_demonstration() -> None:
    """The demonstration publishes the same messages each time; the simulator knows their totals."""
    _, expected = play(SCENARIO)
    shown = README.split("<!-- demo -->", 1)[1].split("\n```\n", 1)[0]
    assert f"\n{expected.published:,} messages published." in shown
    sums: defaultdict[tuple[object, object], Counter[str]] = defaultdict(Counter)
    for user in (user.as_dict() for user in expected.users):
        sums[user["realm"], user["user_id"]].update({name: user[name] for name in BYTES})
    lines = re.findall(r"^(example\.\w+) +(\w+) .*$", shown, re.MULTILINE)
    assert len(lines) == 4
    for realm, user_id in lines:
        [line] = re.findall(rf"^{re.escape(realm)} +{user_id} .*$", shown, re.MULTILINE)
        assert line.split()[-4:] == [f"{sums[realm, user_id][name]:,}" for name in BYTES]


def test_the_readme_shows_the_frame_of_top_that_make_screenshots_wrote() -> None:
    frame = (ROOT / "docs/images/top.txt").read_text()
    assert f"<!-- top -->\n```text\n{frame}```\n" in README


def test_pictures_are_small_and_have_a_text() -> None:
    shown = re.findall(
        r"!\[([^]]{6,})\]\((?:docs/)?images/([a-z-]+\.png)\)",
        README + (ROOT / "docs/web.md").read_text(),
    )
    pictures = {path.name: path.stat().st_size for path in (ROOT / "docs/images").glob("*.png")}
    assert {name for _, name in shown} == set(pictures)
    assert max(pictures.values()) < 150_000


def test_the_readme_has_the_printed_line_for_turnserver_conf() -> None:
    assert turnserver_conf_line("redis://:x@127.0.0.1:6379/0") in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_has_a_target(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_list_of_commands_is_that_of_their_modules() -> None:
    """Their names, modules, summaries and order: ``--help`` shows them without importing them."""
    app = typer.Typer(rich_markup_mode=None)
    for module in dict.fromkeys(entry.module for entry in COMMANDS.values()):
        import_command(module).register(app)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert set(group.commands) == set(COMMANDS)
    for name, command in group.commands.items():
        assert command.get_short_help_str(limit=500) == COMMANDS[name].summary
        assert not command.hidden


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    text = re.sub(r"docker .*?\n\n", "", page.read_text(), flags=re.DOTALL)
    text = text.replace("--namespace turn-accounting ", "")
    named = set(re.findall(r"turn-accounting ([a-z]+)", text))
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_every_view_on_a_page_exists() -> None:
    statements = "".join(path.read_text() for path in (ROOT / "migrations/sql").glob("*.sql"))
    made = re.findall(r"CREATE (?:VIEW|FUNCTION) reporting\.([a-z_%0-9$]+)", statements)
    # Those of usage are made in loops, with places for words in their names.
    names = [re.sub(r"%\d\$s", "[a-z]+", name) for name in made]
    for page in PAGES:
        for view in re.findall(r"reporting\.([a-z_]+)", page.read_text()):
            assert any(re.fullmatch(name, view) for name in names), view


def test_make_targets_on_a_page_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"^ +make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets
