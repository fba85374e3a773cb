-- Each record has a path of its own.
ALTER TABLE metric ADD PRIMARY KEY (path);
