"""A service with a session for each request, as FastAPI's dependencies make it easy: opened before the handler,
closed behind the answer, and open all the while the handler waits for somebody else.

    POST /visits    writes, asks another service, reads
    POST /exports   begins an export, and forgets its session

Headers: x-tenant, x-user, x-request-id.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, FastAPI, Request
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from database import Session, Visit, engine, tags

app = FastAPI()


@app.middleware("http")
async def tag_request(request: Request, call_next):
    said = {"tenant": request.headers["x-tenant"], "user_id": request.headers["x-user"], "route": request.url.path}
    request.state.tags = said | {"request_id": request.headers.get("x-request-id") or uuid4().hex}
    token = tags.set(request.state.tags)
    try:
        return await call_next(request)
    finally:
        tags.reset(token)


async def request_session() -> AsyncIterator[AsyncSession]:
    async with engine.connect() as connection, Session(bind=connection) as session:
        yield session


RequestSession = Annotated[AsyncSession, Depends(request_session)]


async def nobody() -> None:
    """The other service; the check puts its own in its place."""


app.state.elsewhere = nobody


@app.post("/visits")
async def visit(request: Request, session: RequestSession) -> dict:
    said = request.state.tags
    session.add(Visit(tenant=said["tenant"], user=said["user_id"], request=said["request_id"]))
    await session.commit()
    elsewhere: Callable[[], Awaitable[None]] = request.app.state.elsewhere
    await elsewhere()
    of_user = await session.scalars(select(Visit.request).where(Visit.user == said["user_id"]).order_by(Visit.id))
    return {"visits": of_user.all()}


# Exports that go on with the next page. Nobody asks for it, and nobody closes them.
exports: dict[str, AsyncSession] = {}


@app.post("/exports")
async def export(request: Request, session: RequestSession) -> dict:
    started = (await session.execute(text("SELECT now()"))).scalar_one()
    rest = exports[request.state.tags["request_id"]] = Session()
    page = await rest.scalars(select(Visit.request).order_by(Visit.id).limit(10))
    return {"started": started, "page": page.all()}
