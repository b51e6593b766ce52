-- What was billed is kept against more hands; a feed's consumer knows its workers apart; a period may
-- begin on any day of a month.

-- Also where triggers are off for a session (session_replication_role = replica).
ALTER TABLE accounting.statements ENABLE ALWAYS TRIGGER statements_are_immutable;
ALTER TABLE accounting.statements ENABLE ALWAYS TRIGGER statements_are_kept;
ALTER TABLE accounting.adjustments ENABLE ALWAYS TRIGGER adjustments_are_immutable;
ALTER TABLE accounting.adjustments ENABLE ALWAYS TRIGGER adjustments_are_kept;
ALTER TABLE accounting.periods ENABLE ALWAYS TRIGGER closed_periods_are_not_deleted;
ALTER TABLE accounting.periods ENABLE ALWAYS TRIGGER closed_periods_are_immutable;
ALTER TABLE accounting.periods ENABLE ALWAYS TRIGGER periods_are_kept;
ALTER TABLE accounting.feed ENABLE ALWAYS TRIGGER feed_is_append_only;
ALTER TABLE accounting.feed ENABLE ALWAYS TRIGGER feed_is_not_emptied;

-- Who reads the view tells late usage by its author. No CHECK: what was posted before stays.
CREATE FUNCTION accounting.check_authors() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added WHERE manual = (author = 'turn-accounting')) THEN
        RAISE EXCEPTION 'turn-accounting is the author of late usage, and of nothing else'
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER late_usage_has_one_author AFTER INSERT ON accounting.adjustments
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION accounting.check_authors();

-- Where a month is shorter, on its last day.
ALTER TABLE accounting.realm_rules DROP CONSTRAINT anchor_day_is_in_every_month;
ALTER TABLE accounting.realm_rules ADD CONSTRAINT anchor_day_is_a_day_of_a_month
    CHECK (anchor_day BETWEEN 1 AND 31);

-- Who moved a consumer last, by a name of its own: a repetition of its move is told from the same
-- move by another.
ALTER TABLE accounting.feed_consumers ADD COLUMN worker text NOT NULL DEFAULT '';

DROP FUNCTION reporting.feed_advance(text, bigint, bigint);
CREATE FUNCTION reporting.feed_advance(
    consumer text, from_seq bigint, to_seq bigint, worker text DEFAULT ''
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stands_at bigint;
    moved_by text;
BEGIN
    PERFORM reporting.feed_cursor(consumer);
    IF to_seq < from_seq OR to_seq > (SELECT coalesce(max(f.seq), 0) FROM accounting.feed f) THEN
        RAISE EXCEPTION 'a cursor moves forward, to a number of the feed: not from % to %',
            from_seq, to_seq USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT c.seq, c.worker INTO stands_at, moved_by FROM accounting.feed_consumers c
    WHERE c.consumer = feed_advance.consumer FOR UPDATE;
    IF stands_at = from_seq THEN
        UPDATE accounting.feed_consumers c
        SET seq = to_seq, worker = feed_advance.worker, moved_at = now()
        WHERE c.consumer = feed_advance.consumer;
        RETURN true;
    END IF;
    RETURN stands_at = to_seq AND moved_by = feed_advance.worker;
END
$$;
COMMENT ON FUNCTION reporting.feed_advance(text, bigint, bigint, text) IS
    'Moves a consumer from one number to another; false when it did not stand at the first, unless this worker made the same move before';
REVOKE ALL ON FUNCTION reporting.feed_advance(text, bigint, bigint, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.feed_advance(text, bigint, bigint, text)
    TO turn_accounting_reader, turn_accounting_writer;
