SELECT coalesce(sum(n), 0)::BIGINT FROM metric
