"""``GET /api/cluster``: workers, stages and latencies. While nothing is loaded, the configured workers are greeted."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.bus.broker import parse_servers
from ollama_zmq.cluster.state import ClusterState
from ollama_zmq.server.services import services_of
from ollama_zmq.server.streaming import json_response


async def cluster(request: Request) -> Response:
    """Everything that can be seen of the cluster."""
    services = services_of(request)
    servers = parse_servers(services.config.rpc_servers)
    if services.scheduler.is_idle and servers:
        checked: asyncio.Future[ClusterState] = asyncio.wrap_future(services.broker.check_workers(servers))
        return json_response(await asyncio.shield(checked))
    return json_response(await asyncio.to_thread(services.broker.cluster))
