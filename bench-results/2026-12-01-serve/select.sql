\set id random(1, 100000)
SELECT balance FROM answer WHERE id = :id;
