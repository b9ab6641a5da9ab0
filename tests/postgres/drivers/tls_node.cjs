// node-postgres: each line of standard input is a connection to try, of libpq's parameters as name=value
// with tabs between. Prints what becomes of it: tls or plain as Bursar's console sees it, or why it was refused.
"use strict";
const fs = require("node:fs");
const { Client } = require("pg");

// What sslmode says to libpq, as options of Node.js' own TLS.
function ssl({ host, sslmode, sslrootcert, sslcert, sslkey }) {
  if (sslmode === "disable") return false;
  const file = (path) => (path && path !== "/none" ? fs.readFileSync(path) : undefined);
  const options = { ca: file(sslrootcert), cert: file(sslcert), key: file(sslkey), host };
  if (sslmode === "require") options.rejectUnauthorized = false;
  if (sslmode === "verify-ca") options.checkServerIdentity = () => undefined;
  return options;
}

async function attempt(line) {
  const parameters = Object.fromEntries(line.split("\t").map((pair) => pair.split(/=(.*)/s, 2)));
  const { host, port, user, password, dbname, sslnegotiation, channel_binding } = parameters;
  const connect = async (database) => {
    const enableChannelBinding = channel_binding === "require";
    const options = { host, port, user, password, database, sslnegotiation, enableChannelBinding };
    const client = new Client({ ...options, ssl: ssl(parameters), application_name: "asked" });
    client.on("error", () => {});
    await client.connect();
    return client;
  };
  let db, console;
  try {
    db = await connect(dbname);
    if ((await db.query("select 41 + $1::int n", [1])).rows[0].n !== 42) throw new Error("a wrong answer");
    console = await connect("bursar");
    const seen = await console.query(`select tls from bursar.clients where database = '${dbname}'`);
    return seen.rows[0].tls.startsWith("TLSv1_3/TLS13_") ? "tls" : "plain";
  } catch (error) {
    return `refused: ${error.message.split(/\s+/).join(" ")}`;
  } finally {
    for (const client of [db, console]) await client?.end().catch(() => {});
  }
}

(async () => {
  for (const line of fs.readFileSync(0, "utf8").trimEnd().split("\n")) console.log(await attempt(line));
})();
