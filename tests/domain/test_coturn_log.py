"""Reading coturn's own log, in both formats, and summing its sessions."""

from tests.support.coturn_log import LoggedKey, LoggedUsage, coturn_log_usage, usage_per_user

ALICE = LoggedKey(b"example.org", b"alice", "001000000000000002")


def test_deltas_of_a_session_add_up_on_both_sides() -> None:
    log = b"""\
2: : session 001000000000000002: new, realm=<example.org>, username=<alice>, lifetime=777
7: : session 001000000000000002: usage: realm=<example.org>, username=<alice>, rp=5, rb=50, sp=7, sb=70
7: : session 001000000000000002: peer usage: realm=<example.org>, username=<alice>, rp=1, rb=10, sp=2, sb=20
8: : session 001000000000000002: usage: realm=<example.org>, username=<alice>, rp=1, rb=1, sp=1, sb=1
8: : session 001000000000000002: closed (2nd stage), user <alice> realm <example.org> origin <>, \
local 127.0.0.1:13478, remote 127.0.0.1:39584, reason: allocation timeout
8: : session 001000000000000002: delete: realm=<example.org>, username=<alice>
"""  # noqa: E501  # lines as coturn 4.6 writes them
    assert coturn_log_usage(log) == {
        ALICE: LoggedUsage(
            received_packets=6,
            received_bytes=51,
            sent_packets=8,
            sent_bytes=71,
            peer_received_packets=1,
            peer_received_bytes=10,
            peer_sent_packets=2,
            peer_sent_bytes=20,
            began=1,
            deleted=1,
        )
    }


def test_lines_with_time_and_level_are_read_alike() -> None:
    prefix = "2026-11-22T18:38:43.561+0000 INFO "
    line = f"{prefix}session 001000000000000002: usage: realm=<example.org>, username=<alice>, "
    log = f"{line}rp=2, rb=216, sp=2, sb=128\n"
    assert coturn_log_usage(log)[ALICE].counters() == (2, 216, 2, 128, 0, 0, 0, 0)


def test_a_session_without_a_start_was_never_authenticated() -> None:
    log = b"6: : session 1: usage: realm=<r>, username=<victim>, rp=4, rb=328, sp=4, sb=400\n"
    assert len(coturn_log_usage(log)) == 1
    assert usage_per_user(coturn_log_usage(log)) == {}


def test_usernames_that_look_like_the_line_around_them_are_kept_whole() -> None:
    name = b"x>, rp=9, rb=9, sp=9, sb=9 \xff\xfe session 7: usage: realm=<q>"
    log = b"1: : session 000000000000000001: usage: realm=<r>, username=<" + name
    log += b">, rp=1, rb=2, sp=3, sb=4\n"
    assert coturn_log_usage(log) == {
        LoggedKey(b"r", name, "000000000000000001"): LoggedUsage(
            received_packets=1, received_bytes=2, sent_packets=3, sent_bytes=4
        )
    }
