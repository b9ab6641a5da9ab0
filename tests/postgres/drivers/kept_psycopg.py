"""psycopg and SQLAlchemy's pool over it against the connection string in argv[1]: what Bursar ends for a
budget is an error of the transaction, and the connection goes on. Prints a line for each."""

import sys
import time

import psycopg
import sqlalchemy as sa
from sqlalchemy import exc


def idle(run, _url):
    while True:
        run("select 1")
        time.sleep(0.3)


def old(run, _url):
    while True:
        run("select 1")
        time.sleep(0.02)


def slow(run, _url):
    run("select pg_sleep(60)")


def own_row(run, url):
    with psycopg.connect(url) as outer:
        outer.execute("set bursar.request_id = 'call'")
        outer.execute("update kept set n = 1")
        run("set bursar.request_id = 'call'")
        run("update kept set n = 2")


WORK = [("/idle", "25P03", idle), ("/old", "25P04", old), ("/slow", "57014", slow), ("/row", "40P01", own_row)]


def plain(url):
    with psycopg.connect(url) as db:
        pid = db.info.backend_pid
        for route, code, work in WORK:
            db.execute(f"set bursar.route = '{route}'")
            db.commit()
            try:
                work(db.execute, url)
            except psycopg.Error as error:
                assert error.sqlstate == code, error
            assert not db.closed
            db.rollback()
            assert db.execute("select 1").fetchone() == (1,)
            db.commit()
            assert db.info.backend_pid == pid
            print("ok psycopg", code, flush=True)


def pooled(url):
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=1, max_overflow=0)
    opened, given_up = [], []
    sa.event.listen(engine, "connect", lambda *_: opened.append(1))
    sa.event.listen(engine.pool, "invalidate", lambda *_: given_up.append(1))
    for route, code, work in WORK:
        with engine.connect() as db:
            db.execute(sa.text(f"set bursar.route = '{route}'"))
            db.commit()
            try:
                work(lambda sql: db.execute(sa.text(sql)), url)
            except exc.DBAPIError as error:
                assert error.orig.sqlstate == code, error
                assert not error.connection_invalidated
        with engine.connect() as db:
            assert db.execute(sa.text("select 1")).scalar_one() == 1
        assert (len(opened), len(given_up)) == (1, 0), code
        print("ok sqlalchemy", code, flush=True)


plain(sys.argv[1])
pooled(sys.argv[1])
