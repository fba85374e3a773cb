-- The sink names columns after fields, which are called so once they are flattened. Renaming them costs faucet time;
-- renaming a column costs nothing. Only `path` is asked for by name, so there the field is renamed. faucet's `timestamp`
-- is the record's, in milliseconds.
ALTER TABLE metric RENAME userid TO value__token;
ALTER TABLE metric RENAME source TO value__source;
ALTER TABLE metric RENAME value TO value__value;
ALTER TABLE metric RENAME time TO value__time;
ALTER TABLE metric RENAME timestamp TO written;
