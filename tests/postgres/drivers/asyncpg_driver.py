"""asyncpg, its statement cache on, against the connection string in argv[1]; prints a line for each thing
that works. argv[2] sets this copy of the program off from others."""

import asyncio
import io
import sys

import asyncpg


def ok(what):
    print("ok", what, flush=True)


async def main(url, copy=""):
    t = "asyncpg_t" + copy
    db = await asyncpg.connect(url)
    assert await db.fetchval("select 1") == 1
    ok("query")

    row = await db.fetchrow("select $1::int + 1, $2::text, $3::bytea", 41, "naïve", b"\0\xff")
    assert tuple(row) == (42, "naïve", b"\0\xff"), row
    ok("parameters")

    await db.execute(f"drop table if exists {t}; create table {t} (id int primary key, note text)")
    async with db.transaction():
        await db.execute(f"insert into {t} values ($1, $2)", 1, "one")
        async with db.transaction():
            await db.execute(f"insert into {t} values ($1, $2)", 2, "two")
    assert await db.fetchval(f"select count(*) from {t}") == 2
    ok("transaction")

    transaction = db.transaction()
    await transaction.start()
    await db.execute(f"insert into {t} values (3, 'three')")
    await transaction.rollback()
    assert await db.fetchval(f"select count(*) from {t}") == 2
    ok("rollback")

    for sql, error in [
        ("select 1/0", asyncpg.DivisionByZeroError),
        (f"insert into {t} values (1)", asyncpg.UniqueViolationError),
        ("selec", asyncpg.PostgresSyntaxError),
    ]:
        try:
            await db.fetch(sql)
            raise AssertionError(f"{sql} succeeded")
        except error:
            pass
        assert await db.fetchval("select 2") == 2
    ok("errors keep the connection")

    rows = [(n, "copied") for n in range(100, 1100)]
    await db.copy_records_to_table(t, records=rows)
    out = io.BytesIO()
    await db.copy_from_table(t, output=out)
    assert out.getvalue().count(b"\n") == 1002
    try:
        await db.copy_to_table(t, source=io.BytesIO(b"not a number\tx\n"))
        raise AssertionError("bad data was taken")
    except asyncpg.InvalidTextRepresentationError:
        pass
    assert await db.fetchval(f"select count(*) from {t}") == 1002
    ok("copy")

    statement = await db.prepare(f"select note from {t} where id = $1")
    for _ in range(8):
        assert await statement.fetchval(1) == "one"
    ok("prepared")

    await db.executemany(f"update {t} set note = $2 where id = $1", [(n, "many") for n in range(100, 200)])
    assert await db.fetchval(f"select count(*) from {t} where note = 'many'") == 100
    ok("many")

    async with db.transaction():
        seen = [r[0] async for r in db.cursor("select generate_series(1, 1000)", prefetch=100)]
    assert len(seen) == 1000
    ok("cursor")

    try:
        await db.execute("select pg_sleep(60)", timeout=0.3)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await db.fetchval("select 3") == 3
    ok("cancel")

    big = await db.fetch("select repeat('x', 1000) from generate_series(1, 2000)")
    assert len(big) == 2000 and all(len(r[0]) == 1000 for r in big)
    assert len(await db.fetchval("select $1::text", "y" * 2_000_000)) == 2_000_000
    ok("big")

    heard = []
    db.add_log_listener(lambda _, notice: heard.append(notice.message))
    await db.execute("do $$ begin raise notice 'hear'; end $$")
    await asyncio.sleep(0)
    assert heard == ["hear"], heard
    ok("notice")

    await db.reset()
    await db.close()

    pool = await asyncpg.create_pool(url, min_size=1, max_size=2)
    values = await asyncio.gather(*(pool.fetchval("select $1::int", n) for n in range(20)))
    assert values == list(range(20))
    await pool.close()
    ok("pool")


asyncio.run(main(*sys.argv[1:]))
