"""The smallest service worth putting behind Bursar: notes over HTTP, PostgreSQL through a pool.

It shows the two things an application does for Bursar, and nothing else:

* its own pool is wide and never the bottleneck: connections to Bursar are cheap, and Bursar, not
  the application's pool, decides who gets one of the few backends;
* it says whose work follows, with three SETs after checkout. They are answered without a backend,
  and are legal, meaningless settings on a bare PostgreSQL.

    GET  /notes        the last ten notes
    POST /notes        the body is a note
    GET  /healthz      the process is alive (the database is not asked)

Environment: DATABASE_URL, PORT (8080).
"""

import json
import os
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from psycopg_pool import ConnectionPool

SCHEMA = "CREATE TABLE IF NOT EXISTS notes (id bigserial PRIMARY KEY, text text NOT NULL)"
LONGEST_NOTE = 10_000

pool = ConnectionPool(
    os.environ["DATABASE_URL"],
    min_size=1,
    max_size=100,
    open=False,
)


@contextmanager
def session(tenant, request_id, route):
    """One database session of one HTTP request: tagged, committed, or rolled back on an error."""
    with pool.connection() as connection:
        connection.autocommit = True
        tags = {"tenant": tenant, "request_id": request_id, "route": route}
        for key, value in tags.items():
            # SET takes no parameters; set_config would need a backend.
            literal = value.replace("'", "''")
            connection.execute(f"SET bursar.{key} = '{literal}'")
        connection.autocommit = False
        yield connection


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def session(self, route):
        tenant = self.headers.get("X-Tenant-Id", "public")[:63]
        request_id = self.headers.get("X-Request-Id", str(uuid.uuid4()))[:64]
        return session(tenant, request_id, route)

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, {"status": "ok"})
        if self.path != "/notes":
            return self.answer(404, {"error": "not found"})
        with self.session("GET /notes") as connection:
            rows = connection.execute("SELECT id, text FROM notes ORDER BY id DESC LIMIT 10").fetchall()
        return self.answer(200, [{"id": id_, "text": text} for id_, text in rows])

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        if self.path != "/notes" or not 0 < length <= LONGEST_NOTE:
            self.close_connection = True
            return self.answer(400, {"error": "POST /notes wants a body of 1 to 10000 bytes"})
        text = self.rfile.read(length).decode("utf-8", "replace").replace("\0", "")
        with self.session("POST /notes") as connection:
            (id_,) = connection.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id", (text,)).fetchone()
        return self.answer(201, {"id": id_})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main():
    pool.open(wait=True, timeout=30)
    with session("public", "start-up", "schema") as connection:
        connection.execute(SCHEMA)
    port = int(os.environ.get("PORT", "8080"))
    print(f"listening on {port}", flush=True)
    ThreadingHTTPServer(("", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
