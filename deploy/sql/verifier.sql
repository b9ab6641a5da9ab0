-- What auth.query asks (docs/authentication.md). Run it as a superuser in the database that auth.query_database
-- names; again, and beside signed-tenant.sql in either order. Then give the role bursar a password, and in
-- config.toml:
--
--   [auth]
--   query = "SELECT * FROM bursar.verifier($1)"
--   query_database = "app"
--   query_user = "bursar"
--   query_password_file = "/run/secrets/bursar"
--
-- The role that asks may read no table: only this function, which answers for one name at a time, and for no
-- superuser, replication role or role that may not log in. Whoever may call it can read verifiers, with which
-- passwords can be guessed offline, so nobody else may.

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'bursar') THEN
        CREATE ROLE bursar LOGIN CONNECTION LIMIT 10;
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS bursar;
-- Whoever owned it could put another function in the place of this one.
ALTER SCHEMA bursar OWNER TO CURRENT_USER;
GRANT USAGE ON SCHEMA bursar TO bursar;

CREATE OR REPLACE FUNCTION bursar.verifier(INOUT name text, OUT verifier text, OUT valid_until timestamptz)
RETURNS SETOF record
LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT rolname::text, rolpassword, rolvaliduntil
    FROM pg_catalog.pg_authid
    WHERE rolname::text = name AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
$$;

-- One that was there keeps its owner, as whom it runs.
ALTER FUNCTION bursar.verifier(text) OWNER TO CURRENT_USER;
REVOKE ALL ON FUNCTION bursar.verifier(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION bursar.verifier(text) TO bursar;

COMMIT;
