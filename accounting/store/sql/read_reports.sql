-- The next reports of a source in order. :since keeps it to the partitions of the last days.
SELECT
    epoch, position, received_at, database, realm_id,
    username_key, user_key, allocation_id, kind, side,
    lifetime, transport, server_address, client_address, received_packets,
    received_bytes, sent_packets, sent_bytes
FROM accounting.reports
WHERE source_id = :source_id AND received_at >= :since AND (epoch, position) > (:epoch, :position)
ORDER BY epoch, position
LIMIT :limit
