"""A service over one bundle: texts with a tenant for each row, answered in mixed batches.

It needs the runtime alone, never torch. It has no authentication: it listens to this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adexport_runtime import (
    AdapterError,
    AdexportError,
    BankFullError,
    Code,
    Engine,
    Problem,
    RequestError,
    UnknownAdapterError,
)
from adexport_runtime.names import check_name

sys.path.insert(0, str(Path(__file__).resolve().parent))
from batching import Answer, Batcher, Row

#: bytes of a body; rows of a request, and of a batch
BODY, ROWS = 64 * 1024, 32
BUSY = {Code.SESSION_FULL, Code.CLOSED}


class Asked(BaseModel):
    """The rows of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)
    rows: Annotated[list[Row], Field(min_length=1, max_length=ROWS)]


class Answered(BaseModel):
    """The rows of an answer, in the order of the request."""

    rows: list[Answer]


class SmallBodies:
    """Refuses bodies of more than ``BODY`` bytes before they are read whole."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before ``app``."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes as they come, whatever the headers say."""
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > BODY:
                raise HTTPException(413, f"a body of more than {BODY} bytes")
            return message

        await self._app(scope, counted, send)


def make_app(engine: Engine, adapters: Path, batcher: Batcher) -> FastAPI:
    """The service; it closes the batcher when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="adexport", lifespan=lifespan)
    app.add_middleware(SmallBodies)
    app.add_exception_handler(AdexportError, refused)
    app.add_exception_handler(RequestValidationError, unfit)
    app.add_exception_handler(StarletteHTTPException, unserved)
    app.add_exception_handler(Exception, failed)

    @app.post("/v1/classify")
    async def classify(asked: Asked) -> Answered:
        return Answered(rows=await asyncio.wrap_future(batcher.submit(asked.rows)))

    @app.get("/v1/tenants")
    async def tenants() -> dict[str, list[str]]:
        return {"tenants": engine.adapters()}

    @app.put("/v1/tenants/{name}")
    async def bind(name: str) -> dict[str, str]:
        path = adapters / f"{check_name(name)}.safetensors"
        if not path.is_file():
            problem = Problem(Code.ABSENT, name, expected="an adapter that the operator has put there")
            raise UnknownAdapterError(f"{name} is not bound", problem)
        await asyncio.to_thread(engine.bind, name, path)
        return {"bound": name}

    @app.delete("/v1/tenants/{name}")
    async def unbind(name: str) -> dict[str, str]:
        await asyncio.to_thread(engine.unbind, name)
        return {"unbound": name}

    @app.get("/healthz")
    async def health(response: Response) -> dict[str, str | int]:
        response.status_code = 200 if batcher.alive else 503
        status = "ok" if batcher.alive else "ended"
        counts = {"requests": batcher.pending, "batches": batcher.batches}
        return {"status": status, "provider": engine.provider, **counts}

    return app


async def refused(_: Request, error: Exception) -> Response:
    """What adexport refuses, with its problems and codes."""
    assert isinstance(error, AdexportError)
    if isinstance(error, BankFullError) or error.codes & BUSY:
        status = 503
    elif isinstance(error, UnknownAdapterError):
        status = 404
    elif Code.WRONG_BASE in error.codes:
        status = 409
    elif isinstance(error, AdapterError | RequestError) and Code.RUN_FAILED not in error.codes:
        status = 422
    else:
        status = 500
    return told(status, error)


async def unfit(_: Request, error: Exception) -> Response:
    """A body that is not what it should be; the problems say where."""
    assert isinstance(error, RequestValidationError)
    problems = [
        Problem(
            Code.BAD_INPUT,
            ".".join(str(part) for part in found["loc"]),
            got=ascii(found.get("input"))[:80],
            expected=found["msg"],
        )
        for found in error.errors()
    ]
    return told(422, RequestError("the request does not fit", problems))


async def unserved(request: Request, error: Exception) -> Response:
    """No such path, another method, a body that is too large."""
    assert isinstance(error, StarletteHTTPException)
    problem = Problem(Code.BAD_INPUT, f"{request.method} {request.url.path}", got=error.detail)
    return told(error.status_code, RequestError("the request is not served", problem))


def told(status: int, error: AdexportError) -> JSONResponse:
    """What every refusal looks like."""
    plain = error.to_dict()
    body = {"error": plain["error"], "message": str(error), "problems": plain["problems"]}
    return JSONResponse(body, status, {"retry-after": "1"} if status == 503 else None)


async def failed(_: Request, error: Exception) -> Response:
    """A fault of the service, whose details are in its log."""
    message = f"the service failed: {type(error).__name__}"
    return JSONResponse({"error": "InternalError", "message": message, "problems": []}, 500)


def main() -> None:
    """Serve until SIGTERM or SIGINT; what is under way is answered first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--adapters", type=Path, required=True, help="the folder of NAME.safetensors")
    parser.add_argument("--port", type=int, default=8321)
    parser.add_argument("--threads", type=int, default=1, help="of one operator; 0: ONNX Runtime chooses")
    parser.add_argument("--requests", type=int, default=64, help="under way at most")
    parser.add_argument("--wait", type=float, default=3, help="milliseconds that a batch waits for others")
    given = parser.parse_args()
    with Engine.open(given.bundle, threads=given.threads, spin=False) as engine:
        batcher = Batcher(engine, ROWS, given.requests, given.wait / 1000)
        try:
            app = make_app(engine, given.adapters, batcher)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: None)  # uvicorn raises them once more when it has ended
            uvicorn.run(app, host="127.0.0.1", port=given.port, timeout_graceful_shutdown=10)
        finally:
            batcher.close()


if __name__ == "__main__":
    main()
