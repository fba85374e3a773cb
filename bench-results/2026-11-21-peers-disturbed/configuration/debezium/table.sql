-- The sink names columns after fields. A transformation that renames one would cost it time; the column costs nothing.
ALTER TABLE metric RENAME userid TO token;
