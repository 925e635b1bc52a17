"""``/api/blobs/:digest``: is it here, and take it. An upload goes to the disk piece by piece and is verified."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ollama_zmq.errors import ModelNotFound
from ollama_zmq.server.errors import RequestCanceled
from ollama_zmq.server.services import services_of

WRITE_BYTES = 1 << 20


async def head(request: Request) -> Response:
    """200 if the blob is here, 404 if not."""
    digest: str = request.path_params["digest"]
    if not await asyncio.to_thread(services_of(request).store.blobs.has, digest):
        raise ModelNotFound(f"blob {digest!r} not found", digest=digest)
    return Response()


async def upload(request: Request) -> Response:
    """201 when the blob was stored, 200 if it was here already; nothing is kept of what does not match its digest."""
    digest: str = request.path_params["digest"]
    blobs = services_of(request).store.blobs
    if await asyncio.to_thread(blobs.has, digest):
        return Response(status_code=200)
    with await asyncio.to_thread(blobs.incoming, digest, _length_of(request)) as incoming:
        pending = bytearray()
        try:
            async for chunk in request.stream():
                pending += chunk
                if len(pending) >= WRITE_BYTES:
                    await asyncio.to_thread(incoming.write, bytes(pending))
                    pending.clear()
        except ClientDisconnect:
            raise RequestCanceled("request canceled") from None
        await asyncio.to_thread(incoming.write, bytes(pending))
        blob = await asyncio.to_thread(incoming.commit)
    return Response(status_code=201 if blob.created else 200)


def _length_of(request: Request) -> int | None:
    """The bytes that are to come, if the client says so."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else None
