"""Provisions fifty users at once, and checks that all of them are complete.

    python check.py [CALLERS]

Behind Bursar it also asserts how many sessions each call opened, and how many of them at once: the test that
the next session too many fails.
"""

import sys
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
from sqlalchemy import func, select

import service
from database import Session, engine, request
from models import Agent, Base, Grant, Member, User

SESSIONS = 26
AT_ONCE = 3
RUN = uuid.uuid4().hex[:8]


def provision(n):
    """One caller; what went wrong, if anything did."""
    with request(f"{RUN}-{n}"):
        try:
            service.provision_user(f"user-{n}@example.com", f"company-{n}")
        except Exception as error:
            return str(error).splitlines()[0]


def complete(callers):
    """Whether everything that belongs to so many users is there, and nothing else."""
    per_user = {User: 1, Grant: len(service.RESOURCES) + 2 * len(service.AGENTS), Agent: len(service.AGENTS), Member: 1}
    with Session() as session:
        counts = {table: session.scalar(select(func.count()).select_from(table)) for table in per_user}
        welcomed = session.scalar(select(func.count()).select_from(User).where(User.welcomed))
    assert counts == {table: count * callers for table, count in per_user.items()}, counts
    assert welcomed == callers


def sessions_counted(callers):
    """What Bursar counted: sessions of each call, and how many of one call at once."""
    url = engine.url.set(drivername="postgresql", database="bursar").render_as_string(hide_password=False)
    sql = "SELECT leases_total, peak_leases FROM bursar.request('{}-{}')"
    with psycopg.connect(url, autocommit=True) as console:
        rows = [console.execute(sql.format(RUN, n)).fetchone() for n in range(callers)]
    return {int(total) for total, _ in rows}, max(int(peak) for _, peak in rows)


def main(callers=50):
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with ThreadPoolExecutor(callers) as threads:
        failures = [error for error in threads.map(provision, range(callers)) if error]
    print(f"{callers - len(failures)} of {callers} calls succeeded", flush=True)
    for error, count in Counter(failures).most_common(3):
        print(f"{count} times: {error}")
    if failures:
        sys.exit(1)
    complete(callers)
    print("every user is complete")
    try:
        totals, at_once = sessions_counted(callers)
    except psycopg.OperationalError:
        print("no Bursar here: sessions are not counted")
        return
    assert totals == {SESSIONS}, totals
    assert at_once <= AT_ONCE, at_once
    print(f"{SESSIONS} sessions a call, at most {AT_ONCE} at once")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
