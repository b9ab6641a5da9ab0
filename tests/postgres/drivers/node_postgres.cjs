// node-postgres against the connection string in argv[2]; prints a line for each thing that works.
// argv[3] sets this copy of the program off from others.
"use strict";
const assert = require("node:assert");
const { Readable, Writable } = require("node:stream");
const { pipeline } = require("node:stream/promises");
const { Client, Pool } = require("pg");
const copy = require("pg-copy-streams");

const ok = (what) => console.log("ok", what);
const rejects = (promise, code) => assert.rejects(promise, (error) => error.code === code);

async function main(url, copyOf = "") {
  const t = `node_t${copyOf}`;
  const db = new Client({ connectionString: url });
  await db.connect();
  const value = async (...query) => Object.values((await db.query(...query)).rows[0])[0];

  assert.strictEqual(await value("select 1"), 1);
  ok("query");

  const { rows } = await db.query("select $1::int + 1 a, $2::text b, $3::bytea c", [41, "naïve", Buffer.from([0, 255])]);
  assert.deepStrictEqual(rows, [{ a: 42, b: "naïve", c: Buffer.from([0, 255]) }]);
  ok("parameters");

  await db.query(`drop table if exists ${t}; create table ${t} (id int primary key, note text)`);
  await db.query("begin");
  await db.query(`insert into ${t} values ($1, $2)`, [1, "one"]);
  await db.query("savepoint a");
  await rejects(db.query(`insert into ${t} values (1)`), "23505");
  await db.query("rollback to a");
  await db.query(`insert into ${t} values ($1, $2)`, [2, "two"]);
  await db.query("commit");
  assert.strictEqual(await value(`select count(*)::int from ${t}`), 2);
  ok("transaction");

  await db.query("begin");
  await db.query(`insert into ${t} values (3, 'three')`);
  await db.query("rollback");
  assert.strictEqual(await value(`select count(*)::int from ${t}`), 2);
  ok("rollback");

  await rejects(db.query("select 1/0"), "22012");
  await rejects(db.query("select $1::int", ["x"]), "22P02");
  await rejects(db.query("selec"), "42601");
  assert.strictEqual(await value("select 2"), 2);
  ok("errors keep the connection");

  const lines = Array.from({ length: 1000 }, (_, n) => `${n + 100}\tcopied\n`);
  await pipeline(Readable.from(lines), db.query(copy.from(`copy ${t} from stdin`)));
  let out = "";
  const sink = new Writable({ write(chunk, _, done) { out += chunk; done(); } });
  await pipeline(db.query(copy.to(`copy ${t} to stdout`)), sink);
  assert.strictEqual(out.split("\n").length - 1, 1002);
  await rejects(pipeline(Readable.from(["not a number\tx\n"]), db.query(copy.from(`copy ${t} from stdin`))), "22P02");
  assert.strictEqual(await value(`select count(*)::int from ${t}`), 1002);
  ok("copy");

  for (let n = 0; n < 8; n++) {
    const note = await value({ name: "by-id", text: `select note from ${t} where id = $1`, values: [1] });
    assert.strictEqual(note, "one");
  }
  ok("prepared");

  const asked = Array.from({ length: 50 }, (_, n) => value("select $1::int", [n]));
  assert.deepStrictEqual(await Promise.all(asked), Array.from({ length: 50 }, (_, n) => n));
  ok("queued");

  const sleeper = new Client({ connectionString: url });
  await sleeper.connect();
  const sleep = rejects(sleeper.query("select pg_sleep(60)"), "57014");
  await new Promise((done) => setTimeout(done, 300));
  const canceller = new Client({ connectionString: url });
  canceller.cancel(sleeper, sleeper.activeQuery ?? sleeper._activeQuery);
  await sleep;
  assert.strictEqual((await sleeper.query("select 3 n")).rows[0].n, 3);
  await sleeper.end();
  ok("cancel");

  const big = await db.query("select repeat('x', 1000) r from generate_series(1, 2000)");
  assert.ok(big.rows.length === 2000 && big.rows.every((row) => row.r.length === 1000));
  assert.strictEqual((await value("select $1::text", ["y".repeat(2_000_000)])).length, 2_000_000);
  ok("big");

  const heard = [];
  db.on("notice", (notice) => heard.push(notice.message));
  await db.query("do $$ begin raise notice 'hear'; end $$");
  assert.deepStrictEqual(heard, ["hear"]);
  ok("notice");
  await db.end();

  const pool = new Pool({ connectionString: url, max: 2 });
  const pooled = await Promise.all(Array.from({ length: 20 }, (_, n) => pool.query("select $1::int n", [n])));
  assert.deepStrictEqual(pooled.map((result) => result.rows[0].n), Array.from({ length: 20 }, (_, n) => n));
  await pool.end();
  ok("pool");
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
