-- The rowmill schema: who owns which partition, how far each table is, and what was set aside.
-- Applied by `rowmill init`, in one transaction, as often as you like.
--
-- The promise, as a query: in every snapshot, for every (topic, partition, target), each record of
-- [start_offset, next_offset) has exactly one outcome, and next_offset - start_offset is their number.

-- Names without a schema are the server's own, here and in every function: whoever may create a function or an operator in a
-- schema of the caller's search_path would else have it called with the caller's rights.
SET search_path = pg_catalog, pg_temp;

CREATE SCHEMA IF NOT EXISTS rowmill;

-- An older program refuses a newer schema: it would not know what the new columns promise.
CREATE TABLE IF NOT EXISTS rowmill.version (
    only_row BOOLEAN PRIMARY KEY DEFAULT true CHECK (only_row),
    version  INTEGER NOT NULL
);

-- Each number names one session of a member's lease connection; see rowmill.alive.
CREATE SEQUENCE IF NOT EXISTS rowmill.session AS INTEGER CYCLE;

-- One row a running process. Only the server's clock counts.
CREATE TABLE IF NOT EXISTS rowmill.member (
    pipeline     TEXT        NOT NULL,
    member       TEXT        NOT NULL,
    lease        INTERVAL    NOT NULL,
    -- The advisory lock that the member's lease session holds; null where sessions are shared (pgbouncer).
    session      INTEGER,
    started_at   TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline, member)
) WITH (fillfactor = 30);
-- How well it reaches Kafka: 0 not at all, 1 again for a short time, 2 well. Partitions belong with who reaches it.
ALTER TABLE rowmill.member ADD COLUMN IF NOT EXISTS reach SMALLINT NOT NULL DEFAULT 2;

-- How far each table is with each partition, and who may move it: `owner` and `epoch` are the fence.
-- No index but the key and room in each page, so that the frequent updates stay HOT.
CREATE TABLE IF NOT EXISTS rowmill.ledger (
    topic         TEXT    NOT NULL,
    partition     INTEGER NOT NULL,
    target        TEXT    NOT NULL,
    pipeline      TEXT    NOT NULL,
    cluster_id    TEXT    NOT NULL,
    topic_id      TEXT    NOT NULL,
    routing_hash  BIGINT  NOT NULL,
    owner         TEXT,
    epoch         BIGINT  NOT NULL DEFAULT 0,
    start_offset  BIGINT  NOT NULL,
    next_offset   BIGINT  NOT NULL,
    -- The last committed record and a hash of it: read again at a claim, it proves that the log is the same.
    anchor_offset BIGINT,
    anchor_hash   BIGINT,
    rows          BIGINT  NOT NULL DEFAULT 0,
    dead          BIGINT  NOT NULL DEFAULT 0,
    skipped       BIGINT  NOT NULL DEFAULT 0,
    other         BIGINT  NOT NULL DEFAULT 0,
    -- Offsets without a record: transaction markers, aborted records, compaction, accepted gaps.
    holes         BIGINT  NOT NULL DEFAULT 0,
    progress_at   TIMESTAMPTZ,
    -- Why the owner does not read this partition, for people; null while it does.
    stopped       TEXT,
    PRIMARY KEY (topic, partition, target),
    CONSTRAINT ledger_counts_every_offset
        CHECK (next_offset - start_offset = rows + dead + skipped + other + holes),
    CONSTRAINT ledger_anchor_is_committed CHECK (anchor_offset < next_offset)
) WITH (
    fillfactor = 30,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 10000
);

-- Which table had the target's name at the last move, and since when another one has it than before: a blue/green swap, a
-- table for each month.
ALTER TABLE rowmill.ledger
    ADD COLUMN IF NOT EXISTS table_oid   OID,
    ADD COLUMN IF NOT EXISTS table_since TIMESTAMPTZ;

-- Records that are no rows: each with its original bytes and the reason.
CREATE TABLE IF NOT EXISTS rowmill.dead_letter (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline        TEXT        NOT NULL,
    topic           TEXT        NOT NULL,
    partition       INTEGER     NOT NULL,
    "offset"        BIGINT      NOT NULL,
    target          TEXT        NOT NULL,
    reason          TEXT        NOT NULL,
    message         TEXT        NOT NULL,
    key             BYTEA,
    value           BYTEA,
    header_names    BYTEA[]     NOT NULL,
    header_values   BYTEA[]     NOT NULL,
    kafka_timestamp TIMESTAMPTZ,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS dead_letter_place ON rowmill.dead_letter (topic, partition, "offset");
-- What a person decided about it: 'retried' stored it as rows in settled_tables, in the same transaction; 'discarded' let it be.
ALTER TABLE rowmill.dead_letter
    ADD COLUMN IF NOT EXISTS settled_at     TIMESTAMPTZ,
    ADD COLUMN IF NOT EXISTS settled_as     TEXT CHECK (settled_as IN ('retried', 'discarded')),
    ADD COLUMN IF NOT EXISTS settled_tables TEXT[] NOT NULL DEFAULT '{}';
-- How many were written again is a part of every answer's tag (rowmill serve), so it must not cost a look at all of them.
CREATE INDEX IF NOT EXISTS dead_letter_settled ON rowmill.dead_letter (settled_at) WHERE settled_at IS NOT NULL;
-- Of a record that is too large to be kept: how many bytes it has. Its key and value are only beginnings here, its headers are
-- not here, and `message` has the hash of all of it.
ALTER TABLE rowmill.dead_letter
    ADD COLUMN IF NOT EXISTS whole_bytes BIGINT;

-- Ranges that Kafka no longer had and that a person accepted as lost, by name.
CREATE TABLE IF NOT EXISTS rowmill.gap (
    topic       TEXT        NOT NULL,
    partition   INTEGER     NOT NULL,
    target      TEXT        NOT NULL,
    from_offset BIGINT      NOT NULL,
    to_offset   BIGINT      NOT NULL,
    accepted_by TEXT        NOT NULL DEFAULT session_user,
    accepted_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, partition, target, from_offset),
    CHECK (from_offset < to_offset)
);

-- What a writer compiled its rows for. Binary COPY puts the bytes of one type into a column of another without
-- a word, and a part that is not logged would lose its rows in a crash that the ledger outlives; so every batch compares
-- this again before it commits. In plpgsql, because that keeps the plan.
CREATE OR REPLACE FUNCTION rowmill.fingerprint(target_table OID) RETURNS TEXT
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT md5(concat_ws(
            ' ',
            (SELECT string_agg(concat_ws(':', attnum, attname, atttypid, atttypmod, attnotnull), ',' ORDER BY attnum)
             FROM pg_catalog.pg_attribute
             WHERE attrelid = target_table AND attnum > 0 AND NOT attisdropped),
            (SELECT CASE WHEN t.relhassubclass THEN (
                        WITH RECURSIVE parts AS (
                            SELECT t.oid AS part UNION ALL
                            SELECT i.inhrelid FROM parts JOIN pg_catalog.pg_inherits i ON i.inhparent = parts.part)
                        SELECT bool_and(c.relpersistence = 'p') FROM parts JOIN pg_catalog.pg_class c ON c.oid = parts.part)
                    ELSE t.relpersistence = 'p' END
             FROM pg_catalog.pg_class t
             WHERE t.oid = target_table))));
END
$$;

-- A member is alive while its lease has not run out and its session still holds its lock. A lock that a restart of
-- the server took away says nothing about the member, so only the lease counts then. A heartbeat from the future is
-- one from before the server's clock was set back: it would outlast the lease by the whole step.
CREATE OR REPLACE FUNCTION rowmill.alive(the_pipeline TEXT, the_member TEXT) RETURNS BOOLEAN
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM rowmill.member m
        WHERE m.pipeline = the_pipeline AND m.member = the_member
          AND m.heartbeat_at > clock_timestamp() - m.lease
          AND m.heartbeat_at < clock_timestamp() + m.lease
          AND (m.session IS NULL
               OR m.heartbeat_at < pg_postmaster_start_time()
               OR EXISTS (
                   SELECT FROM pg_catalog.pg_locks k
                   WHERE k.locktype = 'advisory' AND k.granted AND k.classid = 1919907693
                     AND k.objid = m.session::BIGINT::OID AND k.objsubid = 2
                     AND k.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())))
    )
$$;

-- REGISTER: inserts the ledger rows that a topic lacks. `partitions` is [{partition, log_start, start}]. A topic that
-- the pipeline does not know begins at `start`; a later partition at its log start; a new table at its siblings' place.
CREATE OR REPLACE FUNCTION rowmill.register(
    the_pipeline TEXT, the_cluster TEXT, the_topic_id TEXT, the_routing BIGINT, the_topic TEXT,
    targets TEXT[], partitions JSONB
) RETURNS INTEGER
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    topic_known BOOLEAN;
    inserted    INTEGER;
BEGIN
    PERFORM pg_advisory_xact_lock(1919907693, hashtext(the_topic));
    topic_known := EXISTS (SELECT FROM rowmill.ledger WHERE topic = the_topic AND pipeline = the_pipeline);
    INSERT INTO rowmill.ledger (topic, partition, target, pipeline, cluster_id, topic_id, routing_hash, start_offset, next_offset)
    SELECT the_topic, place.partition, name, the_pipeline, the_cluster, the_topic_id, the_routing, place.start, place.start
    FROM (
        SELECT p.partition, coalesce(
            (SELECT max(l.next_offset) FROM rowmill.ledger l
             WHERE l.topic = the_topic AND l.partition = p.partition AND l.pipeline = the_pipeline),
            CASE WHEN topic_known THEN p.log_start ELSE p.start END) AS start
        FROM jsonb_to_recordset(partitions) AS p(partition INTEGER, log_start BIGINT, start BIGINT)
    ) AS place, unnest(targets) AS name
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS inserted = ROW_COUNT;
    RETURN inserted;
END
$$;

-- CLAIM: takes all targets of one partition or none. A row that somebody has locked is tried again at the next tick.
CREATE OR REPLACE FUNCTION rowmill.claim(
    me TEXT, the_pipeline TEXT, the_topic TEXT, the_partition INTEGER, the_routing BIGINT, targets TEXT[]
) RETURNS TABLE (target TEXT, epoch BIGINT, next_offset BIGINT, anchor_offset BIGINT, anchor_hash BIGINT, topic_id TEXT)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    free INTEGER;
BEGIN
    SELECT count(*) INTO free FROM (
        SELECT FROM rowmill.ledger l
        WHERE l.topic = the_topic AND l.partition = the_partition AND l.target = ANY (targets)
          AND l.pipeline = the_pipeline AND l.routing_hash = the_routing
          AND (l.owner IS NULL OR l.owner = me OR NOT rowmill.alive(the_pipeline, l.owner))
        ORDER BY l.topic, l.partition, l.target
        FOR UPDATE SKIP LOCKED
    ) AS locked;
    IF free <> cardinality(targets) THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE rowmill.ledger l
        SET owner = me, epoch = l.epoch + 1, stopped = NULL
        WHERE l.topic = the_topic AND l.partition = the_partition AND l.target = ANY (targets)
        RETURNING l.target, l.epoch, l.next_offset, l.anchor_offset, l.anchor_hash, l.topic_id;
END
$$;

-- ADVANCE: the last statement of a batch. Moves every span or raises, and the COMMIT in the same message is then
-- skipped. Owner, epoch and position are all compared: each is the other's backup.
CREATE OR REPLACE FUNCTION rowmill.advance(
    me TEXT, the_target TEXT, target_table OID, expected_fingerprint TEXT, spans JSONB
) RETURNS VOID
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wanted INTEGER := jsonb_array_length(spans);
    moved  INTEGER;
BEGIN
    IF rowmill.fingerprint(target_table) IS DISTINCT FROM expected_fingerprint THEN
        RAISE EXCEPTION 'the definition of table % changed since its rows were encoded', the_target
            USING ERRCODE = 'RM002';
    END IF;
    IF wanted > 1 THEN
        -- Locks in key order, so that two writers of the same rows wait for each other and never deadlock.
        PERFORM FROM rowmill.ledger l
            JOIN jsonb_to_recordset(spans) AS s(topic TEXT, partition INTEGER)
              ON l.topic = s.topic AND l.partition = s.partition AND l.target = the_target
            ORDER BY l.topic, l.partition
            FOR UPDATE OF l;
    END IF;
    UPDATE rowmill.ledger l
    SET next_offset = s.next,
        anchor_offset = s.anchor_offset,
        anchor_hash = s.anchor_hash,
        rows = l.rows + s.rows,
        dead = l.dead + s.dead,
        skipped = l.skipped + s.skipped,
        other = l.other + s.other,
        holes = l.holes + s.holes,
        table_since = CASE WHEN l.table_oid <> target_table THEN clock_timestamp() ELSE l.table_since END,
        table_oid = target_table,
        progress_at = clock_timestamp()
    FROM jsonb_to_recordset(spans) AS s(
        topic TEXT, partition INTEGER, epoch BIGINT, first BIGINT, next BIGINT,
        rows BIGINT, dead BIGINT, skipped BIGINT, other BIGINT, holes BIGINT,
        anchor_offset BIGINT, anchor_hash BIGINT)
    WHERE l.topic = s.topic AND l.partition = s.partition AND l.target = the_target
      AND l.owner = me AND l.epoch = s.epoch AND l.next_offset = s.first;
    GET DIAGNOSTICS moved = ROW_COUNT;
    -- The locks are held now, so it stays as it is until the end.
    IF EXISTS (
        SELECT FROM pg_catalog.pg_class
        WHERE oid IN ('rowmill.ledger'::REGCLASS, 'rowmill.dead_letter'::REGCLASS) AND relpersistence <> 'p') THEN
        RAISE EXCEPTION 'the ledger or its dead letters are UNLOGGED, and a crash of the server would empty them'
            USING ERRCODE = 'RM003', HINT = 'ALTER TABLE rowmill.ledger SET LOGGED; the same for rowmill.dead_letter';
    END IF;
    IF moved <> wanted THEN
        RAISE EXCEPTION 'fenced: % of % spans of table % moved for %', moved, wanted, the_target, me
            USING ERRCODE = 'RM001';
    END IF;
END
$$;

-- STORED: behind the INSERT of rows with a key, in the message that moves the ledger. Raises unless the table took, or has, each
-- of them: a trigger may drop a row without a word.
CREATE OR REPLACE FUNCTION rowmill.stored(the_target TEXT, given BIGINT, expected BIGINT) RETURNS VOID
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF given IS DISTINCT FROM expected THEN
        RAISE EXCEPTION 'table % took % of % rows: a trigger or a rule on it drops rows', the_target, given, expected
            USING ERRCODE = 'RM004';
    END IF;
END
$$;

RESET search_path;

-- EXTEND, for a backfill: outcomes of the records before `start_offset`, in the transaction that holds their rows. Moves it from
-- old_start to new_start, or says that it is elsewhere. Whoever owns the partition goes on above.
CREATE OR REPLACE FUNCTION rowmill.extend(
    the_pipeline TEXT, the_topic TEXT, the_partition INTEGER, the_target TEXT, new_start BIGINT, old_start BIGINT,
    more_rows BIGINT, more_dead BIGINT, more_skipped BIGINT, more_other BIGINT
) RETURNS BOOLEAN
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE rowmill.ledger l
    SET start_offset = new_start,
        rows = l.rows + more_rows,
        dead = l.dead + more_dead,
        skipped = l.skipped + more_skipped,
        other = l.other + more_other,
        holes = l.holes + old_start - new_start - more_rows - more_dead - more_skipped - more_other
    WHERE l.pipeline = the_pipeline AND l.topic = the_topic AND l.partition = the_partition AND l.target = the_target
      AND l.start_offset = old_start AND new_start < old_start;
    RETURN FOUND;
END
$$;
