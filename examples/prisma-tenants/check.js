// Eighty users of four tenants at once, each in the middle of a request, and then what must not be seen.
//
//   node check.js [USERS]
"use strict";
const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const { Client } = require("pg");
const { withQueryTags } = require("@prisma/sqlcommenter-query-tags");
const { server } = require("./app.js");
const { prisma, url, withTenant, wrapped } = require("./database.js");

const TENANTS = ["acme", "globex", "initech", "umbrella"];
const RUN = Math.random().toString(36).slice(2, 10);

/** The shipping company: it answers when everybody has asked, or when it has kept somebody waiting for too long. */
class Shipping {
  constructor(users) {
    this.asking = [];
    this.users = users;
    this.limit = wrapped ? 3_000 : 120_000;
    this.everybody = new Promise((seen) => (this.seen = seen));
  }

  ask() {
    return new Promise((answer) => {
      this.asking.push(answer);
      if (this.asking.length === this.users) this.seen();
      setTimeout(answer, this.limit, 3).unref();
    });
  }

  answer() {
    this.asking.forEach((answer) => answer(3));
  }
}

async function seed(users) {
  const db = new Client({ connectionString: url });
  await db.connect();
  await db.query(fs.readFileSync(path.join(__dirname, "schema.sql"), "utf8"));
  await db.end();
  const logins = Array.from({ length: users }, (_, n) => ({
    token: `${RUN}-${n}`, tenantId: TENANTS[n % TENANTS.length], name: `user ${n}`,
  }));
  await prisma.login.createMany({ data: logins });
  for (const tenantId of TENANTS) {
    const data = Array.from({ length: 5 }, (_, n) => ({ tenantId, item: `${tenantId}'s lamp ${n}` }));
    await withTenant(tenantId, (db) => db.order.createMany({ data }));
  }
  return logins;
}

/** One request of one user; every fifth places an order. */
async function visit(port, login, n) {
  const headers = { authorization: login.token, "x-request-id": login.token };
  const order = n % 5 === 0 ? { method: "POST", body: JSON.stringify({ item: "chair" }) } : {};
  const reply = await fetch(`http://127.0.0.1:${port}/orders`, { headers, ...order });
  const body = await reply.json();
  if (reply.status !== 200) return body;
  for (const row of body.orders ?? [body.order]) assert.strictEqual(row.tenantId, login.tenantId, "a foreign row");
  if (body.orders) assert.ok(body.orders.length >= 5, "a missing row");
}

/** What Bursar knows, in its own SQL. `undefined` where there is no Bursar. */
async function console_(sql) {
  const db = new Client({ connectionString: url.replace(/\/[^/]*$/, "/bursar") });
  try {
    await db.connect();
  } catch (error) {
    if (error.code === "3D000") return undefined;
    throw error;
  }
  const { rows } = await db.query(sql);
  await db.end();
  return rows;
}

async function everybody(logins) {
  const shipping = new Shipping(logins.length);
  const app = server(() => shipping.ask()).listen(0, "127.0.0.1");
  await new Promise((listening) => app.once("listening", listening));
  const visits = Promise.all(logins.map((login, n) => visit(app.address().port, login, n)));
  await Promise.race([shipping.everybody, visits]);
  const held = await console_("SELECT count(*) AS n FROM bursar.leases");
  const asking = shipping.asking.length;
  shipping.answer();
  const failures = (await visits).filter(Boolean);
  console.log(`${logins.length - failures.length} of ${logins.length} users served`);
  for (const { code, error } of failures.slice(0, 1)) console.log(`${failures.length} times: ${code}: ${error}`);
  app.close();
  app.closeAllConnections();
  return { served: failures.length === 0, asking, held: held && Number(held[0].n) };
}

/** Who says another tenant's name, or none, gets none of its rows. */
async function strangers() {
  const forgot = await prisma.order.findMany();
  assert.deepStrictEqual(forgot, [], "a statement without a tenant sees rows");
  const [theirs] = await withTenant("globex", (db) => db.order.findMany({ take: 1 }));
  const seen = await withTenant("acme", (db) => db.order.findUnique({ where: { id: theirs.id } }));
  assert.strictEqual(seen, null, "another tenant's order, by its id");
  const taken = withTenant("acme", (db) => db.order.create({ data: { tenantId: "globex", item: "x" } }));
  await assert.rejects(taken, /42501|row-level security/);
}

/** A request that turns into another tenant's in the middle of its transaction. */
async function turncoat() {
  const turned = withTenant("acme", (_, together) => together(async (tx) => {
    assert.strictEqual(await tx.order.count({ where: { tenantId: "globex" } }), 0);
    return withQueryTags({ tenant: "globex" }, () => tx.order.findMany());
  }));
  await assert.rejects(turned, /42501/);
}

async function main(users = 80) {
  const logins = await seed(Number(users));
  const { served, asking, held } = await everybody(logins);
  if (!served) process.exitCode = 1;
  if (served && !wrapped && held !== undefined) {
    assert.deepStrictEqual({ asking, held }, { asking: logins.length, held: 0 });
    console.log(`${asking} of them at once, and no backend was held`);
  }
  await strangers();
  if (!wrapped) await turncoat();
  console.log("nobody saw another tenant's row");
  await prisma.$disconnect();
}

main(...process.argv.slice(2));
