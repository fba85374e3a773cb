-- The sink names columns after fields. Each record has a path of its own.
ALTER TABLE metric RENAME userid TO token;
ALTER TABLE metric ADD PRIMARY KEY (path);
