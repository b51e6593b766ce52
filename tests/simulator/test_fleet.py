"""The fleet's commands, and its expected totals compared with a naive sum of the messages."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.errors import UsageError
from accounting.simulator import VERSIONS, Command, Fleet, Scenario, events, play
from accounting.simulator.oracle import MESSAGE_KINDS
from tests.support.naive_bookkeeper import (
    expected_figures,
    naive_figures,
    naive_sessions,
)
from tests.support.simulated_fleet import ALL_HARD_CASES, HARD_CASES

BUSY = replace(ALL_HARD_CASES, packets_per_second=4000.0)

SCENARIOS = st.builds(
    Scenario,
    version=st.sampled_from(["4.6", "4.17"]),
    servers=st.integers(2, 4),
    relay_threads=st.integers(1, 3),
    users=st.integers(4, 30),
    realms=st.sampled_from([("example.org",), ("",), ("example.org", "", "zürich")]),
    sessions=st.integers(0, 120),
    concurrency=st.sampled_from([None, None, 15]),
    duration_seconds=st.sampled_from([3.0, 12.0, 25.0]),
    lifetime_seconds=st.sampled_from([3, 600]),
    packets_per_second=st.sampled_from([0.0, 300.0, 5000.0]),
    tcp_share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
    **{name: st.booleans() for name in HARD_CASES},
)


def published(commands: list[Command]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for command in commands:
        if command.name == b"publish" and command.args[0] != b"__XXX__":
            suffix = re.fullmatch(rb".*/allocation/\d{18}/(.*)", command.args[0], re.DOTALL)
            assert suffix is not None
            status = suffix[1] == b"status"
            kinds[(command.args[1].split()[0] if status else suffix[1]).decode()] += 1
    return kinds


@settings(max_examples=60, deadline=None)
@given(SCENARIOS)
def test_oracle_equals_a_naive_sum_over_the_messages(scenario: Scenario) -> None:
    commands, expected = play(scenario)
    assert expected_figures(expected) == naive_figures(commands)
    assert expected.messages == dict.fromkeys(MESSAGE_KINDS, 0) | published(commands)
    assert expected.published == published(commands).total()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("switch", HARD_CASES)
def test_every_hard_case_alone_agrees_with_the_naive_sum(version: str, switch: str) -> None:
    if switch == "same_key" and not VERSIONS[version].status_addresses:
        with pytest.raises(UsageError, match="needs local="):
            Scenario(version=version, same_key=True)
        return
    scenario = Scenario(version=version, **{switch: True})  # type: ignore[arg-type]
    commands, expected = play(scenario)
    assert expected_figures(expected) == naive_figures(commands)


@settings(max_examples=15, deadline=None)
@given(SCENARIOS, st.integers(0, 500))
def test_a_run_halted_anywhere_expects_what_was_published(scenario: Scenario, after: int) -> None:
    fleet, commands = Fleet(scenario), []
    for index, burst in enumerate(fleet.run()):
        commands += burst.commands
        if index == after:
            fleet.halt()
    assert expected_figures(fleet.expected()) == naive_figures(commands)


def test_same_seed_gives_the_same_stream_and_another_seed_another() -> None:
    assert play(ALL_HARD_CASES) == play(ALL_HARD_CASES)
    assert list(events(ALL_HARD_CASES)) != list(events(replace(ALL_HARD_CASES, seed=2)))


def test_events_come_in_order_of_time_and_end_with_the_run() -> None:
    times = [command.at_us for command in events(BUSY)]
    assert times == sorted(times)
    assert times[-1] == 25_000_000


def test_deltas_add_up_to_totals_where_nothing_is_lost() -> None:
    commands, expected = play(Scenario(packets_per_second=4000))
    sessions = [session for sessions in naive_sessions(commands).values() for session in sessions]
    assert len(sessions) == 200
    for session in sessions:
        assert [*(session.total or []), *(session.peer_total or [])] == session.interims
    assert expected.never_published == (0,) * 8


@pytest.mark.parametrize(("version", "modulus"), [("4.5.0", 2048), ("4.5", 4096), ("4.17", 4096)])
def test_interims_come_at_multiples_of_the_modulus(version: str, modulus: int) -> None:
    commands, _ = play(Scenario(version=version, packets_per_second=4000))
    interims = 0
    for sessions in naive_sessions(commands).values():
        for packets in sessions[0].interim_packets[:-1]:
            assert packets % modulus == 0
            interims += 1
        assert sessions[0].interim_packets[-1] < modulus
    assert interims > 500


def test_peer_totals_wrap_at_32_bits_and_the_deltas_stay_right() -> None:
    commands, expected = play(Scenario(wrap=True))
    wrapped = 0
    for (session,) in naive_sessions(commands).values():
        assert session.peer_total == [count % 2**32 for count in session.interims[4:]]
        wrapped += max(session.interims) >= 2**32
    assert wrapped == 10
    assert expected.total.usage[7] > wrapped * 2**32


def test_a_killed_server_publishes_nothing_and_leaves_its_status_keys() -> None:
    scenario = Scenario(servers=1, restart=True)
    commands, expected = play(scenario)
    killed_at, up_at = 12_500_000, 13_500_000
    assert not [c for c in commands if killed_at <= c.at_us < up_at]
    left = [c for c in commands if c.at_us == up_at and c.name == b"del"]
    begun = [c for c in commands if c.args[-1].startswith(b"new ") and c.name == b"publish"]
    assert len(begun) == expected.total.sessions == 200
    assert len(left) == 200 - expected.messages["deleted"] > 10
    assert expected.never_published[1] > 0


def test_a_restarted_server_numbers_from_one_and_its_users_get_the_same_keys() -> None:
    commands, _ = play(Scenario(servers=1, restart=True))
    begun = Counter(
        c.args[0] for c in commands if c.name == b"publish" and c.args[1].startswith(b"new ")
    )
    assert sum(count == 2 for count in begun.values()) > 5
    ids = [channel.rpartition(b"/allocation/")[2][:18] for channel in begun.elements()]
    assert Counter(ids)[b"000000000000000001"] == 2


def test_a_starting_server_deletes_the_status_keys_of_the_others() -> None:
    commands, _ = play(Scenario(servers=2, restart=True))
    (second,) = {c.connection for c in commands if c.name == b"keys"} - {0, 3}
    deleted = {c.args[0] for c in commands if c.connection == second and c.name == b"del"}
    setters = {c.connection for c in commands if c.name == b"set" and c.args[0] in deleted}
    assert setters & {1, 2}
    assert setters & {4, 5}


@pytest.mark.parametrize("version", ["4.6", "4.17"])
def test_unauthenticated_traffic_is_unattributed_and_not_billed(version: str) -> None:
    expected = play(Scenario(version=version, stolen=True))[1]
    assert expected.total.unattributed[1] > 0
    assert expected.total.sessions == 200
    empty = [user for user in expected.users if not user.username]
    assert bool(empty) == VERSIONS[version].stun_traffic
    assert all(user.sessions == 0 and not any(user.usage) for user in empty)


def test_two_servers_on_one_key_are_one_disputed_session_with_the_sum_of_both() -> None:
    commands, expected = play(Scenario(same_key=True))
    roaming = [user for user in expected.users if user.username == b"roaming"]
    assert roaming[0].sessions == roaming[0].sessions_disputed > 3
    news = [c for c in commands if b"/roaming/" in c.args[0] and c.args[1].startswith(b"new ")]
    assert len(news) == 4 * roaming[0].sessions  # SET and PUBLISH, on each of two servers


def test_every_session_is_refreshed_before_its_lifetime_is_over() -> None:
    """Otherwise a session without traffic would expire in the books before its end."""
    scenario = Scenario(
        lifetime_seconds=3, session_seconds=12, same_key=True, rfc6062=True, packets_per_second=0
    )
    status_times: dict[bytes, int] = {}
    for command in events(scenario):
        if command.name == b"publish" and command.args[0].endswith(b"/status"):
            since = status_times.pop(command.args[0], command.at_us)
            assert command.at_us - since <= 3_000_000
            if command.args[1] != b"deleted":
                status_times[command.args[0]] = command.at_us
    assert not status_times


def test_a_session_that_lost_a_report_is_estimated_and_billed_in_full() -> None:
    expected = play(Scenario(lost_interims=True))[1]
    assert expected.total.sessions_estimated == 20
    assert expected.total.usage == play(Scenario())[1].total.usage
    assert expected.never_published == (0,) * 8


def test_lost_statuses_and_totals_change_no_bill() -> None:
    expected = play(Scenario(lost_totals=True))[1]
    assert expected.messages["deleted"] < 200
    assert expected.messages["total_traffic"] < 200
    assert expected.total.usage == play(Scenario())[1].total.usage


def test_a_tcp_allocation_of_rfc_6062_reports_only_when_it_closes() -> None:
    commands, expected = play(Scenario(rfc6062=True, packets_per_second=4000))
    sessions = [session for sessions in naive_sessions(commands).values() for session in sessions]
    silent = [
        session for session in sessions if len(session.interim_packets) == 1 and session.total
    ]
    assert len([session for session in silent if session.interim_packets[0] > 4096]) >= 15
    assert expected.total.unattributed[0] > 0


def test_rest_usernames_are_many_names_of_one_user() -> None:
    expected = play(Scenario(rest_usernames=True))[1]
    assert {len(user.username) for user in expected.users} == {len("1999999999:user0000")}
    people = expected.by_user_id()
    assert len(people) == 20 < len(expected.users)
    assert sum(person.sessions for person in people.values()) == 200


def test_hostile_usernames_stay_within_coturns_limit_and_are_distinct() -> None:
    expected = play(Scenario(hostile_usernames=True, users=60, realms=("r",), sessions=600))[1]
    names = [user.username for user in expected.users]
    assert len(set(names)) == len(names) == 60
    assert max(map(len, names)) <= 512
    json.dumps(expected.as_dict()).encode()


def test_a_realm_without_a_name_has_the_short_channel() -> None:
    commands, _ = play(Scenario(realms=("",), sessions=5))
    channels = {c.args[0] for c in commands if c.name == b"set"}
    assert all(channel.startswith(b"turn/user/user0") for channel in channels)


def test_concurrency_keeps_the_number_of_active_sessions_constant() -> None:
    fleet = Fleet(Scenario(concurrency=50, duration_seconds=30, session_seconds=4))
    live = [fleet.active_sessions for burst in fleet.run() if 2e6 < burst.at_us < 28e6]
    assert 47 <= min(live) <= max(live) == 50
    assert fleet.expected().total.sessions > 200


def test_versions_before_4_6_publish_no_addresses_and_before_4_5_1_2_no_peer_side() -> None:
    payloads = {c.args[1] for c in events(Scenario(version="4.5")) if c.name == b"set"}
    assert payloads == {b"new lifetime=600", b"refreshed lifetime=0"}
    messages = play(Scenario(version="4.5.0"))[1].messages
    assert messages["traffic"] > 0 == messages["traffic/peer"] == messages["total_traffic/peer"]


def test_peer_sent_counts_the_channel_header_since_4_11() -> None:
    """The same seed relays the same packets under both versions."""
    before, after = (play(Scenario(version=v))[1].total.usage for v in ("4.6", "4.17"))
    assert after[:7] == before[:7]
    assert after[7] - before[7] == 4 * before[6]


def test_grand_totals_are_the_sums_of_users_realms_and_user_ids() -> None:
    expected = play(ALL_HARD_CASES)[1]
    for groups in (expected.by_realm(), expected.by_user_id()):
        assert sum(group.sessions for group in groups.values()) == expected.total.sessions
        sums = [sum(counts) for counts in zip(*(g.usage for g in groups.values()), strict=True)]
        assert tuple(sums) == expected.total.usage


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "3.2"}, "version '3.2' is not one of 4.5.0, 4.5, 4.6, 4.17"),
        ({"servers": 0}, "servers is 0"),
        ({"users": 1}, "fewer than the servers"),
        ({"realms": ("a/user/b",)}, "holds '/user/'"),
        ({"databases": (1,)}, "1 entries for 2 servers"),
        ({"same_key": True, "databases": (1, 2)}, "one database"),
        ({"duration_seconds": 0}, "not above 0"),
    ],
)
def test_a_scenario_that_does_not_fit_together_is_refused(
    change: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        Scenario(**change)  # type: ignore[arg-type]
