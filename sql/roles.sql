-- Who may do what. Run it as a superuser in the database of the tables, before `rowmill init` and again after it; running it
-- once more changes nothing. Then give the two that log in a password: ALTER ROLE rowmill_writer PASSWORD '...';
--
-- rowmill_owner   runs `rowmill init` and `rowmill dead-letters`; owns the schema rowmill
-- rowmill_writer  runs `rowmill run` and `rowmill check`: writes rows, moves the ledger, reads nothing that it appended
-- rowmill_reader  a group for people: `rowmill status` and `rowmill verify` (GRANT rowmill_reader TO somebody)
--
-- None of them is called rowmill: a role finds the schema of its own name first, and so our ledger where it means its tables.

-- This runs as a superuser: names without a schema are the server's own, and not what somebody made in public.
SET search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    name      TEXT;
    login     TEXT;
    the_table REGCLASS;
BEGIN
    FOR name, login IN VALUES ('rowmill_owner', 'LOGIN'), ('rowmill_writer', 'LOGIN'), ('rowmill_reader', 'NOLOGIN') LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I %s', name, login);
        END IF;
    END LOOP;
    -- For the schema that `rowmill init` makes.
    EXECUTE format('GRANT CONNECT, CREATE ON DATABASE %I TO rowmill_owner', current_database());
    -- Rows of tables with a key (mode = "upsert", "first" or "add") go through temporary tables; `rowmill verify` makes them again.
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO rowmill_writer, rowmill_reader', current_database());
    -- The built-in tables, if `rowmill init --models` is to make them, stand in public.
    GRANT USAGE, CREATE ON SCHEMA public TO rowmill_owner;
    GRANT USAGE ON SCHEMA public TO rowmill_writer, rowmill_reader;

    IF to_regclass('rowmill.ledger') IS NULL THEN
        RAISE NOTICE 'the schema rowmill is not there yet: run `rowmill init` as rowmill_owner, then this file again';
        RETURN;
    END IF;

    GRANT USAGE ON SCHEMA rowmill TO rowmill_writer, rowmill_reader;
    -- Nobody else calls what moves the ledger.
    REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA rowmill FROM PUBLIC;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rowmill TO rowmill_writer, rowmill_reader;
    GRANT SELECT ON rowmill.version TO rowmill_writer;
    GRANT SELECT, INSERT, UPDATE, DELETE ON rowmill.member TO rowmill_writer;
    GRANT SELECT, INSERT, UPDATE ON rowmill.ledger TO rowmill_writer;
    -- It sets aside and never looks back.
    GRANT INSERT ON rowmill.dead_letter TO rowmill_writer;
    GRANT USAGE ON SEQUENCE rowmill.session TO rowmill_writer;
    GRANT SELECT ON ALL TABLES IN SCHEMA rowmill TO rowmill_reader;

    -- To write a dead letter again, once its table takes it.
    GRANT rowmill_writer TO rowmill_owner;

    -- The tables that are filled: INSERT is all that COPY needs. Add yours, each with these two lines. One with a key needs SELECT and
    -- UPDATE as well, and DELETE where records delete; `rowmill check` says what is missing. One that somebody else made under such a
    -- name may do anything with a row: it is left alone.
    FOR name IN VALUES ('state'), ('metric'), ('log'), ('network_trace'), ('network_ping') LOOP
        the_table := to_regclass(format('public.%I', name));
        CONTINUE WHEN the_table IS NULL;
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
            WHERE c.oid = the_table
              AND (r.rolsuper OR r.rolname = 'rowmill_owner'
                   OR r.oid = (SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database()))) THEN
            RAISE WARNING 'table % was made by somebody else, so nothing is granted on it', the_table;
        ELSE
            EXECUTE format('GRANT INSERT ON public.%I TO rowmill_writer', name);
            EXECUTE format('GRANT SELECT ON public.%I TO rowmill_reader', name);
        END IF;
    END LOOP;
END
$$;

RESET search_path;
