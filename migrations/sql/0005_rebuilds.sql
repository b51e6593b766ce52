-- Why books were rebuilt from the reports: kept for ever, as what was billed is.

CREATE TABLE accounting.rebuilds (
    rebuild_id uuid NOT NULL DEFAULT gen_random_uuid(),
    realm_id integer NOT NULL,
    rebuilt_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL CONSTRAINT rebuild_has_a_reason CHECK (reason <> ''),
    rows_replaced bigint NOT NULL,
    CONSTRAINT rebuilds_pkey PRIMARY KEY (rebuild_id)
);

GRANT SELECT, INSERT ON accounting.rebuilds TO turn_accounting_writer;

-- Rejected messages are evidence, and nobody may change them; but they may hold a person's name.
CREATE FUNCTION accounting.erase_rejected(channel_starts bytea[]) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH erased AS (
        DELETE FROM accounting.rejected_messages m
        WHERE EXISTS (
            SELECT FROM unnest(channel_starts) AS c (start)
            WHERE substr(m.channel, 1, length(c.start)) = c.start
        )
        RETURNING 1
    )
    SELECT count(*) FROM erased
$$;
REVOKE ALL ON FUNCTION accounting.erase_rejected(bytea[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION accounting.erase_rejected(bytea[]) TO turn_accounting_writer;
