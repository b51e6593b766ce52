"""``token create|list|revoke`` as an operator runs them."""

import re
from datetime import datetime, timedelta

import pytest

from accounting.identities.erase import erase
from accounting.web.access.tokens import create_token, list_tokens
from tests.support.books import WRITER, Books, channel, status_payload
from tests.support.command import CommandResult, turn_accounting
from tests.support.web_server import serving


class Run:
    def __init__(self, books: Books) -> None:
        self.books = books

    def __call__(self, *words: str) -> CommandResult:
        return turn_accounting("token", *words, database_url=self.books.url(WRITER))


@pytest.fixture
def run(access_books: Books) -> Run:
    return Run(access_books)


def test_a_token_from_its_creation_to_its_end(run: Run) -> None:
    made = run("create", "--realm", "example.org", "--user", "bob", "--label", "bob's page")
    assert made.code == 0
    token = made.out.removesuffix("\n")
    assert re.fullmatch(r"ta_[A-Za-z0-9_-]{43}", token)
    assert token not in made.err
    [number] = re.findall(r"token (\d+) reads user 'bob' of realm 'example.org'; expires", made.err)
    [row] = [row for row in run("list", "--json").rows if row["number"] == int(number)]
    expires, created = (datetime.fromisoformat(row[name]) for name in ("expires_at", "created_at"))
    assert expires - created == timedelta(days=90)
    assert (row["state"], row["realm"], row["user_id"]) == ("valid", "example.org", "bob")
    assert (row["label"], row["last_used_at"]) == ("bob's page", None)
    with serving(run.books.url(WRITER), log_in=True) as web:
        assert web.get("/api/v1/sessions", token=token).status == 200
        revoked = run("revoke", number)
        assert revoked.err == f"turn-accounting: token {number} is revoked\n"
        assert web.get("/api/v1/sessions", token=token).status == 401
    assert "revoked already" in run("revoke", number).err
    table = run("list").out
    assert re.search(rf"(?m)^ *{number} +revoked +bob's page", table)
    assert token not in table


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            "create --realm example.or",
            "no realm 'example.or' is known: did you mean 'example.org'?",
        ),
        ("create --realm example.org --user bop", "no user 'bop' is known in realm 'example.org'"),
        ("create --user bob", "--user goes with --realm"),
        ("create --expires 0d", "--expires '0d': expected 1d to 36500d, or never"),
        ("create --expires 90", "--expires '90': expected 1d"),
        ("create --expires 99999d", "expected 1d to 36500d"),
        ("revoke 99999", "there is no token 99999: "),
    ],
)
def test_mistakes(run: Run, words: str, error: str) -> None:
    create_token(run.books.engine, days=1)
    before = run.books.query("SELECT count(*) AS tokens FROM access.tokens")
    result = run(*words.split())
    assert result.code == 2
    assert error in result.error_line
    assert run.books.query("SELECT count(*) AS tokens FROM access.tokens") == before


def test_a_token_for_ever_and_a_label_that_is_hostile(run: Run) -> None:
    made = run("create", "--expires", "never")
    assert "reads everything; it does not expire" in made.err
    hostile = run("create", "--label", "a\x1b[31m")
    assert (hostile.code, hostile.out) == (2, "")
    assert "printable" in hostile.error_line


def test_an_erasure_leaves_a_token_of_the_person_harmless(books: Books) -> None:
    """It reads the figures under the key, and no name."""
    books.receive(0, channel("status", user="alice"), status_payload("new"))
    books.receive(9, channel("status", user="alice"), status_payload("deleted"))
    books.advance_clock(5000)
    books.run_jobs()
    [session] = books.rows("sessions", "realm", "session_id")
    token, _ = create_token(books.engine, realm=session["realm"], user="alice", days=1)
    erase(books.engine, session["realm"], "alice")
    [row] = list_tokens(books.engine)
    assert row["user_id"] == ""
    with serving(books.url(WRITER), log_in=True) as web:
        answer = web.get("/api/v1/sessions", token=token)
        assert str(session["session_id"]) in answer.text
        assert "alice" not in answer.text
