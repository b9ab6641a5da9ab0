// A shop for several tenants, over HTTP. Every request logs in, reads, asks a shipping company elsewhere, and reads or
// writes again: most of its time it does nothing with the database.
//
//   GET  /orders   the tenant's orders, and what it costs to ship them
//   POST /orders   {"item": "chair"}: an order and its line in the audit log
//
// Headers: authorization (a token of the table logins), x-request-id.
"use strict";
const { randomUUID } = require("node:crypto");
const http = require("node:http");
const { withQueryTags } = require("@prisma/sqlcommenter-query-tags");
const { prisma, withTenant } = require("./database.js");

/** The whole of what Bursar needs to know: every statement of a request says whose it is. */
function tagged(handler) {
  return (request, response) => {
    const request_id = request.headers["x-request-id"] ?? randomUUID();
    return withQueryTags({ request_id, route: request.url }, () => handler(request, response));
  };
}

const routes = {
  "GET /orders": (db, _, user, ship) => readOrders(db, user, ship),
  "POST /orders": placeOrder,
};

async function readOrders(db, user, ship) {
  const orders = await db.order.findMany({ orderBy: { id: "asc" } });
  const rate = await ship(user);
  return { orders, shipping: rate * (await db.order.count()) };
}

async function placeOrder(db, together, user, ship, { item }) {
  const before = await db.order.count();
  const rate = await ship(user);
  const order = await together(async (tx) => {
    const order = await tx.order.create({ data: { tenantId: user.tenantId, item } });
    await tx.audit.create({ data: { tenantId: user.tenantId, name: user.name, action: `ordered ${item}` } });
    return order;
  });
  return { order, shipping: rate * (before + 1) };
}

/** The server; `ship` asks the shipping company. */
function server(ship) {
  const handle = async (request, response) => {
    const reply = (status, body) => response.writeHead(status).end(JSON.stringify(body));
    const route = routes[`${request.method} ${request.url}`];
    if (!route) return reply(404, {});
    try {
      const body = JSON.parse((await text(request)) || "{}");
      const user = await prisma.login.findUnique({ where: { token: request.headers.authorization ?? "" } });
      if (!user) return reply(401, {});
      reply(200, await withTenant(user.tenantId, (db, together) => route(db, together, user, ship, body)));
    } catch (error) {
      reply(500, { code: error.code, error: error.message.trim().split("\n").at(-1) });
    }
  };
  return http.createServer(tagged(handle));
}

async function text(request) {
  let all = "";
  for await (const piece of request) all += piece;
  return all;
}

module.exports = { server };
