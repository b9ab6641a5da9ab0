// The client, how its statements say whose they are, and where their tenant comes from.
//
// Environment: DATABASE_URL. WRAPPER: the way it was, a transaction around each request that sets the tenant.
// POOL_SIZE (500): connections of the application's own pool; with Bursar in front it is no limit.
// MAX_WAIT (30000): how long Prisma waits for one to begin a transaction on, in milliseconds.
"use strict";
const { PrismaPg } = require("@prisma/adapter-pg");
const { PrismaClient } = require("@prisma/client");
const { queryTags, withMergedQueryTags } = require("@prisma/sqlcommenter-query-tags");

const url = process.env.DATABASE_URL ?? "postgresql://app@localhost:6432/app";
const wrapped = Boolean(process.env.WRAPPER);
const max = Number(process.env.POOL_SIZE ?? 500);
const maxWait = Number(process.env.MAX_WAIT ?? 30_000);

const prisma = new PrismaClient({
  adapter: new PrismaPg({ connectionString: url, max }),
  comments: [queryTags()],
  transactionOptions: { maxWait, timeout: 60_000 },
});

/** Runs a handler for a tenant: `handler(db, together)`, where `together` is for writes that belong together. */
function withTenant(tenant, handler) {
  if (wrapped) return inOneTransaction(tenant, handler);
  return withMergedQueryTags({ tenant }, () => handler(prisma, (writes) => prisma.$transaction(writes)));
}

/** The way it was: row-level security needs to know the tenant, so the whole request is one transaction. */
function inOneTransaction(tenant, handler) {
  return prisma.$transaction(async (tx) => {
    await tx.$executeRaw`SELECT set_config('app.tenant_id', ${tenant}, true)`;
    return handler(tx, (writes) => writes(tx));
  });
}

module.exports = { prisma, url, withTenant, wrapped };
