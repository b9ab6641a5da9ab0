"""The engine, the table, and how a session says whose it is.

Environment: DATABASE_URL. The application's pool has no limit: with Bursar in front a connection is cheap, and who
gets a backend is decided in one place.
"""

import os
import re
from contextvars import ContextVar

from sqlalchemy import event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = os.environ.get("DATABASE_URL", "postgresql://app@localhost:6432/app")

engine = create_async_engine(re.sub("^postgres(ql)?:", "postgresql+psycopg:", URL), pool_size=100, max_overflow=-1)
Session = async_sessionmaker(engine, expire_on_commit=False)

tags: ContextVar[dict[str, str]] = ContextVar("tags", default={})
KEYS = ["request_id", "tenant", "user_id", "route"]


@event.listens_for(engine.sync_engine, "checkout")
def tag(connection, record, proxy):
    """A session begins: one message to Bursar, which needs no backend for it. It says all of them, each time: a
    connection of the pool has the last request's."""
    say(connection, {key: tags.get().get(key, "") for key in KEYS})


@event.listens_for(engine.sync_engine, "checkin")
def untag(connection, record):
    """It has ended, and so has its part in the request. A connection that was closed has nothing to say."""
    if connection is not None:
        say(connection, {"request_id": ""})


def say(connection, values: dict[str, str]):
    quoted = {key: value.replace("'", "''") for key, value in values.items()}
    connection.autocommit = True
    connection.cursor().execute("; ".join(f"SET bursar.{key} = '{value}'" for key, value in quoted.items()))
    connection.autocommit = False


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user: Mapped[str]
    request: Mapped[str]
