-- Telegraf names columns after fields. Renaming a field would cost it a processor; renaming the column costs nothing.
ALTER TABLE metric RENAME userid TO token;
