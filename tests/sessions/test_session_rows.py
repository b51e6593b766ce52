"""A session as a row: every column is there, and comes back."""

from dataclasses import fields, replace
from typing import Any

from accounting.db.row_packer import RowPacker
from accounting.db.schema import sessions
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import NO_TOTAL, AllocationKey, EndCause, Phase, SessionState
from accounting.sessions.session_rows import (
    ID_COLUMNS,
    KEY_COLUMNS,
    PACKED_COLUMNS,
    REFRESH_COLUMNS,
    SESSION_COLUMNS,
    pack_id,
    pack_refresh,
    pack_session,
    session_fields,
    session_from_row,
    session_row,
)

KEY = AllocationKey(1, 2, b"n" * 16, 3)
SESSION = SessionState(
    session_id=b"s" * 16,
    user_key=b"u" * 16,
    realm_id=4,
    started_at=5,
    last_seen_at=6,
    expires_at=7,
    start_known=True,
    lifetime_known=True,
    ended_at=8,
    end_cause=EndCause.EXPIRED,
    phase=Phase.PENDING,
    confirmed=True,
    transport="UDP",
    client_address="198.51.100.7:50000",
    server_address="192.0.2.1:3478",
    usage=[11, 12, 13, 14, 15, 16, 17, 18],
    new_count=19,
    deleted_count=20,
    client_total_count=21,
    peer_total_count=22,
    client_total=[23, 24, 25, 26],
    peer_total=[27, 28, 29, 30],
    estimated=True,
    disputed=True,
)


def test_the_fields_of_a_session_are_the_columns_of_the_table() -> None:
    names = [name for name, _ in SESSION_COLUMNS]
    values: dict[str, Any] = dict(zip(COUNTERS, SESSION.usage, strict=True))
    for name in names:
        if name not in COUNTERS:
            values[name] = getattr(SESSION, name)
    assert session_fields(SESSION) == tuple(values[name] for name in names)
    not_of_a_session = {*AllocationKey._fields, "recheck_at", "end_events", "single_hour"}
    assert {*names} == {*sessions.c.keys()} - not_of_a_session
    not_stored = {"usage", "hourly_usage", "prior"}
    assert {field.name for field in fields(SessionState)} - not_stored == {*names} - {*COUNTERS}


def test_a_session_comes_back_from_its_row() -> None:
    row = session_row(KEY, SESSION, recheck_at=9)
    assert session_from_row((*row[: len(KEY_COLUMNS)], *row[len(KEY_COLUMNS) + 1 :])) == (
        KEY,
        SESSION,
    )


def test_a_session_without_totals_stores_empty_ones() -> None:
    session = replace(SESSION, client_total=NO_TOTAL, peer_total=[0, 0, 0, 0])
    row = session_row(KEY, session, recheck_at=9)
    assert row[-4:-2] == ([], [])
    assert session_from_row((*row[: len(KEY_COLUMNS)], *row[len(KEY_COLUMNS) + 1 :])) == (
        KEY,
        session,
    )


def test_a_packed_row_has_each_value_in_its_column() -> None:
    values: dict[str, Any] = dict(zip(COUNTERS, SESSION.usage, strict=True))
    values |= KEY._asdict() | {"recheck_at": 9, "end_events": 31, "single_hour": 32}
    for name in {*sessions.c.keys()} - {*values}:
        values[name] = getattr(SESSION, name)
    packers = (
        (PACKED_COLUMNS, pack_session(KEY, SESSION, 9, 31, 32)),
        (REFRESH_COLUMNS, pack_refresh(SESSION, 9)),
        (ID_COLUMNS, pack_id(SESSION)),
    )
    assert {*PACKED_COLUMNS} == {*values}
    for names, packed in packers:
        packer = RowPacker(sessions, names)
        assert packer.columns == names
        fixed = [values[name] for name in packer.fixed]
        assert packed == packer.pack(fixed, [values[name] for name in packer.varying])
