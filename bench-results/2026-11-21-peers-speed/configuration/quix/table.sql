-- The sink names columns after keys. Renaming a key would cost Python time; renaming the column costs nothing.
ALTER TABLE metric RENAME userid TO token;
