"""``GET /api/cluster``: workers, models and latencies. To look connects nobody and takes no lease.

``POST /api/cluster/plan``: what loading a model would do, for every sensible choice of workers.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.bus.addresses import parse_servers
from ollama_zmq.bus.loads import LoadRequest
from ollama_zmq.cluster.state import DryRun
from ollama_zmq.errors import RequestError
from ollama_zmq.server.facts import facts_of
from ollama_zmq.server.inference import load_of
from ollama_zmq.server.schema.models import PlanRequest
from ollama_zmq.server.services import body_as, services_of
from ollama_zmq.server.streaming import json_response
from ollama_zmq.store.stored_model import StoredModel


async def cluster(request: Request) -> Response:
    """Everything that can be seen of the cluster."""
    services = services_of(request)
    listed = parse_servers(services.config.rpc_servers)
    return json_response(await asyncio.to_thread(services.broker.cluster, listed))


async def plan(request: Request) -> Response:
    """Layers, bytes and predicted speeds; nothing is loaded."""
    services, asked = services_of(request), await body_as(request, PlanRequest)
    if not asked.model_name:
        raise RequestError("model is required")

    def load(model: StoredModel) -> LoadRequest:
        return load_of(services, model, facts_of(model), asked.options)[1]

    wanted = await asyncio.to_thread(services.store.read, asked.model_name, load)
    replaces = services.scheduler.loaded_from(wanted.path)
    idle, busy = services.scheduler.could_go_for(wanted.path)
    planning = services.broker.plan(wanted, replaces=replaces, idle=idle, busy=busy)
    planned: asyncio.Future[DryRun] = asyncio.wrap_future(planning)
    return json_response(await asyncio.shield(planned))
