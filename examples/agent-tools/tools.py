"""What the agent can do. Each tool has a session of its own, and a transaction that is open while it thinks:
what it reads and what it reports belong together."""

import asyncio
import os

from sqlalchemy import func, select

from database import Document, Session, ToolRun

# Stands for a call of a language model or somebody's API.
THINKING = float(os.environ.get("THINKING", "1.25"))


async def search_documents(request_id: str, topic: str) -> str:
    async with Session.begin() as session:
        found = await session.scalars(select(Document.text).where(Document.topic == topic).limit(3))
        answer = await think("; ".join(found))
        session.add(ToolRun(request_id=request_id, tool="search_documents", answer=answer))
        return answer


async def count_mentions(request_id: str, topic: str) -> str:
    async with Session.begin() as session:
        count = await session.scalar(select(func.count()).where(Document.topic == topic))
        answer = await think(f"{count} documents mention {topic}")
        session.add(ToolRun(request_id=request_id, tool="count_mentions", answer=answer))
        return answer


async def think(about: str) -> str:
    await asyncio.sleep(THINKING)
    return about or "nothing found"
