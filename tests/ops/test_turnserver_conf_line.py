"""The line for turnserver.conf, or a comment with the reason when there is none."""

import pytest

from accounting.ops.servers import turnserver_conf_line


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


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock", "redis+sentinel://u:hush@a:26379,b:26379/turn"]
)
def test_an_address_that_coturn_cannot_use_gives_a_comment(url: str) -> None:
    assert turnserver_conf_line(url).startswith("# coturn ")
    assert "hush" not in turnserver_conf_line(url)
