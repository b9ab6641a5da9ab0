"""The engine, and how a session says whose work it does.

Environment: DATABASE_URL. POOL_SIZE (0): connections that the application keeps for itself. With Bursar in
front it keeps none: a connection costs little there, and who gets a backend is decided in one place.
"""

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import uuid4

from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.orm import sessionmaker

URL = os.environ.get("DATABASE_URL", "postgresql://app@localhost:6432/app")
POOL_SIZE = int(os.environ.get("POOL_SIZE", "0"))
POOL_TIMEOUT = float(os.environ.get("POOL_TIMEOUT", "30"))

pool = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT} if POOL_SIZE else {"poolclass": NullPool}
engine = create_engine(re.sub("^postgres(ql)?:", "postgresql+psycopg:", URL), **pool)
Session = sessionmaker(engine, expire_on_commit=False)

request_id: ContextVar[str] = ContextVar("request_id")


@event.listens_for(engine, "do_connect")
def tag(dialect, record, arguments, parameters):
    """The whole of what Bursar needs to know: these connections belong to one request."""
    if request := request_id.get(None):
        parameters["options"] = f"-c bursar.request_id={request}"


@contextmanager
def request(id_=None):
    """What a web framework's middleware does around each request."""
    token = request_id.set(id_ or uuid4().hex)
    try:
        yield request_id.get()
    finally:
        request_id.reset(token)
