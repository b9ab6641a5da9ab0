"""A hundred sessions at once, ten times, each its own; and one that a handler forgets.

    python check.py [SESSIONS]
"""

import asyncio
import sys
import uuid
from collections import Counter

import httpx
import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app import app, exports
from database import Base, Session, engine, tags

WAVES = 10
BACKENDS = 20
TENANTS = ["acme", "globex", "initech", "umbrella", "hooli"]
RUN = uuid.uuid4().hex[:8]


class Elsewhere:
    """The other service: it answers when all requests of a wave have asked, or failed."""

    def __init__(self, requests):
        self.expected, self.everybody, self.answer = requests, asyncio.Event(), asyncio.Event()

    def arrived(self):
        self.expected -= 1
        if self.expected == 0:
            self.everybody.set()

    async def __call__(self):
        self.arrived()
        await self.answer.wait()


def headers(id_, n):
    return {"x-request-id": id_, "x-tenant": TENANTS[n % len(TENANTS)], "x-user": f"{RUN}-user-{n}"}


async def visit(client, wave, n, elsewhere):
    """One request; what went wrong, if anything did."""
    try:
        reply = await client.post("/visits", headers=headers(f"{RUN}-{wave}-{n}", n))
    except Exception as error:
        elsewhere.arrived()
        return str(error).splitlines()[0].rsplit("FATAL:", 1)[-1].strip()
    assert reply.json() == {"visits": [f"{RUN}-{wave}-{n}" for wave in range(wave + 1)]}, reply.text


async def console(sql):
    """What Bursar knows, in its own SQL."""
    url = engine.url.set(drivername="postgresql", database="bursar").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as bursar:
        return await (await bursar.execute(sql)).fetchall()


async def backends():
    sql = f"SELECT remote_pid FROM bursar.servers WHERE database = '{engine.url.database}'"
    return {pid for (pid,) in await console(sql)}


async def waves(client, sessions):
    opened = set()
    for wave in range(WAVES):
        elsewhere = app.state.elsewhere = Elsewhere(sessions)
        requests = [asyncio.create_task(visit(client, wave, n, elsewhere)) for n in range(sessions)]
        await elsewhere.everybody.wait()
        if wave == 0 and not any(task.done() for task in requests):
            clients = await console("SELECT count(*) FROM bursar.clients WHERE database <> 'bursar'")
            print(f"{clients[0][0]} sessions at once")
        elsewhere.answer.set()
        failures = [failure for failure in await asyncio.gather(*requests) if failure]
        if failures:
            print(f"{sessions - len(failures)} of {sessions} requests served")
            for error, count in Counter(failures).most_common(3):
                print(f"{count} times: {error}")
            sys.exit(1)
        opened = opened or await backends()
        assert await backends() == opened
    assert len(opened) <= BACKENDS, opened
    print(f"{WAVES} times {sessions} requests served")
    print(f"at most {BACKENDS} backends, and none that is new after the first time")
    rows = await console("SELECT id, tenant, user_id, route, leases_total, peak_leases FROM bursar.requests")
    expected = [headers(f"{RUN}-{WAVES - 1}-{n}", n).values() for n in range(sessions)]
    assert {(*told, "/visits", 2, 1) for told in expected} <= set(rows), rows
    print("each is known by its tenant, user and route, with two transactions, one at a time")


async def warm_up():
    """As many transactions at once as there are backends, so that all of them are open. No two of them begin
    alike: of work that is known to take long, Bursar lets no more in than leaves a tenth of the pool to the rest."""
    everybody = asyncio.Barrier(BACKENDS)

    async def one(n):
        tags.set({"tenant": TENANTS[n % len(TENANTS)]})
        async with Session.begin() as session:
            await session.execute(text(f"SELECT 1 AS of_{n}"))
            await everybody.wait()

    await asyncio.gather(*(one(n) for n in range(BACKENDS)))


async def leak(client):
    """A handler forgets its session; Bursar says whose it was, and takes back its backend, not its connection."""
    await client.post("/exports", headers=headers(f"{RUN}-export", 1))
    (id_, session), = exports.items()
    sql = f"SELECT class, action, outcome, tenant, route FROM bursar.leaks WHERE request = '{id_}' AND class = 'leaked'"
    while not (found := await console(sql)) or found[0][2] == "open":
        await asyncio.sleep(0.05)
    assert found == [("leaked", "soft_abort", "reclaimed", "globex", "/exports")], found
    print("a forgotten session was found:", *found[0])
    connection = (await (await session.connection()).get_raw_connection()).driver_connection
    try:
        await session.execute(text("SELECT 1"))
        raise AssertionError("its transaction goes on")
    except DBAPIError as error:
        assert error.orig.sqlstate == "25P03", error
    await connection.rollback()
    assert await (await connection.execute("SELECT 1")).fetchone() == (1,)
    await session.close()
    print("its connection lives on")


async def main(sessions=100):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://notes", timeout=60) as client:
        await warm_up()
        try:
            await waves(client, sessions)
            await leak(client)
        except psycopg.OperationalError as error:
            sys.exit(f"no Bursar here to ask: {error}")
    await engine.dispose()


asyncio.run(main(*map(int, sys.argv[1:])))
