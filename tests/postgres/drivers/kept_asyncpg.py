"""asyncpg's pool against the connection string in argv[1]: what Bursar ends for a budget is an error of the
transaction, and the pool keeps its connection. Prints a line for each."""

import asyncio
import sys

import asyncpg


async def idle(db, _url):
    while True:
        await db.fetchval("select 1")
        await asyncio.sleep(0.3)


async def old(db, _url):
    while True:
        await db.fetchval("select 1")
        await asyncio.sleep(0.02)


async def slow(db, _url):
    await db.fetchval("select pg_sleep(60)")


async def own_row(db, url):
    outer = await asyncpg.connect(url)
    try:
        await outer.execute("set bursar.request_id = 'call'")
        async with outer.transaction():
            await outer.execute("update kept set n = 1")
            await db.execute("set bursar.request_id = 'call'")
            await db.execute("update kept set n = 2")
    finally:
        await outer.close()


async def main(url):
    work = [("/idle", "25P03", idle), ("/old", "25P04", old), ("/slow", "57014", slow), ("/row", "40P01", own_row)]
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as db:
            pid = db.get_server_pid()
        for route, code, part in work:
            async with pool.acquire() as db:
                await db.execute(f"set bursar.route = '{route}'")
                try:
                    async with db.transaction():
                        await part(db, url)
                except asyncpg.PostgresError as error:
                    assert error.sqlstate == code, repr(error)
            async with pool.acquire() as db:
                assert await db.fetchval("select 1") == 1
                assert db.get_server_pid() == pid, code
            print("ok asyncpg", code, flush=True)


asyncio.run(main(sys.argv[1]))
