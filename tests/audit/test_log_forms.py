"""Logs as people keep them are read like the plain log, or refused in one line."""

import bz2
import gzip
import itertools
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import pytest

from accounting.audit.log_files import read_logs
from accounting.audit.reconcile import ReconcileResult, reconcile
from accounting.domain.log_names import name_as_logged
from accounting.domain.text_escaping import escape
from accounting.errors import UsageError
from tests.support.books import Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.recordings import DIRECTORY, receive_recording

NAMES: Final = "realm=<example.org>, username=<alice>"
USAGES: Final = ((2, 300, 4, 500), (7, 11, 13, 17), (1, 1, 1, 1))
TIME: Final = "2026-11-22T18:38:{:02}.500+0000 "
Wrap = Callable[[Sequence[str]], bytes]


def session_lines(*usages: tuple[int, ...], allocation: int = 1, names: str = NAMES) -> list[str]:
    """The lines of a session as coturn writes them, without their beginnings."""
    lines = [f"new, {names}, lifetime=600"]
    for usage in usages:
        counters = zip(("rp", "rb", "sp", "sb"), usage, strict=True)
        lines.append(f"usage: {names}, {', '.join(f'{name}={n}' for name, n in counters)}")
    lines.append(f"peer usage: {names}, rp=0, rb=0, sp=0, sb=0")
    lines.append(f"delete: {names}")
    return [f"session {allocation:018d}: {line}" for line in lines]


LINES: Final = session_lines(*USAGES)


def timed(lines: Sequence[str]) -> bytes:
    return "".join(f"{TIME.format(at)}INFO {line}\n" for at, line in enumerate(lines)).encode()


def uptime(lines: Sequence[str]) -> bytes:
    return "".join(f"{at}: : {line}\n" for at, line in enumerate(lines)).encode()


def journal(lines: Sequence[str]) -> bytes:
    return b"".join(
        json.dumps(
            {
                "__REALTIME_TIMESTAMP": str(1_764_000_000_000_000 + at),
                "_HOSTNAME": "turn1",
                "_PID": "77",
                "MESSAGE": list(line.encode()) if at % 2 else line,
            }
        ).encode()
        + b"\n"
        for at, line in enumerate(lines)
    )


def docker(lines: Sequence[str]) -> bytes:
    return b"".join(
        json.dumps(
            {"log": f"{at}: : {line}\n", "stream": "stdout", "time": f"{TIME.format(at)[:-6]}Z"}
        ).encode()
        + b"\n"
        for at, line in enumerate(lines)
    )


def each(form: str) -> Wrap:
    return lambda lines: "".join(
        form.format(at=at % 60, line=line) + "\n" for at, line in enumerate(lines)
    ).encode(errors="surrogateescape")


FORMS: Final[dict[str, Wrap]] = {
    "time": timed,
    "uptime": uptime,
    "journalctl -o json": journal,
    "docker json-file": docker,
    "journalctl -o cat": each("{line}"),
    "journalctl -o short": each("Nov 22 18:38:{at:02} turn1 turnserver[77]: {at}: : {line}"),
    "syslog priority": each("<134>Nov 22 18:38:{at:02} turn1 turnserver[77]: {at}: : {line}"),
    "RFC 5424": each("<134>1 2026-11-22T18:38:{at:02}Z turn1 turnserver 77 - - {at}: : {line}"),
    "colour at the end": each("2026-11-22T18:38:{at:02}+0000 \x1b[32mINFO {line}\x1b[0m"),
    "rsyslog's colour": each("Nov 22 18:38:{at:02} turn1 turnserver[77]: {at}: : {line}#033[0m"),
    "carriage return": each("{at}: : {line}\r"),
    "docker compose": each("turn-1  | {at}: : {line}"),
    "json of a shipper": each('{{"@timestamp":"2026-11-22T18:38:{at:02}Z","message":"{line}"}}'),
    "newest first": lambda lines: b"".join(timed(lines).splitlines(keepends=True)[::-1]),
    "newest first of the journal": lambda lines: b"".join(
        journal(lines).splitlines(keepends=True)[::-1]
    ),
    "gzip": lambda lines: gzip.compress(timed(lines)),
    "two gzips": lambda lines: (
        gzip.compress(timed(lines)[:200]) + gzip.compress(timed(lines)[200:])
    ),
    "bzip2": lambda lines: bz2.compress(timed(lines)),
    "xz": lambda lines: lzma.compress(docker(lines)),
}


def write(directory: Path, *contents: bytes) -> list[Path]:
    paths = [directory / f"turn.log.{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def sums(*paths: Path) -> list[tuple[list[int], bool]]:
    """Client counters of the sessions, and whether each is complete."""
    return [(session.counters[:4], session.is_complete) for session in read_logs(paths).sessions]


WHOLE: Final = [10, 312, 18, 518]


@pytest.mark.parametrize("form", FORMS)
def test_a_log_is_read_in_every_form(tmp_path: Path, form: str) -> None:
    (path,) = write(tmp_path, FORMS[form](LINES))
    (session,) = read_logs([path]).sessions
    assert (session.first.realm, session.first.username) == (b"example.org", b"alice")
    assert session.counters == [*WHOLE, 0, 0, 0, 0]
    assert session.is_complete


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_given_twice_counts_once(tmp_path: Path, form: str) -> None:
    content = FORMS[form](LINES)
    paths = write(tmp_path, content, content, gzip.compress(content))[: 3 if form == "time" else 2]
    assert sums(*paths) == [(WHOLE, True)]
    assert read_logs(paths).repeated_lines == len(LINES) * (len(paths) - 1)


def cut(content: bytes, *places: int) -> list[bytes]:
    lines = content.splitlines(keepends=True)
    ends = [0, *places, len(lines)]
    return [b"".join(lines[a:b]) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("form", ["time", "uptime", "journalctl -o json", "docker json-file"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_a_rotation_in_between_is_put_together(
    tmp_path: Path, form: str, order: tuple[int, ...]
) -> None:
    paths = write(tmp_path, *cut(FORMS[form](LINES), 2, 4))
    assert sums(*(paths[index] for index in order)) == [(WHOLE, False)]


@pytest.mark.parametrize("form", ["time", "uptime", "docker json-file"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_copies_that_overlap_count_once(tmp_path: Path, form: str, order: tuple[int, ...]) -> None:
    """A copy that was made before the file was rotated, and the file after."""
    lines = FORMS[form](LINES).splitlines(keepends=True)
    for other in (lines[2:], lines[:4], lines[1:5]):
        paths = write(tmp_path, b"".join(lines[:5]), b"".join(other))
        counters = sum(
            usage[0] for place, usage in enumerate(USAGES, 1) if place < (6 if other else 5)
        )
        ((read, _),) = sums(*(paths[index] for index in order))
        assert read[0] == counters


def two_processes(lines: Sequence[str]) -> bytes:
    """Two servers with the same ids in one file of syslog."""
    return b"".join(
        f"Nov 22 18:38:{at:02} turn{host} turnserver[7]: {line}\n".encode()
        for at, line in enumerate(lines)
        for host in (1, 2)
    )


def test_two_servers_of_one_file_are_kept_apart(tmp_path: Path) -> None:
    assert sums(*write(tmp_path, two_processes(LINES))) == [(WHOLE, True)] * 2


def test_two_servers_that_nothing_keeps_apart_are_a_lower_bound(
    books: Books, tmp_path: Path
) -> None:
    for allocation, database in ((1, 0), (1, 1)):
        session = FakeAllocation(books, allocation=allocation, database=database)
        session.new(0)
        session.interim(5, *WHOLE)
        session.close(10, tuple(WHOLE), (0, 0, 0, 0))
    run_jobs_at(books, 5000)
    mixed = [line for line in LINES for _ in range(2)]
    result = ReconcileResult()
    assert list(reconcile(books.engine, write(tmp_path, timed(mixed)), result=result)) == []
    assert (result.sessions, result.partial, result.differing) == (1, 1, 0)


def test_what_a_log_lacks_of_a_session_is_no_difference(books: Books, tmp_path: Path) -> None:
    """The file in between is missing; more in the log than in the books would be a difference."""
    alice = FakeAllocation(books)
    alice.new(0)
    alice.interim(5, *WHOLE)
    alice.close(10, tuple(WHOLE), (0, 0, 0, 0))
    run_jobs_at(books, 5000)
    first, _, last = write(tmp_path, *cut(timed(LINES), 2, 4))
    for logs in ([first], [last], [first, last]):
        result = ReconcileResult()
        assert list(reconcile(books.engine, logs, result=result)) == []
        assert (result.sessions, result.partial) == (1, 1)
    (more,) = write(tmp_path, timed(session_lines((11, 1, 1, 1))[:2]))
    (difference,) = reconcile(books.engine, [more])
    assert (difference.column, difference.logged, difference.booked) == ("received_packets", 11, 10)


def test_a_line_that_is_cut_off_makes_a_lower_bound(tmp_path: Path) -> None:
    content = timed(LINES).replace(b", rp=7, rb=11, sp=13, sb=17", b", rp=7, r")
    assert sums(*write(tmp_path, content)) == [([3, 301, 5, 501], False)]


MANY: Final = [line for number in range(8) for line in session_lines(*USAGES, allocation=number)]


def test_a_line_that_rsyslog_repeats_in_words_makes_a_lower_bound(tmp_path: Path) -> None:
    repeated = "message repeated 2 times: [ " + LINES[1] + "]"
    content = each("Nov 22 18:38:{at:02} turn1 turnserver[7]: {line}")(
        [*LINES[:2], repeated, *LINES[2:]]
    )
    assert sums(*write(tmp_path, content)) == [(WHOLE, False)]


REFUSED: Final[dict[str, tuple[list[bytes], str]]] = {
    "zstd": ([b"\x28\xb5\x2f\xfd" + bytes(30)], "zstd -d"),
    "zip": ([b"PK\x03\x04" + bytes(30)], "ZIP"),
    "the journal's own file": ([b"LPKSHHRH" + bytes(30)], "journalctl -o json"),
    "UTF-16": ([b"\xff\xfe" + timed(LINES).decode().encode("utf-16-le")], "UTF-16"),
    "half a gzip": ([gzip.compress(timed(LINES) * 9)[:-30]], "damaged or incomplete"),
    "no gzip": ([b"\x1f\x8bnonsense"], "damaged or incomplete"),
    "half an xz": ([lzma.compress(timed(LINES))[:-30]], "damaged or incomplete"),
    "empty": ([b""], "no session's usage"),
    "json-pretty": ([json.dumps({"MESSAGE": LINES[1]}, indent=1).encode()], "cut off"),
    "an excerpt of another": (
        [timed(LINES), b"".join(timed(LINES).splitlines(keepends=True)[::3])],
        "has lines of",
    ),
    "in two forms": ([timed(LINES), journal(LINES)], "in another form"),
    "a log twice in one file": ([timed(LINES) * 2], "repeats itself"),
    "in no order": ([each("{line}")(MANY[:24] + MANY[:23:-1])], "not in one order"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_read_rightly_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    contents, words = REFUSED[case]
    paths = write(tmp_path, *contents)
    with pytest.raises(UsageError, match=words):
        read_logs(paths)


def test_a_refusal_is_one_line_of_the_command(books: Books, tmp_path: Path) -> None:
    (path,) = write(tmp_path, REFUSED["half a gzip"][0][0])
    result = turn_accounting("reconcile", str(path), database_url=books.url())
    assert result.code == 2
    assert "damaged or incomplete" in result.error_line


@pytest.mark.parametrize("name", ["usernames-4.17.1", "lifecycle-4.6.1"])
@pytest.mark.parametrize("form", ["journal", "docker", "newest first", "rsyslog", "gzip"])
def test_a_recording_reconciles_in_every_form(
    books: Books, tmp_path: Path, name: str, form: str
) -> None:
    """With coturn's own lines, and its users' strangest names."""
    receive_recording(books, name)
    lines = (DIRECTORY / f"{name}.log").read_bytes().split(b"\n")
    match form:
        case "journal":
            content = b"\n".join(
                json.dumps({"MESSAGE": list(line), "_PID": "1"}).encode() for line in lines
            )
        case "docker":
            content = b"\n".join(
                json.dumps({"log": line.decode("utf-8", "replace") + "\n"}).encode()
                for line in lines
            )
        case "newest first":
            content = b"\n".join(lines[::-1])
        case "rsyslog":
            content = b"\n".join(
                b"<134>Nov 22 18:38:00 turn1 turnserver[7]: "
                + b"".join(
                    b"#%03o" % byte if byte < 32 or byte == 127 else bytes([byte]) for byte in line
                )
                for line in lines
            )
        case _:
            content = gzip.compress(b"\n".join(lines))
    result = ReconcileResult()
    assert list(reconcile(books.engine, write(tmp_path, content), result=result)) == []
    assert result.sessions > 0


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        (b"a\r\nb", b"a b"),
        (b"a\tb", b"a#011b"),
        (b"a\xff\xfeb", "a\ufffd\ufffdb".encode()),
        (b"a\x1b[31mb", b"ab"),
    ],
)
def test_names_that_a_log_writes_alike_have_one_form(sent: bytes, logged: bytes) -> None:
    assert name_as_logged(escape(sent)) == name_as_logged(escape(logged))


def test_usage_beside_a_session_of_another_start_is_kept_apart(tmp_path: Path) -> None:
    """Unauthenticated requests, before and after a restart, had the id and name of a session."""
    stranger = LINES[1]
    before, after = [stranger, *LINES], [*LINES, stranger]
    for lines in (before, after):
        read = sums(*write(tmp_path, timed(lines)))
        assert sorted(read) == [([2, 300, 4, 500], False), (WHOLE, False)]


def test_a_session_around_lines_of_another_file_is_a_lower_bound(tmp_path: Path) -> None:
    middle = cut(timed(LINES), 1, 4)[1]
    paths = write(tmp_path, middle, timed(LINES))
    assert all(not is_complete for _, is_complete in sums(*paths))


def damaged(random: Random, lines: list[str], wrap: Wrap) -> list[bytes]:
    """The files of a log as somebody may have kept them: some cut, copied, missing or reversed."""
    content = wrap(lines).splitlines(keepends=True)
    places = sorted(random.sample(range(1, len(content)), random.randrange(4)))
    files = []
    for start, end in itertools.pairwise([0, *places, len(content)]):
        first = max(0, start - random.choice((0, 0, 3)))
        part = content[first : end + random.choice((0, 0, 5))]
        if random.random() < 0.3:
            part.reverse()
        files.append(b"".join(part))
        if random.random() < 0.2:
            files.append(gzip.compress(files[-1]))
    if random.random() < 0.5:
        random.shuffle(files)
    if len(files) > 1 and random.random() < 0.3:
        files.pop(random.randrange(len(files)))
    if random.random() < 0.1:
        files[0] = files[0][: -random.randrange(1, 100)]
    return files


@pytest.mark.parametrize("name", ["usernames-4.17.1", "lifecycle-4.6.1", "unauthenticated-4.17.1"])
def test_no_way_of_keeping_a_log_gives_a_difference(
    books: Books, tmp_path: Path, name: str
) -> None:
    receive_recording(books, name)
    text = (DIRECTORY / f"{name}.log").read_text(errors="surrogateescape")
    lines = [line for line in text.split("\n") if "session " in line]
    random = Random(7)
    read = refused = 0
    for _ in range(25):
        wrap = random.choice([plain_lines, json_lines, FORMS["syslog priority"]])
        try:
            result = ReconcileResult()
            paths = write(tmp_path, *damaged(random, lines, wrap))
            assert list(reconcile(books.engine, paths, result=result)) == []
            read += 1
        except UsageError:
            refused += 1
    assert read > refused


def plain_lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")


def json_lines(lines: Sequence[str]) -> bytes:
    return b"".join(
        json.dumps(
            {
                "MESSAGE": list(line.encode(errors="surrogateescape")),
                "__REALTIME_TIMESTAMP": f"{at:016}",
            }
        ).encode()
        + b"\n"
        for at, line in enumerate(lines)
    )
