-- Four tenants share the tables; row-level security keeps them apart. Who logs in is looked up before
-- anybody knows the tenant, so that table has none.

DROP TABLE IF EXISTS logins, orders, audits;
CREATE TABLE logins (token text PRIMARY KEY, tenant_id text NOT NULL, name text NOT NULL);
CREATE TABLE orders (id serial PRIMARY KEY, tenant_id text NOT NULL, item text NOT NULL);
CREATE TABLE audits (id serial PRIMARY KEY, tenant_id text NOT NULL, name text NOT NULL, action text NOT NULL);

ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE orders FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON orders USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), ''));
ALTER TABLE audits ENABLE ROW LEVEL SECURITY;
ALTER TABLE audits FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON audits USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), ''));
