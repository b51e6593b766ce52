"""Store the status keys that a scan found in Redis, each after the report that preceded the scan.

Sightings at one position are numbered in the order in which they are loaded. Settling continues
after the last number that it has settled, so that new sightings must have higher numbers, also
when the spool of another collector numbers them differently.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import Connection, insert, select

from accounting.capture.spool.records import RawKeySighting
from accounting.db.schema import key_sightings
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import parse_channel_prefix, parse_status_key
from accounting.domain.session_fold import StatusKeySighting
from accounting.identities.identity_resolver import IdentityResolver, unpack_identity


def identify(
    connection: Connection,
    identities: IdentityResolver,
    sightings: Sequence[RawKeySighting],
    epoch_numbers: Mapping[int, int],
) -> list[StatusKeySighting]:
    """Parse the keys and resolve their names; drops keys that are not an allocation's status.

    Also drops keys that would add too many realms.
    """
    identified: list[StatusKeySighting] = []
    for sighting in sightings:
        allocation = parse_status_key(sighting.key)
        if allocation is None:
            continue
        channel_prefix, allocation_id = allocation
        realm, username = parse_channel_prefix(channel_prefix)
        if not identities.has_realm(realm):
            if not identities.has_room_for_realm:
                continue
            identities.add_realm(connection, realm)
        cache, _ = identities.cache_at(sighting.seen_at)
        packed = cache.get(channel_prefix) or identities.resolve(
            channel_prefix, realm, username, sighting.seen_at
        )
        realm_id, username_key, user_key = unpack_identity(packed)
        identified.append(
            StatusKeySighting(
                epoch=epoch_numbers[sighting.epoch],
                position=sighting.position,
                number=sighting.number,
                database=sighting.database,
                realm_id=realm_id,
                username_key=username_key,
                user_key=user_key,
                allocation_id=allocation_id,
                scan_started_at=sighting.scan_started_at,
                seen_at=sighting.seen_at,
                idle_seconds=sighting.idle_seconds,
            )
        )
    return identified


def add_sightings(
    connection: Connection,
    source_id: int,
    sightings: Sequence[StatusKeySighting],
    start: tuple[int, int],
) -> list[StatusKeySighting]:
    """Insert sightings in order, renumbered; returns them. Skips those stored at ``start``."""
    if not sightings:
        return []
    table = key_sightings.c
    stored_at_start = connection.execute(
        select(
            table.database, table.user_key, table.username_key, table.allocation_id, table.seen_at
        ).where(table.source_id == source_id, table.epoch == start[0], table.position == start[1])
    ).all()
    stored = {tuple(row) for row in stored_at_start}
    numbers = Counter({start: len(stored_at_start)})
    rows = []
    added = []
    for sighting in sightings:
        position = sighting.epoch, sighting.position
        identifying = {
            "database": sighting.database,
            "user_key": UUID(bytes=sighting.user_key),
            "username_key": UUID(bytes=sighting.username_key),
            "allocation_id": sighting.allocation_id,
            "seen_at": from_micros(sighting.seen_at),
        }
        if position == start and tuple(identifying.values()) in stored:
            continue
        numbers[position] += 1
        added.append(sighting._replace(number=numbers[position]))
        rows.append(
            {
                **identifying,
                "source_id": source_id,
                "epoch": sighting.epoch,
                "position": sighting.position,
                "sighting": numbers[position],
                "realm_id": sighting.realm_id,
                "scan_started_at": from_micros(sighting.scan_started_at),
                "idle_seconds": sighting.idle_seconds,
            }
        )
    if rows:
        connection.execute(insert(key_sightings), rows)
    return added
