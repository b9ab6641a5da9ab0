"""SQLAlchemy's Core and ORM against the connection string in argv[1]; prints a line for each thing that
works. argv[2] sets this copy of the program off from others, argv[3] is the dialect: psycopg or asyncpg."""

import asyncio
import sys

import sqlalchemy as sa
from sqlalchemy import exc, orm
from sqlalchemy.ext.asyncio import create_async_engine


def ok(what):
    print("ok", what, flush=True)


def core(engine, table):
    with engine.connect() as db:
        assert db.execute(sa.text("select :n + 1"), {"n": 41}).scalar_one() == 42
        db.rollback()
        ok("query")

        with db.begin():
            db.execute(table.insert(), [{"id": n, "note": f"note {n}"} for n in range(1, 101)])
        assert db.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 100
        db.rollback()
        ok("many")

        for n in range(1, 21):  # one text, prepared by the driver
            assert db.execute(sa.select(table.c.note).where(table.c.id == n)).scalar_one() == f"note {n}"
        db.rollback()
        ok("prepared")

        transaction = db.begin()
        db.execute(table.update().where(table.c.id == 1).values(note="gone"))
        try:
            with db.begin_nested():
                db.execute(table.insert().values(id=1, note="twice"))
            raise AssertionError("a duplicate was taken")
        except exc.IntegrityError:
            pass
        assert db.execute(sa.select(table.c.note).where(table.c.id == 1)).scalar_one() == "gone"
        transaction.rollback()
        assert db.execute(sa.select(table.c.note).where(table.c.id == 1)).scalar_one() == "note 1"
        db.rollback()
        ok("savepoint and rollback")

        fifty = db.execution_options(stream_results=True, max_row_buffer=10).execute(sa.select(table.c.id).limit(50))
        assert len(fifty.all()) == 50
        db.rollback()
        ok("stream")


def mapped(engine, table):
    class Note:
        pass

    orm.registry().map_imperatively(Note, table)
    for n in range(5):  # each time a connection of the pool, reset when it was given back
        with orm.Session(engine) as session:
            note = session.get(Note, n + 1)
            note.note = f"orm {n}"
            session.commit()
            session.refresh(note)
            assert note.note == f"orm {n}"
    with orm.Session(engine) as session:
        count = sa.select(sa.func.count()).select_from(table).where(table.c.note.like("orm %"))
        assert session.execute(count).scalar_one() == 5
    ok("orm")


def isolated(engine):
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as db:
        assert db.execute(sa.text("show transaction_isolation")).scalar_one() == "serializable"
        db.rollback()
    with engine.connect() as db:
        assert db.execute(sa.text("show transaction_isolation")).scalar_one() == "read committed"
    ok("isolation")


def everything(engine, copy):
    table = sa.Table(
        "sqlalchemy_t" + copy, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("note", sa.Text)
    )
    table.drop(engine, checkfirst=True)
    table.create(engine)
    core(engine, table)
    mapped(engine, table)
    isolated(engine)
    names = sa.inspect(engine).get_columns("sqlalchemy_t" + copy)
    assert [column["name"] for column in names] == ["id", "note"], names
    ok("reflection")


class Sync:
    """The synchronous face of an asynchronous engine is only to be had within its greenlet."""

    def __init__(self, url):
        self.engine = create_async_engine(url, pool_size=2)

    async def run(self, copy):
        async with self.engine.connect() as db:
            assert (await db.execute(sa.text("select 1"))).scalar_one() == 1
        await self.engine.dispose()
        await sa.util.greenlet_spawn(everything, self.engine.sync_engine, copy)
        await self.engine.dispose()


def main(url, copy="", dialect="psycopg"):
    url = url.replace("postgresql:", f"postgresql+{dialect}:")
    if dialect == "asyncpg":
        asyncio.run(Sync(url).run(copy))
    else:
        engine = sa.create_engine(url, pool_size=2, connect_args={"prepare_threshold": 0})
        everything(engine, copy)
        engine.dispose()


main(*sys.argv[1:])
