// node-postgres' pool against the connection string in argv[2]: what Bursar ends for a budget is an error of
// the transaction, and the pool keeps its client. Prints a line for each.
"use strict";
const assert = require("node:assert");
const { Client, Pool } = require("pg");

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function again(db, ms) {
  for (;;) {
    await db.query("select 1");
    await pause(ms);
  }
}

async function ownRow(db, url) {
  const outer = new Client({ connectionString: url });
  await outer.connect();
  try {
    await outer.query("set bursar.request_id = 'call'");
    await outer.query("begin");
    await outer.query("update kept set n = 1");
    await db.query("set bursar.request_id = 'call'");
    await db.query("update kept set n = 2");
  } finally {
    await outer.end();
  }
}

async function main(url) {
  const pool = new Pool({ connectionString: url, max: 1 });
  let opened = 0;
  pool.on("connect", () => (opened += 1));
  pool.on("error", (error) => assert.fail(error));
  const work = [
    ["/idle", "25P03", (db) => again(db, 300)],
    ["/old", "25P04", (db) => again(db, 20)],
    ["/slow", "57014", (db) => db.query("select pg_sleep(60)")],
    ["/row", "40P01", (db) => ownRow(db, url)],
  ];
  for (const [route, code, part] of work) {
    const db = await pool.connect();
    await db.query(`set bursar.route = '${route}'`);
    await db.query("begin");
    await assert.rejects(part(db), (error) => error.code === code);
    await db.query("rollback");
    db.release();
    assert.strictEqual((await pool.query("select 1 n")).rows[0].n, 1);
    assert.strictEqual(opened, 1, code);
    console.log("ok node-postgres", code);
  }
  await pool.end();
}

main(process.argv[2]).catch((error) => {
  console.error(error);
  process.exit(1);
});
