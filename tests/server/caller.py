"""A client without a socket."""

import asyncio
import json


class Caller:
    """A client that speaks ASGI by hand, so that it can leave when it wants, and read when it wants.

    Attributes:
        sent: what it got.
        reads: cleared while it does not read; then the server waits, as it does for a window that is full.
    """

    def __init__(self, path, **body):
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "scheme": "http",
            "server": ("localhost", 80),
        }
        self.body = json.dumps(body).encode()
        self.sent = []
        self.got_piece, self.gone = asyncio.Event(), asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self._asked = False

    async def call(self, here):
        """Ask the application of a site; returns when the answer is over."""
        await here.http._transport.app(self.scope, self.receive, self.send)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body_sent(self):
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def text(self):
        """Of a streamed answer to a prompt, as far as it came."""
        return "".join(json.loads(line)["response"] for line in self.body_sent.splitlines())

    async def receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        await self.reads.wait()
        self.sent.append(message)
        if message.get("more_body"):
            self.got_piece.set()
