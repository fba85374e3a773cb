"""What one would write by hand instead of an endpoint: FastAPI on uvicorn, with asyncpg's pool and its prepared statements."""

import csv
import io
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

# As many as rowmill serve has in the bench.
SESSIONS = int(os.environ.get("SESSIONS", "8"))
# Rows that a cursor brings at once.
PREFETCH = 1000


@asynccontextmanager
async def pool_of(app):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=SESSIONS, max_size=SESSIONS) as app.state.pool:
        yield


app = FastAPI(lifespan=pool_of)


@app.get("/answer/{number}")
async def answer(number: int):
    row = await app.state.pool.fetchrow("SELECT balance FROM answer WHERE id = $1", number)
    if row is None:
        raise HTTPException(404)
    return {"balance": row["balance"]}


@app.get("/rows/{n}.csv")
async def rows(n: int):
    async def lines():
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["id", "balance", "word", "at"])
        async with app.state.pool.acquire() as session, session.transaction():
            sql = "SELECT i AS id, i % 1000 AS balance, md5(i::text) AS word, now() AS at FROM generate_series(1, $1::int8) AS i"
            async for row in session.cursor(sql, n, prefetch=PREFETCH):
                writer.writerow(row.values())
                if text.tell() > 65536:
                    yield text.getvalue()
                    text.seek(0)
                    text.truncate()
        yield text.getvalue()

    return StreamingResponse(lines(), media_type="text/csv")
