"""An agent over HTTP. A question runs two tools at once, and meanwhile what it costs is written down.

    POST /questions   {"topic": "tides"}

Three sessions a question, all of them at the same time: no session is shared between tasks.
"""

import asyncio
import logging
import os
from decimal import Decimal
from uuid import UUID, uuid4

from fastapi import FastAPI, Request
from pydantic import BaseModel

from database import LLMRequest, Session, tagged
from tools import count_mentions, search_documents

# An answer waits this long for its bill, no longer: nobody asks a question to see it billed.
BILLING_LIMIT = float(os.environ.get("BILLING_LIMIT", "2.0"))
COST = Decimal("0.0125")

app = FastAPI()
log = logging.getLogger("agent")


class Question(BaseModel):
    topic: str


class Answer(BaseModel):
    answers: list[str]
    llm_request_id: UUID | None


@app.middleware("http")
async def tag_request(request: Request, call_next):
    request.state.id = request.headers.get("x-request-id") or uuid4().hex
    with tagged(request_id=request.state.id, route=request.url.path):
        return await call_next(request)


@app.post("/questions")
async def ask(question: Question, request: Request) -> Answer:
    *answers, bill = await asyncio.gather(
        search_documents(request.state.id, question.topic),
        count_mentions(request.state.id, question.topic),
        track_request(request.state.id, "small", COST),
    )
    return Answer(answers=answers, llm_request_id=bill)


async def track_request(request_id: str, model: str, cost: Decimal) -> UUID | None:
    """Writes the bill: add, commit, refresh. `None` if the database had no room for it in time."""
    try:
        with tagged(**{"class": "billing"}):
            async with asyncio.timeout(BILLING_LIMIT), Session() as session:
                row = LLMRequest(request_id=request_id, model=model, cost=cost)
                session.add(row)
                await session.commit()
                await session.refresh(row)
                return row.id
    except Exception as error:
        log.warning("no bill for %s: %r", request_id, error)
        return None
