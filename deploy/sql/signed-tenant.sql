-- Row-level security that believes only what Bursar has signed (docs/row-level-security.md, L2).
--
-- Run it in each database as a role that may create a schema and that applications do not log in as; again, and beside
-- verifier.sql in either order, as the same role. A secret that is set stays. Then:
--
--   SELECT bursar.set_secret('the text of tenant_context.secret');
--
--   CREATE POLICY own ON orders USING (tenant_id = (SELECT bursar.tenant()));
--
-- Here the setting is app.tenant_id; if tenant_context.key says another name, change it in bursar.tenant().
-- A value is good on one backend only, so one that leaks from another is of no use. HMAC-SHA-256 as in RFC 2104,
-- from PostgreSQL's own sha256 (version 11 and later); no extension is needed.

BEGIN;

CREATE SCHEMA IF NOT EXISTS bursar;
GRANT USAGE ON SCHEMA bursar TO PUBLIC;

-- The secret with both pads of HMAC: nobody else's to read.
CREATE TABLE IF NOT EXISTS bursar.secret (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    inner_pad bytea NOT NULL,
    outer_pad bytea NOT NULL
);
ALTER TABLE bursar.secret OWNER TO CURRENT_USER;
REVOKE ALL ON bursar.secret FROM PUBLIC;

CREATE OR REPLACE FUNCTION bursar.set_secret(secret text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    key bytea := convert_to(secret, 'UTF8');
    inner_pad bytea := decode(repeat('36', 64), 'hex');
    outer_pad bytea := decode(repeat('5c', 64), 'hex');
BEGIN
    IF length(key) > 64 THEN
        key := sha256(key);
    END IF;
    FOR i IN 0 .. length(key) - 1 LOOP
        inner_pad := set_byte(inner_pad, i, get_byte(inner_pad, i) # get_byte(key, i));
        outer_pad := set_byte(outer_pad, i, get_byte(outer_pad, i) # get_byte(key, i));
    END LOOP;
    DELETE FROM bursar.secret;
    INSERT INTO bursar.secret VALUES (true, inner_pad, outer_pad);
END $$;
ALTER FUNCTION bursar.set_secret(text) OWNER TO CURRENT_USER;
REVOKE ALL ON FUNCTION bursar.set_secret(text) FROM PUBLIC;

-- The tenant, or NULL if the value is not one that Bursar has signed for this backend.
CREATE OR REPLACE FUNCTION bursar.tenant() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    parts text[] := string_to_array(current_setting('app.tenant_id', true), '|');
    signed bytea;
BEGIN
    IF cardinality(parts) IS DISTINCT FROM 3 OR parts[2] <> pg_backend_pid()::text THEN
        RETURN NULL;
    END IF;
    SELECT sha256(outer_pad || sha256(inner_pad || convert_to(parts[1] || '|' || parts[2], 'UTF8')))
        INTO signed FROM bursar.secret;
    IF encode(signed, 'hex') = parts[3] THEN
        RETURN parts[1];
    END IF;
    RETURN NULL;
END $$;
ALTER FUNCTION bursar.tenant() OWNER TO CURRENT_USER;

COMMIT;
