-- What the endpoints beside this read and write.
CREATE TABLE thing (n BIGINT, word TEXT, x DOUBLE PRECISION, at TIMESTAMPTZ);
INSERT INTO thing VALUES
  (1, 'a', 1.5, '2026-03-01 07:08:04+07'),
  (2, NULL, 'NaN', 'infinity'),
  (3, 'say "x", y', '-Infinity', '-infinity'),
  (NULL, '', NULL, NULL);
CREATE TYPE color AS ENUM ('red', 'green');
CREATE TABLE every_type (
  a BOOL, b INT2, c INT4, d INT8, e FLOAT4, f FLOAT8, g NUMERIC, h UUID, i DATE, j TIMESTAMP, k TIMESTAMPTZ, l JSON, m JSONB,
  n TEXT[], o INT8[], p BYTEA, q INET, r INTERVAL, s color, t VARCHAR(5), u INT4RANGE, v "char", w TIME, x MONEY, y XML, z POINT
);
INSERT INTO every_type VALUES (
  TRUE, -32768, 2147483647, -9223372036854775808, 'NaN', 'Infinity', '1e300', '00000000-0000-0000-0000-000000000000', 'infinity',
  '-infinity', '4713-01-01 00:00:00+00 BC', '{"a": [1, null]}', '"text"', ARRAY['a', NULL, 'b,c'], ARRAY[[1, 2], [3, 4]], '\x00ff',
  '::1/64', '1 year 2 days', 'red', 'short', '[1,5)', 'v', '24:00', 12.5, '<a/>', '(1,2)'
), (
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL
);
CREATE TABLE account (
  id INT GENERATED ALWAYS AS IDENTITY, name TEXT UNIQUE, active BOOL, about JSONB, born DATE, score NUMERIC, tags TEXT[]
);
