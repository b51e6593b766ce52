"""The line for turnserver.conf, or a comment with the reason when there is none."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from accounting.ops.servers import turnserver_conf_line

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (
            "redis://h:6380/3",
            'redis-statsdb="ip=h dbname=3 port=6380 connect_timeout=30"',
        ),
        (
            "rediss://u:hush@h",
            'redis-statsdb="ip=h dbname=0 password=<password> port=6379 connect_timeout=30"',
        ),
    ],
)
def test_the_line_has_the_address_and_a_placeholder_for_the_password(url: str, line: str) -> None:
    assert turnserver_conf_line(url) == line


ANNOUNCE = """
from pathlib import Path
from accounting.cli.run import _announce
from accounting.embedded import EmbeddedValkey
from accounting.embedded.owner_lock import OwnerLock
file = Path("/data/valkey-coturn-password")
valkey = EmbeddedValkey(
    pid=1, port=6379, home=file.parent, log_path=file, coturn_password_file=file,
    owner_lock=OwnerLock(file),
    coturn_password="hush", service_password="secret",
)
_announce(valkey.coturn_url, valkey)
"""


def test_a_terminal_shows_the_generated_password_and_a_file_shows_where_it_is() -> None:
    line = 'redis-statsdb="ip=127.0.0.1 dbname=0 password={} port=6379 connect_timeout=30"'
    command = [sys.executable, "-c", ANNOUNCE]
    to_file = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert to_file.stdout == f"{line.format('<password>')}\n"
    assert "its password is in /data/valkey-coturn-password" in to_file.stderr
    assert "hush" not in to_file.stderr
    terminal, its_end = pty.openpty()
    subprocess.run(command, cwd=ROOT, stdout=its_end, stderr=subprocess.DEVNULL, check=True)
    os.close(its_end)
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        assert shown.read(500).decode() == f"{line.format('hush')}\r\n"


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock", "redis+sentinel://u:hush@a:26379,b:26379/turn"]
)
def test_an_address_that_coturn_cannot_use_gives_a_comment(url: str) -> None:
    assert turnserver_conf_line(url).startswith("# coturn ")
    assert "hush" not in turnserver_conf_line(url)
