"""Connections are accepted one at a time, and no more than there are files for: the rest waits in the kernel's queue.

An event loop of its own accord accepts all that wait before the first of them is counted, and resets, without words,
those for which the process has no file left.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import structlog

log = structlog.get_logger()

ROOM_S = 0.02  # how often to look for room
RETRY_S = 1.0  # after a failure, which is most often that files are used up all the same


async def accept_connections(
    listener: socket.socket, create: Callable[[], asyncio.Protocol], has_room: Callable[[], bool]
) -> None:
    """Give each client of *listener* a protocol that *create* makes, while ``has_room()``, until cancelled."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    while True:
        while not has_room():
            await asyncio.sleep(ROOM_S)
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError as error:
            log.warning("connection.not_accepted", reason=error.strerror or str(error))
            await asyncio.sleep(RETRY_S)
            continue
        try:
            await loop.connect_accepted_socket(create, client)
        except OSError:  # the client has left
            client.close()
