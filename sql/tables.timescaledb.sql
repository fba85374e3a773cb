-- The five tables as TimescaleDB hypertables (TimescaleDB 2.13 or later). Run tables.sql first; running this again
-- changes nothing. COPY and rowmill's ledger work on hypertables unchanged.
--
-- A chunk should be small enough that the chunks being written stay in memory: an interval in which about a quarter of
-- the memory's worth of rows arrives. One hour suits tens of thousands of rows a second; at hundreds a second take a
-- day. Change it later with set_chunk_time_interval(); it holds for new chunks.
--
-- if_not_exists and migrate_data make this safe on tables that exist and hold rows, but migrating locks the table for
-- as long as it takes.

CREATE EXTENSION IF NOT EXISTS timescaledb;

SELECT create_hypertable('state', by_range('time', INTERVAL '1 hour'), if_not_exists => TRUE, migrate_data => TRUE);
SELECT create_hypertable('metric', by_range('time', INTERVAL '1 hour'), if_not_exists => TRUE, migrate_data => TRUE);
SELECT create_hypertable('log', by_range('time', INTERVAL '1 hour'), if_not_exists => TRUE, migrate_data => TRUE);
SELECT create_hypertable('network_trace', by_range('time', INTERVAL '1 hour'), if_not_exists => TRUE,
    migrate_data => TRUE);
SELECT create_hypertable('network_ping', by_range('time', INTERVAL '1 hour'), if_not_exists => TRUE,
    migrate_data => TRUE);

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
