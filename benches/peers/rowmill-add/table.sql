-- A row for each user: how many records, the least and the greatest value.
DROP TABLE metric;
CREATE TABLE metric (userid VARCHAR(100) COLLATE "C" PRIMARY KEY, n BIGINT NOT NULL, low DOUBLE PRECISION, high DOUBLE PRECISION)
    WITH (fillfactor = 70);
