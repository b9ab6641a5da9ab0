"""Asks twenty questions within four seconds, more than the pool has room for, and checks that every one of them
is answered and billed.

    python check.py [QUESTIONS]
"""

import asyncio
import logging
import sys
import uuid

import httpx
from sqlalchemy import func, select

from app import COST, app
from database import Base, Document, LLMRequest, Session, ToolRun, engine

# Between two questions, in seconds.
EVERY = 0.2
RUN = uuid.uuid4().hex[:8]


async def ask(client, n):
    """One question; the bill's id, or what went wrong."""
    await asyncio.sleep(n * EVERY)
    reply = await client.post("/questions", json={"topic": "tides"}, headers={"x-request-id": f"{RUN}-{n}"})
    reply.raise_for_status()
    answer = reply.json()
    assert answer["answers"] == ["the moon; the sun", "2 documents mention tides"], answer
    return answer["llm_request_id"]


async def schema():
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    async with Session.begin() as session:
        session.add_all([Document(topic="tides", text="the moon"), Document(topic="tides", text="the sun")])


async def main(questions=20):
    logging.disable(logging.CRITICAL)  # The figures tell.
    await schema()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent", timeout=60) as client:
        bills = [await ask(client, 0)]  # Alone, so that everything is loaded and connected.
        bills += await asyncio.gather(*(ask(client, n) for n in range(1, questions)))
    print(f"{questions} of {questions} questions answered")
    lost = sum(bill is None for bill in bills)
    print(f"{questions - lost} of {questions} questions billed", flush=True)
    if lost:
        sys.exit(1)
    async with Session() as session:
        rows = await session.scalar(select(func.count()).where(LLMRequest.cost == COST))
        runs = await session.scalar(select(func.count()).select_from(ToolRun))
    assert (rows, runs) == (questions, 2 * questions), (rows, runs)
    print("one bill and two tool runs a question")
    await engine.dispose()


asyncio.run(main(*map(int, sys.argv[1:])))
