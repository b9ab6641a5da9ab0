"""The engine, the tables, and how a session says whose work it does.

Environment: DATABASE_URL. POOL_SIZE (0): connections that the application keeps for itself; with Bursar in
front it keeps none.
"""

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from uuid import UUID, uuid4

from sqlalchemy import NullPool, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = os.environ.get("DATABASE_URL", "postgresql://app@localhost:6432/app")
POOL_SIZE = int(os.environ.get("POOL_SIZE", "0"))

pool = {"pool_size": POOL_SIZE, "max_overflow": 0} if POOL_SIZE else {"poolclass": NullPool}
engine = create_async_engine(re.sub("^postgres(ql)?:", "postgresql+asyncpg:", URL), **pool)
Session = async_sessionmaker(engine, expire_on_commit=False)

tags: ContextVar[dict[str, str]] = ContextVar("tags", default={})


@event.listens_for(engine.sync_engine, "do_connect")
def tag(dialect, record, arguments, parameters):
    """The whole of what Bursar needs to know: whose work this connection does."""
    parameters["server_settings"] = {f"bursar.{key}": value for key, value in tags.get().items()}


@contextmanager
def tagged(**more: str):
    token = tags.set(tags.get() | more)
    try:
        yield
    finally:
        tags.reset(token)


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    topic: Mapped[str]
    text: Mapped[str]


class ToolRun(Base):
    __tablename__ = "tool_runs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    request_id: Mapped[str]
    tool: Mapped[str]
    answer: Mapped[str]


class LLMRequest(Base):
    """What a question cost. A question without its row is given away."""

    __tablename__ = "llm_requests"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    request_id: Mapped[str]
    model: Mapped[str]
    cost: Mapped[Decimal]
