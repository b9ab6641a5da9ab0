"""psycopg 3 against the connection string in argv[1]; prints a line for each thing that works.

argv[2] sets this copy of the program off from others, argv[3] is prepare_threshold."""

import sys
import threading
import time

import psycopg


def ok(what):
    print("ok", what, flush=True)


def main(url, copy="", threshold="5"):
    t = "psycopg_t" + copy
    with psycopg.connect(url, autocommit=True, prepare_threshold=int(threshold)) as db:
        assert db.execute("select 1").fetchone() == (1,)
        ok("query")

        row = db.execute("select %s::int + 1, %s::text, %s::bytea", (41, "naïve", b"\0\xff")).fetchone()
        assert row == (42, "naïve", b"\0\xff"), row
        ok("parameters")

        db.execute(f"drop table if exists {t}")
        db.execute(f"create table {t} (id int primary key, note text)")
        with db.transaction():
            db.execute(f"insert into {t} values (1, 'one')")
            with db.transaction():
                db.execute(f"insert into {t} values (2, 'two')")
        assert db.execute(f"select count(*) from {t}").fetchone() == (2,)
        ok("transaction")

        try:
            with db.transaction():
                db.execute(f"insert into {t} values (3, 'three')")
                raise psycopg.Rollback
        except psycopg.Rollback:
            pass
        assert db.execute(f"select count(*) from {t}").fetchone() == (2,)
        ok("rollback")

        for sql, state in [("select 1/0", "22012"), (f"insert into {t} values (1)", "23505")]:
            try:
                db.execute(sql)
                raise AssertionError(f"{sql} succeeded")
            except psycopg.Error as error:
                assert error.sqlstate == state, error
            assert db.execute("select 2").fetchone() == (2,)
        ok("errors keep the connection")

        with db.cursor() as cursor:
            with cursor.copy(f"copy {t} from stdin") as data:
                for n in range(100, 1100):
                    data.write_row((n, "copied"))
            with cursor.copy(f"copy {t} to stdout") as data:
                assert sum(1 for _ in data.rows()) == 1002
            try:
                with cursor.copy(f"copy {t} from stdin") as data:
                    data.write("not a number\tx\n")
                raise AssertionError("bad data was taken")
            except psycopg.errors.InvalidTextRepresentation:
                pass
        assert db.execute(f"select count(*) from {t}").fetchone() == (1002,)
        ok("copy")

        for _ in range(8):  # prepared by the driver after five times
            assert db.execute(f"select note from {t} where id = %s", (1,)).fetchone() == ("one",)
        ok("prepared")

        with db.pipeline():
            results = [db.execute("select %s::int", (n,)) for n in range(50)]
            assert [r.fetchone()[0] for r in results] == list(range(50))
        ok("pipeline")

        with db.transaction(), db.cursor(name="c") as cursor:
            cursor.itersize = 100
            cursor.execute("select generate_series(1, 1000)")
            assert sum(1 for _ in cursor) == 1000
        ok("cursor")

        # Where psycopg prepares, a cancel may come between its two requests, when nothing runs.
        over = threading.Event()

        def cancel_until_over():
            while not over.wait(0.3):
                db.cancel_safe()

        canceller = threading.Thread(target=cancel_until_over)
        canceller.start()
        before = time.monotonic()
        try:
            db.execute("select pg_sleep(60)")
            raise AssertionError("not cancelled")
        except psycopg.errors.QueryCanceled:
            assert time.monotonic() - before < 30
        finally:
            over.set()
            canceller.join()
        assert db.execute("select 3").fetchone() == (3,)
        ok("cancel")

        big = db.execute("select repeat('x', 1000) from generate_series(1, 2000)").fetchall()
        assert len(big) == 2000 and all(len(r[0]) == 1000 for r in big)
        assert len(db.execute("select %s", ("y" * 2_000_000,)).fetchone()[0]) == 2_000_000
        ok("big")

        heard = []
        db.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        db.execute("do $$ begin raise notice 'hear'; end $$")
        assert heard == ["hear"], heard
        ok("notice")


main(*sys.argv[1:])
