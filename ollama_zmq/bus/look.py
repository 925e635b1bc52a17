"""A look at workers from outside: who does not answer, and why. Nobody is connected through ZeroMQ or leased."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping

from ollama_zmq.bus.addresses import Resolved
from ollama_zmq.bus.connections import failure_of_probe
from ollama_zmq.bus.probe import Outcome, Probes


def look_at(workers: Mapping[str, Resolved]) -> dict[str, str]:
    """Return why each of *workers* is not there, "" for one that is: every address of each is probed, all at once.

    Takes four seconds at most, the limits of a probe.
    """
    found = {address: where.why for address, where in workers.items()}
    probes, keys = Probes(), dict[str, str]()
    try:
        for address, where in workers.items():
            for endpoint in where.endpoints:
                key = f"{address} {endpoint}"
                keys[key] = address
                probes.start(key, endpoint, time.monotonic())
        greeted = set[str]()
        while keys:
            select.select([probes], [], [], max(min(probes.next_deadline() - time.monotonic(), 1.0), 0.0))
            for probed in probes.advance(time.monotonic()):
                address = keys.pop(probed.key)
                found[address] = failure_of_probe(address, 0, probed).reason
                if probed.outcome is Outcome.GREETED:
                    greeted.add(address)
    finally:
        probes.close()
    return found | dict.fromkeys(greeted, "")
