-- The five tables that data collectors fill. Running this again changes nothing.
--
-- userid      whom the record belongs to: looked up from the message's token, never sent by the collector
-- source      the collector that sent it
-- path        what was observed, from the general to the particular: host, rack, sensor
-- time        when the collector observed it
-- timestamp   when the row was written: timestamp - time is the way through Kafka
--
-- There is no primary key and no index: rows are only ever appended, and each index costs a part of the speed.
-- Indexes for the queries that are really asked are yours to add; tables.timescaledb.sql gives advice.

-- Names without a schema are the server's own, whoever may create what in the schemas of this role's search_path.
SET search_path = pg_catalog, pg_temp;

CREATE TABLE IF NOT EXISTS public.state (
    userid    VARCHAR(100) NOT NULL,
    source    VARCHAR(100) NOT NULL,
    path      VARCHAR(200) NOT NULL,
    type      VARCHAR(20) NOT NULL,
    value     VARCHAR(10) NOT NULL,
    time      TIMESTAMPTZ NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL
);

CREATE TABLE IF NOT EXISTS public.metric (
    userid    VARCHAR(100) NOT NULL,
    source    VARCHAR(100) NOT NULL,
    path      VARCHAR(200) NOT NULL,
    value     DOUBLE PRECISION NOT NULL,
    time      TIMESTAMPTZ NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL
);

CREATE TABLE IF NOT EXISTS public.log (
    userid    VARCHAR(100) NOT NULL,
    source    VARCHAR(100) NOT NULL,
    path      VARCHAR(200) NOT NULL,
    type      VARCHAR(20) NOT NULL,
    category  VARCHAR(100) NOT NULL,
    level     VARCHAR(20) NOT NULL,
    message   TEXT NOT NULL,
    time      TIMESTAMPTZ NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL
);

-- One row a hop; the rows of one measurement share the value of trace.
CREATE TABLE IF NOT EXISTS public.network_trace (
    userid    VARCHAR(100) NOT NULL,
    source    VARCHAR(100) NOT NULL,
    path      VARCHAR(200) NOT NULL,
    type      VARCHAR(20) NOT NULL,
    trace     VARCHAR(100) NOT NULL,
    hop       INTEGER NOT NULL,
    host      VARCHAR(200) NOT NULL,
    latency   DOUBLE PRECISION NOT NULL,
    time      TIMESTAMPTZ NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL
);

CREATE TABLE IF NOT EXISTS public.network_ping (
    userid    VARCHAR(100) NOT NULL,
    source    VARCHAR(100) NOT NULL,
    path      VARCHAR(200) NOT NULL,
    type      VARCHAR(20) NOT NULL,
    ping      VARCHAR(100) NOT NULL,
    host      VARCHAR(200) NOT NULL,
    latency   DOUBLE PRECISION NOT NULL,
    time      TIMESTAMPTZ NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL
);

RESET search_path;
