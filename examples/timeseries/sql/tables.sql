-- The measurements. rowmill run makes the partitions and drops them; the role that it uses owns the table.
CREATE TABLE sample (
    time BIGINT NOT NULL, -- nanoseconds since 1970
    tag VARCHAR(19) NOT NULL,
    values DOUBLE PRECISION[] NOT NULL CHECK (cardinality(values) = 10)
) PARTITION BY RANGE (time);

-- A thousand probes of it make an answer. It is all that readers need.
CREATE INDEX sample_tag_time ON sample (tag, time);
