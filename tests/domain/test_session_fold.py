"""The rules of the session fold on one key; each test is named after its rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.session_fold import (
    ASSUMED_LIFETIME,
    MAX_SERVERS,
    SECOND,
    AllocationKey,
    KeyFold,
    Phase,
    PriorState,
    Report,
    SessionState,
    StatusKeySighting,
    expire,
)
from accounting.domain.session_ids import parse_session_id, session_id, short_session_id

GRACE: Final = 60
A, B, C = "192.0.2.1:3478", "192.0.2.2:3478", "192.0.2.3:3478"
NONE: Final = (0, 0, 0, 0)
HOUR: Final = 3600
RULES: Final = RealmRules([RealmRule(grace_seconds=GRACE)])


def key_fold(gap_positions: Sequence[tuple[int, int]]) -> KeyFold:
    return KeyFold(AllocationKey(1, 0, b"username", 7), 1, RULES, gap_positions)


@dataclass(slots=True)
class Key:
    """One allocation key; its methods apply reports, received that many seconds after zero."""

    gap_positions: list[tuple[int, int]] = field(default_factory=list)
    fold: KeyFold = field(init=False)
    position: int = 0

    def __post_init__(self) -> None:
        self.fold = key_fold(self.gap_positions)

    def report(
        self,
        seconds: float,
        kind: ReportKind,
        side: Side | None = None,
        counts: tuple[int, ...] = NONE,
        lifetime: int | None = None,
        local: str | None = A,
    ) -> None:
        self.position += 1
        status = kind in {ReportKind.NEW, ReportKind.REFRESHED}
        report = Report(
            1,
            self.position,
            int(seconds * SECOND),
            0,
            1,
            b"username",
            b"user",
            7,
            kind,
            side,
            lifetime,
            "UDP" if status and local else None,
            local if status else None,
            "198.51.100.7:5" if status and local else None,
            *counts,
        )
        self.fold.apply(report)

    def new(self, seconds: float, lifetime: int = 600, local: str | None = A) -> None:
        self.report(seconds, ReportKind.NEW, lifetime=lifetime, local=local)

    def refreshed(self, seconds: float, lifetime: int = 600, local: str | None = A) -> None:
        self.report(seconds, ReportKind.REFRESHED, lifetime=lifetime, local=local)

    def deleted(self, seconds: float) -> None:
        self.report(seconds, ReportKind.DELETED)

    def interim(self, seconds: float, *counts: int, side: Side = Side.CLIENT) -> None:
        self.report(seconds, ReportKind.INTERIM, side, counts)

    def total(self, seconds: float, *counts: int, side: Side = Side.CLIENT) -> None:
        self.report(seconds, ReportKind.TOTAL, side, counts)

    @property
    def sessions(self) -> list[SessionState]:
        return sorted(self.fold.changed, key=lambda session: session.session_id)

    @property
    def only(self) -> SessionState:
        (session,) = self.sessions
        return session


def ends(key: Key) -> list[tuple[float | None, str | None]]:
    return [
        (None if session.ended_at is None else session.ended_at / SECOND, session.end_cause)
        for session in key.sessions
    ]


# Borders


def test_new_starts_a_session_whose_start_is_known() -> None:
    key = Key()
    key.new(1)
    session = key.only
    assert (session.started_at, session.last_seen_at, session.expires_at) == (
        SECOND,
        SECOND,
        601 * SECOND,
    )
    assert (session.start_known, session.confirmed, session.ended_at) == (True, True, None)
    assert (session.transport, session.server_address, session.client_address) == (
        "UDP",
        A,
        "198.51.100.7:5",
    )


def test_new_supersedes_a_live_session_at_its_last_sign_of_life() -> None:
    key = Key()
    key.new(0)
    key.interim(10, 1, 2, 3, 4)
    key.new(20)
    assert ends(key) == [(10, "superseded"), (None, None)]
    assert [session.usage[:4] for session in key.sessions] == [[1, 2, 3, 4], [0, 0, 0, 0]]


def test_new_after_expiry_and_grace_leaves_the_session_expired() -> None:
    key = Key()
    key.new(0)
    key.interim(10, 1, 2, 3, 4)
    key.new(661)
    assert ends(key) == [(10, "expired"), (None, None)]


def test_new_takes_over_no_unauthenticated_interims() -> None:
    """A wrong password publishes traffic under the victim's name.

    docs/coturn.md#unauthenticated-traffic
    """
    key = Key()
    key.interim(0, 1, 2, 3, 4)
    key.new(1)
    unauthenticated, session = key.sessions
    assert (unauthenticated.confirmed, unauthenticated.phase, unauthenticated.usage[:4]) == (
        False,
        Phase.CLOSED,
        [1, 2, 3, 4],
    )
    assert session.usage == [0] * 8


@pytest.mark.parametrize("confirming", [ReportKind.REFRESHED, ReportKind.DELETED, ReportKind.TOTAL])
def test_any_other_report_without_a_session_starts_one_of_unknown_start(
    confirming: ReportKind,
) -> None:
    key = Key()
    key.report(5, confirming, Side.CLIENT if confirming is ReportKind.TOTAL else None, lifetime=600)
    assert (key.only.started_at, key.only.start_known, key.only.confirmed) == (
        5 * SECOND,
        False,
        True,
    )


@pytest.mark.parametrize("confirming", [ReportKind.REFRESHED, ReportKind.DELETED, ReportKind.TOTAL])
def test_interims_before_the_first_confirming_report_belong_to_its_session(
    confirming: ReportKind,
) -> None:
    """Capture began in the middle of a session."""
    key = Key()
    key.interim(0, 1, 2, 3, 4)
    assert not key.only.confirmed
    key.report(
        9,
        confirming,
        Side.CLIENT if confirming is ReportKind.TOTAL else None,
        (1, 2, 3, 4),
        lifetime=600,
    )
    assert (key.only.confirmed, key.only.started_at, key.only.usage[:4]) == (True, 0, [1, 2, 3, 4])


def test_interims_alone_confirm_nothing() -> None:
    key = Key()
    for second in range(5):
        key.interim(second, 1, 2, 3, 4)
        key.interim(second, 1, 2, 3, 4, side=Side.PEER)
    assert not key.only.confirmed


def test_deleted_ends_the_session_and_its_totals_still_belong_to_it() -> None:
    """The totals come after `deleted` (docs/coturn.md#normal-close)."""
    key = Key()
    key.new(0)
    key.interim(9, 1, 2, 3, 4)
    key.deleted(10)
    key.total(10.5, 1, 2, 3, 4)
    key.total(11, 0, 0, 0, 0, side=Side.PEER)
    assert ends(key) == [(10, "deleted")]
    assert (key.only.last_seen_at, key.only.client_total_count, key.only.peer_total_count) == (
        10 * SECOND,
        1,
        1,
    )
    assert key.only.phase is Phase.CLOSED


@pytest.mark.parametrize("kind", [ReportKind.REFRESHED, ReportKind.INTERIM, ReportKind.DELETED])
def test_any_report_but_a_total_after_deleted_starts_another_session(kind: ReportKind) -> None:
    key = Key()
    key.new(0)
    key.deleted(10)
    key.report(
        11, kind, Side.CLIENT if kind is ReportKind.INTERIM else None, (1, 2, 3, 4), lifetime=600
    )
    first, second = key.sessions
    assert (first.ended_at, first.usage) == (10 * SECOND, [0] * 8)
    assert (second.started_at, second.start_known) == (11 * SECOND, False)


def test_a_third_total_starts_another_session() -> None:
    key = Key()
    key.new(0)
    key.deleted(10)
    key.total(10, 1, 2, 3, 4)
    key.total(11, 5, 6, 7, 8)
    assert [session.usage[:4] for session in key.sessions] == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_refreshed_with_lifetime_0_is_only_a_sign_of_life() -> None:
    """With two address families, the other one may go on."""
    key = Key()
    key.new(0)
    key.refreshed(10, 0)
    assert key.only.ended_at is None
    assert (key.only.last_seen_at, key.only.expires_at) == (10 * SECOND, 600 * SECOND)
    key.interim(500, 1, 2, 3, 4)
    assert key.only.usage[0] == 1


def test_refreshed_extends_the_expiry_and_an_interim_does_not() -> None:
    key = Key()
    key.new(0)
    key.interim(599, 1, 2, 3, 4)
    assert key.only.expires_at == 600 * SECOND
    key.refreshed(600, 300)
    assert key.only.expires_at == 900 * SECOND


def test_an_unknown_lifetime_is_the_longest_from_the_last_sign_of_life() -> None:
    key = Key()
    key.interim(0, 1, 2, 3, 4)
    key.interim(100, 1, 2, 3, 4)
    assert key.only.expires_at == 100 * SECOND + ASSUMED_LIFETIME


def test_a_session_expires_after_expiry_and_grace_at_its_last_sign_of_life() -> None:
    key = Key()
    key.new(0)
    key.refreshed(100, 500)
    session, past = key.only, (600 + GRACE) * SECOND
    assert not expire(session, past, GRACE * SECOND)
    assert ends(key) == [(None, None)]
    assert expire(session, past + 1, GRACE * SECOND)
    assert ends(key) == [(100, "expired")]
    assert not expire(session, past + 2, GRACE * SECOND)


@pytest.mark.parametrize("kind", [ReportKind.REFRESHED, ReportKind.DELETED, ReportKind.TOTAL])
def test_an_expired_session_is_reopened_with_the_interims_since(kind: ReportKind) -> None:
    key = Key()
    key.new(3000)
    key.interim(3010, 1, 2, 3, 4)
    key.interim(3700, 10, 20, 30, 40)
    key.interim(3710, 0, 0, 1, 50, side=Side.PEER)
    side = Side.CLIENT if kind is ReportKind.TOTAL else None
    key.report(3720, kind, side, (11, 22, 33, 44), lifetime=600)
    assert key.only.usage == [11, 22, 33, 44, 0, 0, 1, 50]
    assert (key.only.last_seen_at, key.only.started_at) == (3720 * SECOND, 3000 * SECOND)
    assert key.only.end_cause == ("deleted" if kind is ReportKind.DELETED else None)
    assert key.only.hourly_usage == {
        0: [1, 2, 3, 4, 0, 0, 0, 0],
        HOUR * SECOND: [10, 20, 30, 40, 0, 0, 1, 50],
    }


def test_a_sighting_of_an_old_key_ends_a_session_that_expired() -> None:
    key = Key()
    key.new(0)
    key.refreshed(100, 500)
    session, key.fold.changed = key.only, []
    assert not key.fold.apply_sighting(
        StatusKeySighting(
            1, 2, 1, 0, 1, b"username", b"user", 7, 700 * SECOND, 701 * SECOND, idle_seconds=690
        )
    )
    assert key.fold.changed == [session]
    assert ends(key) == [(100, "expired")]


def test_interims_alone_never_reopen_a_session() -> None:
    key = Key()
    key.new(0)
    for second in (700, 800, 900):
        key.interim(second, 1, 2, 3, 4)
    session, pending = key.sessions
    assert (session.ended_at, session.end_cause, session.usage) == (0, "expired", [0] * 8)
    assert (pending.confirmed, pending.usage[:4]) == (False, [3, 6, 9, 12])


def test_interims_after_an_expiry_stay_unattributed_when_new_follows() -> None:
    key = Key()
    key.new(0)
    key.interim(700, 1, 2, 3, 4)
    key.new(710)
    key.deleted(720)
    assert [(session.confirmed, session.usage[0]) for session in key.sessions] == [
        (True, 0),
        (False, 1),
        (True, 0),
    ]
    assert ends(key)[0] == (0, "expired")


def test_a_session_reopened_twice_takes_over_the_interims_of_both_times() -> None:
    key = Key()
    key.new(0)
    key.interim(700, 1, 1, 1, 1)
    key.refreshed(710)
    key.interim(1400, 2, 2, 2, 2)
    key.deleted(1410)
    assert (key.only.usage[:4], key.only.ended_at) == ([3, 3, 3, 3], 1410 * SECOND)


def test_unconfirmed_interims_are_never_taken_over_once_they_expired() -> None:
    key = Key()
    key.interim(0, 1, 2, 3, 4)
    key.total(3600 + GRACE + 1, 5, 6, 7, 8)
    unauthenticated, session = key.sessions
    assert (unauthenticated.confirmed, unauthenticated.usage[:4]) == (False, [1, 2, 3, 4])
    assert (session.confirmed, session.usage[:4]) == (True, [5, 6, 7, 8])


def test_a_total_without_its_deleted_ends_the_lifetime() -> None:
    """Once totals come, the allocation is gone; if `deleted` was lost, only grace remains."""
    key = Key()
    key.new(0)
    key.total(10, 1, 2, 3, 4)
    key.total(10, 0, 0, 0, 0, side=Side.PEER)
    assert (key.only.ended_at, key.only.expires_at) == (None, 10 * SECOND)
    key.interim(20, 9, 9, 9, 9)
    session, other = key.sessions
    assert (session.ended_at, session.end_cause, session.usage[0]) == (10 * SECOND, "expired", 1)
    assert not other.confirmed


def test_a_deleted_after_the_totals_ends_their_session() -> None:
    key = Key()
    key.new(0)
    key.total(10, 1, 2, 3, 4)
    key.deleted(11)
    assert ends(key) == [(11, "deleted")]


# Two servers on one key (docs/coturn.md#shared-key)


def test_new_from_another_server_continues_the_session_for_both_as_disputed() -> None:
    key = Key()
    key.new(0, local=A)
    key.interim(1, 1, 1, 1, 1)
    key.new(2, local=B)
    key.interim(3, 2, 2, 2, 2)
    key.deleted(4)
    assert (key.only.ended_at, key.only.disputed) == (None, True)
    key.total(4, 1, 1, 1, 1)
    key.interim(5, 4, 4, 4, 4)
    key.deleted(6)
    assert ends(key) == [(6, "deleted")]
    key.total(6, 6, 6, 6, 6)
    assert key.only.usage[:4] == [7, 7, 7, 7]
    assert not key.only.estimated


def test_three_servers_on_one_key_need_three_deleted() -> None:
    key = Key()
    for second, local in enumerate((A, B, C)):
        key.new(second, local=local)
    for second in (10, 11):
        key.deleted(second)
    assert key.only.ended_at is None
    key.deleted(12)
    assert ends(key) == [(12, "deleted")]


def test_with_two_servers_the_longer_lifetime_counts() -> None:
    key = Key()
    key.new(0, 3600, local=A)
    key.new(10, 600, local=B)
    assert key.only.expires_at == 3600 * SECOND


def test_new_from_the_same_server_or_without_an_address_starts_another_session() -> None:
    """Before 4.6 the status has no address: then every `new` starts a session."""
    for before, after in ((A, A), (None, A), (A, None), (None, None)):
        key = Key()
        key.new(0, local=before)
        key.new(1, local=after)
        assert ends(key) == [(0, "superseded"), (None, None)]
        assert not any(session.disputed for session in key.sessions)


def test_new_from_another_server_after_the_end_starts_another_session() -> None:
    key = Key()
    key.new(0, local=A)
    key.deleted(1)
    key.new(2, local=B)
    assert ends(key) == [(1, "deleted"), (None, None)]
    key.new(3000, local=A)
    assert ends(key) == [(1, "deleted"), (2, "expired"), (None, None)]
    assert not any(session.disputed for session in key.sessions)


def test_servers_on_one_key_are_counted_to_a_limit() -> None:
    """The column holds up to 2^15 - 1; a larger count would be negative when read back."""
    key = Key()
    key.new(0, local=A)
    for _ in range(MAX_SERVERS + 10):
        key.new(1, local=B)
    assert key.only.new_count == MAX_SERVERS


def test_totals_of_two_servers_add_up_and_the_first_is_a_lower_bound() -> None:
    key = Key()
    key.new(0, local=A)
    key.new(0, local=B)
    key.interim(1, 10, 10, 10, 10)
    key.deleted(2)
    key.total(2, 6, 6, 6, 6)
    assert key.only.usage[:4] == [10, 10, 10, 10]
    key.deleted(3)
    key.total(3, 7, 7, 7, 7)
    assert (key.only.usage[:4], key.only.estimated) == ([13, 13, 13, 13], True)


# Sums


def test_a_total_that_equals_the_interims_changes_nothing() -> None:
    key = Key()
    key.new(0)
    key.interim(1, 1, 2, 3, 4)
    key.interim(2, 1, 2, 3, 4)
    key.deleted(3)
    key.total(HOUR, 2, 4, 6, 8)
    assert key.only.hourly_usage == {0: [2, 4, 6, 8, 0, 0, 0, 0]}
    assert (key.only.usage[:4], key.only.estimated, key.only.disputed) == (
        [2, 4, 6, 8],
        False,
        False,
    )


def test_a_larger_total_adds_the_difference_at_its_time_as_estimated() -> None:
    key = Key()
    key.new(0)
    key.interim(1, 1, 2, 3, 4)
    key.deleted(9)
    key.total(HOUR, 2, 4, 3, 4)
    assert key.only.hourly_usage[HOUR * SECOND] == [1, 2, 0, 0, 0, 0, 0, 0]
    assert (key.only.usage[:4], key.only.estimated, key.only.disputed) == (
        [2, 4, 3, 4],
        True,
        False,
    )


def test_a_smaller_total_takes_the_difference_away_as_disputed() -> None:
    key = Key()
    key.new(0)
    key.interim(1, 5, 50, 5, 50)
    key.deleted(9)
    key.total(HOUR, 5, 40, 5, 50)
    assert key.only.hourly_usage[HOUR * SECOND] == [0, -10, 0, 0, 0, 0, 0, 0]
    assert (key.only.usage[:4], key.only.estimated, key.only.disputed) == (
        [5, 40, 5, 50],
        False,
        True,
    )


def test_a_total_may_be_larger_in_one_counter_and_smaller_in_another() -> None:
    key = Key()
    key.new(0)
    key.interim(1, 5, 50, 5, 50)
    key.total(10, 6, 49, 5, 50)
    assert key.only.usage[:4] == [6, 49, 5, 50]
    assert (key.only.estimated, key.only.disputed) == (True, True)


def test_a_session_of_rfc_6062_is_billed_by_its_only_reports() -> None:
    """It reports no interim until it closes (docs/coturn.md#tcp-no-interims)."""
    key = Key()
    key.new(0)
    key.interim(600, 9, 9000, 8, 8000)
    key.deleted(600)
    key.total(600, 9, 9000, 8, 8000)
    assert (key.only.usage[:4], key.only.estimated) == ([9, 9000, 8, 8000], False)


def close_with_peer_total(
    key: Key, peer: tuple[int, ...], client: tuple[int, ...] = (4, 40, 4, 40)
) -> SessionState:
    key.interim(1, 4, 40, 4, 40)
    key.interim(1, 4, 40, 4, 40, side=Side.PEER)
    key.deleted(9)
    key.total(HOUR, *client)
    key.total(HOUR, *peer, side=Side.PEER)
    return key.sessions[-1]


def test_a_peer_total_that_wrapped_is_compared_modulo_2_to_the_32() -> None:
    """It wrapped eight times (docs/coturn.md#peer-total-wraps)."""
    key = Key()
    key.new(0)
    for _ in range(12):
        key.interim(1, 0, 0, 10**6, (3_011_745_496 + 8 * 2**32) // 12, side=Side.PEER)
    key.deleted(9)
    key.total(9, 0, 0, 0, 0)
    key.total(9, 0, 0, 12 * 10**6, 3_011_745_496, side=Side.PEER)
    assert key.only.usage[7] == 3_011_745_496 + 8 * 2**32
    assert (key.only.estimated, key.only.disputed) == (False, False)


def test_a_peer_difference_corrects_if_the_client_side_lacked_interims() -> None:
    key = Key()
    key.new(0)
    session = close_with_peer_total(key, (5, 140, 4, 40), client=(5, 140, 4, 40))
    assert session.usage == [5, 140, 4, 40, 5, 140, 4, 40]
    assert (session.estimated, session.disputed) == (True, False)
    assert session.hourly_usage[HOUR * SECOND] == [1, 100, 0, 0, 1, 100, 0, 0]


def test_a_peer_difference_corrects_a_session_of_unknown_start() -> None:
    key = Key()
    session = close_with_peer_total(key, (5, 140, 4, 40))
    assert session.usage[4:] == [5, 140, 4, 40]
    assert (session.estimated, session.disputed) == (True, False)


@pytest.mark.parametrize(
    ("after", "within"), [(0, False), (1, True), (2, True), (5, True), (6, False), (9, False)]
)
def test_a_peer_difference_corrects_if_a_gap_lies_within_the_session(
    after: int, within: bool
) -> None:
    """The session has positions 1 to 6; a gap lies after a position."""
    key = Key(gap_positions=[(1, after)])
    key.new(0)
    session = close_with_peer_total(key, (5, 140, 4, 40))
    assert session.usage[4:] == ([5, 140, 4, 40] if within else [4, 40, 4, 40])
    assert (session.estimated, session.disputed) == (within, not within)


def test_elsewhere_a_peer_difference_only_disputes() -> None:
    key = Key()
    key.new(0)
    session = close_with_peer_total(key, (5, 140, 4, 40))
    assert (session.usage[4:], session.estimated, session.disputed) == ([4, 40, 4, 40], False, True)


def test_a_peer_total_below_the_interims_never_corrects() -> None:
    """Modulo 2^32, extra interims look like an enormous number of lost ones."""
    key = Key(gap_positions=[(1, 2)])
    key.new(0)
    session = close_with_peer_total(key, (3, 30, 4, 40))
    assert (session.usage[4:], session.estimated, session.disputed) == ([4, 40, 4, 40], False, True)


def test_a_client_total_below_the_interims_allows_no_peer_correction() -> None:
    key = Key()
    key.new(0)
    session = close_with_peer_total(key, (5, 140, 4, 40), client=(4, 30, 4, 40))
    assert (session.usage[4:], session.estimated, session.disputed) == ([4, 40, 4, 40], False, True)


def test_peer_totals_of_two_servers_are_compared_together() -> None:
    key = Key()
    key.new(0, local=A)
    key.new(0, local=B)
    key.interim(1, 4, 40, 4, 40, side=Side.PEER)
    key.interim(2, 4, 40, 4, 40, side=Side.PEER)
    for second in (3, 4):
        key.deleted(second)
        key.total(second, 0, 0, 0, 0)
        key.total(second, 4, 40, 4, 40, side=Side.PEER)
    assert (key.only.usage[4:], key.only.estimated) == ([8, 80, 8, 80], False)


# Identity of sessions


def test_a_session_id_is_a_uuid_of_version_8_made_of_its_first_position() -> None:
    one = UUID(bytes=session_id(1, 2, 3))
    assert (one.version, one.variant) == (8, "specified in RFC 4122")
    ids = [
        session_id(*place)
        for place in ((1, 1, 1), (1, 1, 2), (1, 1, 2**61), (1, 2, 1), (1, 2**31, 1), (2, 1, 1))
    ]
    assert ids == sorted(set(ids))
    assert session_id(32767, 2**31 - 1, 2**62 - 1) > ids[-1]


@pytest.mark.parametrize("place", [(1, 1, 1), (0x37A9, 2, 10**13), (32767, 2**31 - 1, 2**62 - 1)])
def test_a_session_id_has_a_short_form(place: tuple[int, int, int]) -> None:
    full = UUID(bytes=session_id(*place))
    assert parse_session_id(short_session_id(full)) == parse_session_id(str(full)) == full


@pytest.mark.parametrize("text", ["", "37a9", "37a9-1", "1-1-1", f"37a9-1-{2**62}", "37a9-1--1"])
def test_other_text_is_no_session_id(text: str) -> None:
    assert parse_session_id(text) is None


# Batches


@dataclass(slots=True)
class SettledKey:
    """The sessions of one key and their usage by time, after any batching of its reports."""

    sessions: dict[bytes, SessionState] = field(default_factory=dict)
    usage: dict[bytes, dict[int, list[int]]] = field(default_factory=dict)

    def settle(self, batch: list[Report], until: int) -> None:
        """Settle one batch as the job does: read what can change, apply, store, expire."""
        fold = key_fold([(1, 5)])
        for session in self.sessions.values():
            if session.phase is not Phase.CLOSED:
                fetched = replace(session, usage=list(session.usage), hourly_usage={})
                fetched.prior = PriorState(
                    active_until=session.active_until,
                    ended=session.ended_at is not None,
                    confirmed=session.confirmed,
                    estimated=session.estimated,
                    usage=tuple(session.usage),
                )
                fold.resume(fetched)
        for report in batch:
            fold.apply(report)
        for pending, target in fold.merged:
            del self.sessions[pending.session_id]
            self._add_usage(target.session_id, self.usage.pop(pending.session_id))
        for session in fold.changed:
            self.sessions[session.session_id] = session
            self._add_usage(session.session_id, session.hourly_usage)
        for session in self.sessions.values():
            if session.phase is Phase.ACTIVE:
                expire(session, until, GRACE * SECOND)

    def _add_usage(self, session_id: bytes, usage: Mapping[int, Sequence[int]]) -> None:
        hours = self.usage.setdefault(session_id, {})
        for hour, counters in usage.items():
            before = hours.get(hour, [0] * 8)
            hours[hour] = [a + b for a, b in zip(before, counters, strict=True)]

    def summary(self) -> list[object]:
        return [
            (
                replace(session, hourly_usage={}, prior=None),
                sorted(self.usage.get(number, {}).items()),
            )
            for number, session in sorted(self.sessions.items())
        ]


COUNTS: Final = st.tuples(*[st.integers(0, 3)] * 4)
EVENTS: Final = st.tuples(
    st.sampled_from([0, 1, 30, 300, 700, 4000]),
    st.one_of(
        st.tuples(
            st.sampled_from([ReportKind.NEW, ReportKind.REFRESHED]), st.none(), st.just(NONE)
        ),
        st.tuples(st.just(ReportKind.DELETED), st.none(), st.just(NONE)),
        st.tuples(
            st.sampled_from([ReportKind.INTERIM, ReportKind.TOTAL]), st.sampled_from(Side), COUNTS
        ),
    ),
    st.sampled_from([0, 30, 600]),
    st.sampled_from([A, A, B, None]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=25), st.sets(st.integers(0, 25)))
def test_any_batching_of_a_stream_gives_the_same_sessions(
    events: list[tuple[int, tuple[ReportKind, Side | None, tuple[int, ...]], int, str | None]],
    cuts: set[int],
) -> None:
    now, reports = 0, []
    for position, (wait, (kind, side, counts), lifetime, local) in enumerate(events, start=1):
        now += wait * SECOND
        status = kind in {ReportKind.NEW, ReportKind.REFRESHED}
        reports.append(
            Report(
                1,
                position,
                now,
                0,
                1,
                b"username",
                b"user",
                7,
                kind,
                side,
                lifetime if status else None,
                None,
                local if status else None,
                None,
                *counts,
            )
        )
    whole, cut = SettledKey(), SettledKey()
    end = now + 10_000 * SECOND
    whole.settle(reports, end)
    bounds = sorted({0, len(reports), *(cut_at for cut_at in cuts if cut_at <= len(reports))})
    for start, stop in zip(bounds, [*bounds[1:], len(reports)], strict=True):
        # The watermark may be as late as the next report: nothing was received before that.
        until = reports[stop].received_at if stop < len(reports) else end
        cut.settle(reports[start:stop], until)
    assert cut.summary() == whole.summary()
