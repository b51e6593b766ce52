"""Exports to object stores and SFTP servers: whole or absent, manifest last, errors in a line."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from s3fs import S3FileSystem

from accounting.errors import AccountingError, UsageError
from accounting.export import object_store
from accounting.export.export import Exported, export_to_place
from accounting.export.manifest import check_export
from accounting.export.object_store import ObjectStore
from accounting.export.place import Place
from accounting.export.place_address import open_place
from accounting.export.selection import ExportFormat, ExportKind, Selection
from tests.support.billing_scenarios import NOVEMBER, close_november
from tests.support.books import READER, Books
from tests.support.command import start_turn_accounting, turn_accounting
from tests.support.servers import free_port
from tests.support.stores import (
    BUCKET,
    AzureServer,
    GoogleServer,
    HttpProxy,
    S3Server,
    SftpServer,
    StoreServer,
    kill,
    request,
)

FILE: Final = "statements_2026-11-01.csv"
MANIFEST: Final = f"{FILE}.manifest.json"
STATEMENTS: Final = ("export", "statements", "--period", "2026-11-01")
SELECTION: Final = Selection(kind=ExportKind.STATEMENTS, period=NOVEMBER)
SERVERS: Final = {
    "s3": S3Server,
    "gs": GoogleServer,
    "az": AzureServer,
    "sftp": SftpServer,
}
PARTS: Final = 5 << 20
"""The least size of a part of S3."""


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, StoreServer]]:
    """The servers that were started, by scheme."""
    started: dict[str, StoreServer] = {}
    yield started
    for server in started.values():
        server.__exit__(None, None, None)


def started(servers: dict[str, StoreServer], scheme: str, patch: pytest.MonkeyPatch) -> StoreServer:
    """The server of a scheme, empty, with its variables in the environment."""
    if scheme not in servers:
        servers[scheme] = SERVERS[scheme]().__enter__()
    server = servers[scheme]
    for name, value in server.variables.items():
        patch.setenv(name, value)
    for name in server.names():
        server.root.remove(name)
    return server


@pytest.fixture(
    params=[
        "s3",
        pytest.param("gs", marks=pytest.mark.long),
        pytest.param("az", marks=[pytest.mark.needs_azurite, pytest.mark.long]),
        pytest.param("sftp", marks=pytest.mark.needs_sshd),
    ]
)
def store(
    request: pytest.FixtureRequest,
    servers: dict[str, StoreServer],
    monkeypatch: pytest.MonkeyPatch,
) -> StoreServer:
    return started(servers, request.param, monkeypatch)


@pytest.fixture
def s3(servers: dict[str, StoreServer], monkeypatch: pytest.MonkeyPatch) -> S3Server:
    server = started(servers, "s3", monkeypatch)
    assert isinstance(server, S3Server)
    return server


def export(books: Books, place: Place, selection: Selection = SELECTION) -> Exported:
    return export_to_place(books.reader, selection, ExportFormat.CSV, place)


def test_an_export_to_a_store_is_that_to_a_directory(
    november_books: Books, store: StoreServer, tmp_path: Path
) -> None:
    """The same bytes, also over an earlier export; ``export check`` reads the store."""
    export(november_books, open_place(str(tmp_path)))
    url = f"{store.url}/a b/\u00fc"
    names = [f"{FILE}", MANIFEST]

    def is_exported() -> bool:
        assert store.names() == [f"a b/\u00fc/{name}" for name in names]
        return all(
            store.read(f"a b/\u00fc/{name}") == (tmp_path / name).read_bytes() for name in names
        )

    result = turn_accounting(
        *STATEMENTS, "--output", f"{url}/", database_url=november_books.url(READER)
    )
    assert result == (0, "".join(f"{url}/{name}\n" for name in names), "")
    assert is_exported()
    store.write(f"a b/\u00fc/{FILE}", b"older")
    store.write(f"a b/\u00fc/{MANIFEST}", b"{}")
    assert not is_exported()
    export(november_books, open_place(f"{url}/"))
    assert is_exported()
    assert check_export(f"{url}/{MANIFEST}") == []
    store.write(f"a b/\u00fc/{FILE}", b"flipped")
    changed = turn_accounting("export", "check", f"{url}/{MANIFEST}")
    assert changed.code == 1
    assert changed.error_line.startswith(f"{url}/{FILE}: 7 bytes, expected")
    store.root.remove(f"a b/\u00fc/{FILE}")
    assert check_export(f"{url}/{MANIFEST}") == [f"{url}/{FILE}: missing"]
    with pytest.raises(UsageError):
        check_export(f"{url}/none.json")


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # by gcsfs
def test_nobody_sees_a_file_before_it_is_whole(
    store: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", PARTS)
    content = os.urandom(PARTS + 1234)
    place = store.place("deep")
    with place.draft("file") as draft:
        for start in range(0, len(content), 1 << 20):
            draft.write(content[start : start + (1 << 20)])
        draft.finish()
        assert not any(Path(name).name == "file" for name in store.names())
        draft.publish()
    assert store.names() == ["deep/file"]
    assert store.read("deep/file") == content
    for error in (AccountingError, KeyboardInterrupt):
        with suppress(error), place.draft("file") as draft:
            draft.write(content)
            raise error
        assert store.names() == ["deep/file"]
        assert store.read("deep/file") == content
    with place.draft("empty") as draft:
        draft.finish()
        draft.publish()
    assert store.read("deep/empty") == b""


def test_a_cancelled_upload_leaves_no_parts(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PART_BYTES", PARTS)
    place = s3.place()
    assert isinstance(place, ObjectStore)
    with suppress(AccountingError), place.draft("file") as draft:
        draft.write(bytes(PARTS + 1))
        assert len(place._filesystem().list_multipart_uploads(BUCKET)) == 1
        raise AccountingError
    assert place._filesystem().list_multipart_uploads(BUCKET) == []


def crossing(place: Place, store: StoreServer, content: bytes) -> Place:
    """The place, where another export writes file and manifest after this one's file."""
    kind: Any = type(place)

    class Crossed(kind):  # type: ignore[misc]
        is_crossed = False

        def stamp(self, name: str) -> object:
            stamp = super().stamp(name)
            if not self.is_crossed:
                self.is_crossed = True
                store.write(name, content)
                store.write(MANIFEST, b"that of the other export")
            return stamp

    crossed: Place = Crossed(store.url)
    return crossed


def test_two_exports_at_once_leave_no_manifest_of_another_file(
    november_books: Books, store: StoreServer
) -> None:
    """The one whose manifest came last finds the other's file: equal, or it takes it back."""
    export(november_books, store.place())
    same = store.read(FILE)
    export(november_books, crossing(store.place(), store, same))
    assert check_export(f"{store.url}/{MANIFEST}") == []
    with pytest.raises(AccountingError, match="another export wrote it at the same time"):
        export(november_books, crossing(store.place(), store, b"another"))
    assert store.names() == [FILE]
    assert store.read(FILE) == b"another"


@pytest.mark.long
@pytest.mark.parametrize("fault", [500, "cut"])
def test_a_store_that_fails_at_any_request_leaves_an_export_or_no_manifest(
    books: Books, s3: S3Server, monkeypatch: pytest.MonkeyPatch, fault: int | str
) -> None:
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    close_november(books)
    whole = export(books, s3.place())
    expected = [s3.read(name) for name in (FILE, MANIFEST)]
    failures = 0

    def fail_after(passed: int, number: int, _method: str, _path: str) -> int | str | None:
        return fault if number > passed else None

    with HttpProxy(s3) as proxy:
        for name, value in proxy.variables.items():
            monkeypatch.setenv(name, value)
        while True:
            s3.write(FILE, b"older")
            s3.write(MANIFEST, json.dumps({"file": FILE, "bytes": 5, "sha256": ""}).encode())
            proxy.count = 0
            proxy.fault = partial(fail_after, failures)
            with suppress(AccountingError):
                assert export(books, s3.place()) == whole
                break
            proxy.fault = lambda *_: None
            assert s3.read(FILE) in {b"older", expected[0]}
            names = s3.names()
            if MANIFEST in names and s3.read(MANIFEST) == expected[1]:
                assert s3.read(FILE) == expected[0]
            assert MANIFEST in names or s3.read(FILE) in {b"older", expected[0]}
            failures += 1
        proxy.fault = lambda *_: None
        assert [s3.read(name) for name in (FILE, MANIFEST)] == expected
    assert failures > 4


def test_a_store_that_fails_once_is_asked_again(
    november_books: Books, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []

    def fail_once(_number: int, method: str, path: str) -> int | str | None:
        if method == "PUT" and path not in failed:
            failed.append(path)
            return 503 if len(failed) == 1 else "cut"
        return None

    with HttpProxy(s3) as proxy:
        proxy.fault = fail_once
        for name, value in (proxy.variables | {"AWS_MAX_ATTEMPTS": "3"}).items():
            monkeypatch.setenv(name, value)
        export(november_books, s3.place())
        assert failed == [f"/{BUCKET}/{FILE}", f"/{BUCKET}/{MANIFEST}"]
        assert check_export(f"{s3.url}/{MANIFEST}") == []


@pytest.mark.parametrize("moment", [FILE, pytest.param(MANIFEST, marks=pytest.mark.long)])
def test_a_process_killed_in_an_upload_leaves_no_half_file_and_no_manifest(
    november_books: Books,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    moment: str,
) -> None:
    s3.write(FILE, b"older")
    s3.write(MANIFEST, b"of the older file")
    pids: list[int] = []

    def kill_at(_number: int, method: str, path: str) -> str | None:
        if method == "PUT" and path == f"/{BUCKET}/{moment}":
            kill(pids[0])
            return "cut"
        return None

    with HttpProxy(s3) as proxy:
        proxy.fault = kill_at
        for name, value in proxy.variables.items():
            monkeypatch.setenv(name, value)
        out, err = tmp_path / "out", tmp_path / "err"
        arguments = (*STATEMENTS, "--output", s3.url)
        settings = {"database_url": november_books.url(READER)}
        process = start_turn_accounting(*arguments, out=out, err=err, settings=settings)
        assert process.pid is not None
        pids.append(process.pid)
        process.join(60)
        assert process.exitcode == -9
        assert s3.names() == [FILE]
        whole = turn_accounting(*STATEMENTS, database_url=november_books.url(READER)).out.encode()
        assert s3.read(FILE) == (b"older" if moment == FILE else whole)
        proxy.fault = lambda *_: None
        export(november_books, s3.place())
        assert s3.read(FILE) == whole
        assert check_export(f"{s3.url}/{MANIFEST}") == []


@pytest.mark.needs_sshd
def test_a_process_killed_in_an_sftp_upload_leaves_a_draft_that_a_later_export_removes(
    november_books: Books, servers: dict[str, StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sftp = started(servers, "sftp", monkeypatch)
    assert isinstance(sftp, SftpServer)
    program = (
        "import os, sys\n"
        "from accounting.export.place_address import open_place\n"
        "with open_place(sys.argv[1]).draft(sys.argv[2]) as draft:\n"
        "    draft.write(bytes(1 << 20))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, sftp.url, FILE], check=False)
    assert killed.returncode == -9
    [draft] = sftp.names()
    assert draft.startswith(f".{FILE}.")
    assert draft.endswith(".draft")
    export(november_books, sftp.place())
    assert sftp.names() == [draft, FILE, MANIFEST]
    os.utime(sftp.files / draft, (0, 0))
    export(november_books, sftp.place())
    assert sftp.names() == [FILE, MANIFEST]


@pytest.mark.needs_sshd
def test_a_host_that_is_not_known_is_refused(
    november_books: Books, servers: dict[str, StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sftp = started(servers, "sftp", monkeypatch)
    assert isinstance(sftp, SftpServer)
    known_hosts = sftp.home / ".ssh" / "known_hosts"
    text = known_hosts.read_text()
    try:
        for hosts in ("", text.replace("ed25519 A", "ed25519 B")):
            known_hosts.write_text(hosts)
            result = turn_accounting(
                *STATEMENTS, "--output", sftp.url, database_url=november_books.url(READER)
            )
            assert result.code == 1
            assert result.error_line.startswith(f"{sftp.url}: can't be reached: Host key")
    finally:
        known_hosts.write_text(text)
    assert sftp.names() == []


@pytest.mark.parametrize("scheme", ["s3", "sftp"])
def test_a_store_that_is_not_there_is_one_line(
    november_books: Books, scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "exporter",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
        "HOME": str(tmp_path),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    server = f"127.0.0.1:{port}" if scheme == "sftp" else BUCKET
    url = f"{scheme}://{server}/x"
    result = turn_accounting(*STATEMENTS, "--output", url, database_url=november_books.url(READER))
    assert result.code == 1
    assert result.error_line.startswith(url)


def test_a_bucket_that_is_not_there_is_one_line(november_books: Books, s3: S3Server) -> None:
    url = "s3://no-such-bucket/x"
    result = turn_accounting(*STATEMENTS, "--output", url, database_url=november_books.url(READER))
    assert result.code == 1
    assert result.error_line.endswith("The specified bucket does not exist")
    request(s3.port, "HEAD", f"/{BUCKET}")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:s3cret@bucket/x",
        "s3://AKIA:s3c/ret@bucket",
        "gs://s3cret@bucket",
        "az://container/x?sv=1&sig=s3cret",
        "sftp://user:s3cret@host/x",
        "sftp://user:s3/cret@host/x",
        "sftp://host:s3cret/x",
        "s3://",
        "s3:///x",
        "sftp:///x",
        "s3a://bucket",
        "https://user:s3cret@host/",
        "ftp://host/exports",
    ],
)
def test_a_url_with_credentials_or_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="://") as refused:
        open_place(url)
    assert not {"s3cret", "s3c/ret", "s3/cret"} & set(re.split(r"[@:=\s]", str(refused.value)))


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(name, marks=pytest.mark.long if name != "s3" else []) for name in SERVERS],
)
def test_a_missing_extra_is_one_line_that_names_it(scheme: str, tmp_path: Path) -> None:
    packages = Path(sysconfig.get_path("purelib"))
    libraries = {"s3fs", "gcsfs", "adlfs", "sshfs"}
    for path in packages.iterdir():
        if path.name not in libraries:
            (tmp_path / path.name).symlink_to(path)
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-S", "-m", "accounting", *STATEMENTS, "-o", f"{scheme}://bucket/x"],
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith(f"pip install 'turn-accounting[{scheme}]'\n")
