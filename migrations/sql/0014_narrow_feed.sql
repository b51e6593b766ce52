-- An end of a session, which is nearly all of the feed, waits and stands there as columns: a quarter of
-- what it takes as JSON, written three times on its way. The view makes the payload of it, the same
-- as it was; what was told before stays as it stands.

ALTER TABLE accounting.feed_outbox ALTER COLUMN payload DROP NOT NULL,
    ADD COLUMN allocation_id bigint,
    ADD COLUMN started_at timestamptz,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN received_packets bigint,
    ADD COLUMN received_bytes bigint,
    ADD COLUMN sent_packets bigint,
    ADD COLUMN sent_bytes bigint,
    ADD COLUMN peer_received_packets bigint,
    ADD COLUMN peer_received_bytes bigint,
    ADD COLUMN peer_sent_packets bigint,
    ADD COLUMN peer_sent_bytes bigint,
    ADD COLUMN session_id uuid,
    ADD COLUMN user_key uuid,
    ADD COLUMN number integer,
    ADD COLUMN database integer,
    ADD COLUMN source_id smallint,
    ADD COLUMN start_known boolean,
    ADD COLUMN total_reported boolean,
    ADD COLUMN estimated boolean,
    ADD COLUMN disputed boolean,
    ADD COLUMN end_cause text,
    ADD CONSTRAINT waits_with_payload_or_end CHECK (num_nulls(
        allocation_id, started_at, ended_at, received_packets, received_bytes, sent_packets,
        sent_bytes, peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
        session_id, user_key, number, database, source_id, start_known, total_reported, estimated,
        disputed, end_cause
    ) = CASE WHEN payload IS NULL THEN 0 ELSE 21 END);

-- No check here: it would read the whole feed, and what comes in was checked in the outbox.
ALTER TABLE accounting.feed ALTER COLUMN payload DROP NOT NULL,
    ADD COLUMN allocation_id bigint,
    ADD COLUMN started_at timestamptz,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN received_packets bigint,
    ADD COLUMN received_bytes bigint,
    ADD COLUMN sent_packets bigint,
    ADD COLUMN sent_bytes bigint,
    ADD COLUMN peer_received_packets bigint,
    ADD COLUMN peer_received_bytes bigint,
    ADD COLUMN peer_sent_packets bigint,
    ADD COLUMN peer_sent_bytes bigint,
    ADD COLUMN session_id uuid,
    ADD COLUMN user_key uuid,
    ADD COLUMN number integer,
    ADD COLUMN database integer,
    ADD COLUMN source_id smallint,
    ADD COLUMN start_known boolean,
    ADD COLUMN total_reported boolean,
    ADD COLUMN estimated boolean,
    ADD COLUMN disputed boolean,
    ADD COLUMN end_cause text;

CREATE OR REPLACE VIEW reporting.feed AS
SELECT f.seq, f.event_id, f.type, r.realm,
    CASE WHEN f.payload IS NOT NULL THEN f.payload ELSE jsonb_build_object(
        'session_id', f.session_id, 'number', f.number, 'user_key', f.user_key,
        'source', (SELECT s.source FROM accounting.sources s WHERE s.source_id = f.source_id),
        'database', f.database, 'allocation_id', lpad(f.allocation_id::text, 18, '0'),
        'started_at', accounting.iso_time(f.started_at), 'start_known', f.start_known,
        'ended_at', accounting.iso_time(f.ended_at), 'end_cause', f.end_cause,
        'received_packets', f.received_packets, 'received_bytes', f.received_bytes,
        'sent_packets', f.sent_packets, 'sent_bytes', f.sent_bytes,
        'peer_received_packets', f.peer_received_packets,
        'peer_received_bytes', f.peer_received_bytes,
        'peer_sent_packets', f.peer_sent_packets, 'peer_sent_bytes', f.peer_sent_bytes,
        'total_reported', f.total_reported, 'estimated', f.estimated, 'disputed', f.disputed
    ) END AS payload,
    f.created_at
FROM accounting.feed f JOIN accounting.realms r USING (realm_id);
