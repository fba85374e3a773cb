-- The five tables as TimescaleDB hypertables (TimescaleDB 2.13 or later). Run tables.sql first; running this again
-- changes nothing. COPY and rowmill's ledger work on hypertables unchanged.
--
-- A chunk should be small enough that the chunks being written stay in memory: an interval in which about a quarter of
-- the memory's worth of rows arrives. One hour suits tens of thousands of rows a second; at hundreds a second take a
-- day. Change it later with set_chunk_time_interval(); it holds for new chunks.
--
-- if_not_exists and migrate_data make this safe on tables that exist and hold rows, but migrating locks the table for
-- as long as it takes.

-- Names without a schema are the server's own, whoever may create what in the schemas of this role's search_path.
SET search_path = pg_catalog, pg_temp;

CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public;

DO $$
DECLARE
    extension OID;
    home      NAME;
    stranger  TEXT;
    name      TEXT;
BEGIN
    SELECT e.oid, n.nspname INTO extension, home
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'timescaledb';
    -- It may be a schema in which others create, too, and theirs would be the better match.
    SELECT p.oid::REGPROCEDURE INTO stranger
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = home AND p.proname IN ('create_hypertable', 'by_range')
      AND NOT EXISTS (
          SELECT FROM pg_depend d
          WHERE d.classid = 'pg_proc'::REGCLASS AND d.objid = p.oid AND d.deptype = 'e' AND d.refobjid = extension);
    IF stranger IS NOT NULL THEN
        RAISE EXCEPTION '% is not of TimescaleDB: find out whose it is, and drop it', stranger;
    END IF;
    FOREACH name IN ARRAY ARRAY['state', 'metric', 'log', 'network_trace', 'network_ping'] LOOP
        EXECUTE format(
            'SELECT %1$I.create_hypertable(%2$L::REGCLASS, %1$I.by_range(''time'', INTERVAL ''1 hour''),
                 if_not_exists => TRUE, migrate_data => TRUE)',
            home, 'public.' || name);
    END LOOP;
END
$$;

RESET search_path;

-- Indexes. create_hypertable has made one on (time DESC) for each table. Every further index is written for every row,
-- so add only what a query needs, and measure the load with it:
--
--   "the latest values of one thing"       CREATE INDEX ON metric (userid, path, time DESC);
--   "everything from one collector"        CREATE INDEX ON metric (source, time DESC);
--   the last hours of a huge plain table   CREATE INDEX ON metric USING brin (time);
--
-- The first also answers "this user's data between two times". A BRIN index is a few pages and costs next to nothing,
-- as long as rows arrive roughly in the order of time. No UNIQUE index is needed against duplicates: rowmill's ledger
-- keeps them out, and a hypertable could enforce one only together with the time column.
--
-- Compression pays from the second day on; rows still arriving for a compressed chunk are slow, so leave a margin:
--
--   ALTER TABLE metric SET (timescaledb.compress, timescaledb.compress_segmentby = 'userid, path',
--       timescaledb.compress_orderby = 'time');
--   SELECT add_compression_policy('metric', INTERVAL '7 days');
--   SELECT add_retention_policy('metric', INTERVAL '1 year');
