"""psycopg: each line of standard input is a connection to try, of libpq's parameters as name=value with
tabs between. Prints what becomes of it: tls or plain as Bursar's console sees it, or why it was refused."""

import sys

import psycopg

for line in sys.stdin:
    parameters = dict(pair.split("=", 1) for pair in line.rstrip("\n").split("\t"))
    try:
        with psycopg.connect(**parameters, application_name="asked", connect_timeout=20) as db:
            assert db.execute("select 41 + %s", [1]).fetchone() == (42,)
            with psycopg.connect(**{**parameters, "dbname": "bursar"}, autocommit=True) as console:
                row = console.execute("select tls from bursar.clients where application_name = 'asked'")
                print("tls" if row.fetchone()[0].startswith("TLSv1_3/TLS13_") else "plain")
    except psycopg.OperationalError as error:
        print("refused:", " ".join(str(error).split()))
