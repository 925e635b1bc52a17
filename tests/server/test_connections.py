"""What a connection may send, how long it may take, and what it hears when it does not keep to it.

The protocol is driven by hand: a transport that records, a clock that stands where the test puts it.
"""

import asyncio
import json

import pytest
from uvicorn.server import ServerState

from ollama_zmq.server import connections
from ollama_zmq.server.connections import (
    BODY_BYTES,
    BODY_S,
    HEAD_S,
    MAX_HEAD_BYTES,
    REFUSAL_S,
    ConnectionPhase,
    HttpConnection,
)
from ollama_zmq.server.run import http_settings

HEAD = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n"


class Transport(asyncio.Transport):
    """Records what is written."""

    def __init__(self):
        super().__init__()
        self.sent, self.closed, self.paused = b"", False, False

    def write(self, data):
        assert not self.closed
        self.sent += data

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    @property
    def status(self):
        return int(self.sent.split()[1]) if self.sent else None

    @property
    def error(self):
        return json.loads(self.sent.partition(b"\r\n\r\n")[2])["error"]


class World:
    """A server with the application *app*; ``now`` is what its clock shows."""

    def __init__(self, app, limit=None):
        self.state, self.now = ServerState(), 1000.0
        self.settings = http_settings(app)
        self.settings.load()
        self.settings.limit_concurrency = limit
        self.loop = asyncio.get_running_loop()

    def connect(self):
        connection = HttpConnection(self.settings, self.state, {}, self)
        connection.connection_made(Transport())
        return connection

    def expire(self):
        for connection in tuple(self.state.connections):
            connection.expire(self.now)

    # of an event loop, what the protocol uses
    def time(self):
        return self.now

    def create_task(self, coroutine, **settings):
        return self.loop.create_task(coroutine, **settings)

    def call_later(self, delay, function):
        return self.loop.call_later(3600, function)


def bodies():
    """An application that answers with the body it was sent, and the list of the requests it saw."""
    seen = []

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        seen.append((scope["method"], scope["path"], body, [name for name, _ in scope["headers"]]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app, seen


async def echo(scope, receive, send):
    """Answers with the host and path that it was asked for, in two parts and without a length."""
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    if message["type"] == "http.disconnect":
        return
    host = b",".join(value for name, value in scope["headers"] if name == b"host")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": host + b" ", "more_body": True})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def play(scenario, app=echo, limit=None):
    async def main():
        await asyncio.wait_for(scenario(World(app, limit)), timeout=60)

    asyncio.run(main())


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, connections.NO_HOST.error),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\n\r\n", 400, connections.TWO_HOSTS.error),
        (b"GET / HTTP/3.9\r\nHost: localhost\r\n\r\n", 400, connections.MALFORMED.error),
        ("GET /é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 400, connections.BAD_URL.error),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, connections.MALFORMED.error),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * MAX_HEAD_BYTES, 431, connections.HEAD_TOO_LARGE.error),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, 431, connections.HEAD_TOO_LARGE.error),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * MAX_HEAD_BYTES + b"\r\n", 431, connections.HEAD_TOO_LARGE.error),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, connections.MALFORMED.error),
    ],
)
def test_what_is_no_request_is_refused_in_words_and_closed(request_, status, error):
    async def scenario(world):
        connection = world.connect()
        connection.data_received(request_)
        transport = connection.transport
        assert (transport.status, transport.error, transport.closed) == (status, error, True)

    play(scenario)


def test_a_header_that_comes_in_pieces_is_cut_at_the_same_size():
    async def scenario(world):
        connection = world.connect()
        sent = 0
        connection.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        while not connection.transport.closed:
            connection.data_received(b"a" * 1000)
            sent += 1000
        assert MAX_HEAD_BYTES - 1000 <= sent <= MAX_HEAD_BYTES + 1000
        assert connection.transport.status == 431

    play(scenario)


@pytest.mark.parametrize("begun", [b"", b"GET /a", b"POST / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_head_has_its_time_however_it_drips(begun):
    async def scenario(world):
        connection = world.connect()
        connection.data_received(begun) if begun else None
        for _ in range(9):
            world.now += HEAD_S / 10
            connection.data_received(b"\r\n" if not begun else b"a" if begun.endswith(b"a") else b"A: b\r\n")
            world.expire()
        assert not connection.transport.closed
        world.now += HEAD_S / 10
        world.expire()
        assert (connection.transport.status, connection.transport.closed) == (408 if begun else None, True)

    play(scenario)


@pytest.mark.parametrize(("bytes_a_second", "lives"), [(0, False), (BODY_BYTES // 80, False), (BODY_BYTES // 50, True)])
def test_a_body_may_be_slow_but_not_endless(bytes_a_second, lives):
    async def scenario(world):
        connection = world.connect()
        connection.data_received(HEAD)
        for _ in range(int(2 * BODY_S) + 1):
            world.now += 1
            if not connection.transport.closed:
                connection.data_received(b"x" * bytes_a_second) if bytes_a_second else None
            world.expire()
            await settle()
        assert (connection.transport.closed, connection.transport.status) == (not lives, None if lives else 408)

    play(scenario)


def test_a_body_may_pause_for_half_a_minute():
    async def scenario(world):
        connection = world.connect()
        connection.data_received(HEAD)
        for _ in range(30):
            world.now += 1
            world.expire()
        connection.data_received(b"x" * 20_000)
        await settle()
        assert connection.transport.status == 200

    play(scenario)


def test_a_body_that_we_do_not_read_is_not_late():
    async def never_reads(scope, receive, send):
        await asyncio.Event().wait()

    async def scenario(world):
        connection = world.connect()
        connection.data_received(HEAD.replace(b"20000", b"200000") + b"x" * 70_000)
        await settle()
        assert connection.transport.paused
        for _ in range(5):
            world.now += BODY_S
            world.expire()
        assert not connection.transport.closed
        for task in world.state.tasks:
            task.cancel()

    play(scenario, never_reads)


def test_an_answer_has_all_the_time_it_wants_and_the_next_request_its_own():
    finish = asyncio.Event()

    async def slow(scope, receive, send):
        await finish.wait()
        await echo(scope, receive, send)

    async def scenario(world):
        connection = world.connect()
        connection.data_received(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        await settle()
        world.now += 9000
        connection.data_received(b"GET /b HTTP/1.1\r\nHo")  # sent before the answer to the first: not late yet
        world.now += 9000
        world.expire()
        assert not connection.transport.closed
        finish.set()
        await settle()
        assert connection.transport.sent.endswith(b"0\r\n\r\n")
        world.expire()
        assert not connection.transport.closed
        world.now += HEAD_S
        world.expire()
        assert connection.transport.closed

    play(scenario, slow)


def test_into_an_answer_that_has_begun_no_other_is_written():
    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.Event().wait()

    async def scenario(world):
        connection = world.connect()
        connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        await settle()
        connection.data_received(b"zz\r\n")
        assert connection.transport.closed
        assert connection.transport.sent.count(b"HTTP/1.1 ") == 1
        for task in world.state.tasks:
            task.cancel()

    play(scenario, half)


def test_who_is_refused_and_never_speaks_goes():
    async def never(scope, receive, send):
        await asyncio.Event().wait()

    async def scenario(world):
        world.connect().data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        late = world.connect()
        assert not late.transport.closed
        world.now += REFUSAL_S
        world.expire()
        assert late.transport.closed
        for task in world.state.tasks:
            task.cancel()

    play(scenario, never, limit=1)


def test_of_those_that_wait_another_goes_each_time():
    """One that is closing already makes no more room."""

    async def scenario(world):
        made = []
        for _ in range(4):
            world.now += REFUSAL_S
            made.append(world.connect())
        assert [connection.transport.closed for connection in made] == [True, True, False, False]

    play(scenario, limit=2)


def test_between_requests_a_connection_is_idle_and_keeps_its_place():
    async def scenario(world):
        connection = world.connect()
        for path in (b"/a", b"/b"):
            connection.data_received(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
            await settle()
            world.now += HEAD_S
            world.expire()
            assert (connection.phase, connection.transport.closed) == (ConnectionPhase.IDLE, False)
        assert connection.transport.sent.count(b"200 OK") == 2

    play(scenario)


def test_where_files_are_few_the_one_that_waits_longest_goes_and_a_busy_one_never():
    async def never(scope, receive, send):
        await asyncio.Event().wait()

    async def scenario(world):
        busy = world.connect()
        busy.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        world.now += 1
        first = world.connect()
        world.now += 1
        second = world.connect()
        second.data_received(b"GET / HT")
        world.now += 1
        third = world.connect()
        assert (first.transport.closed, second.transport.closed, third.transport.closed) == (True, False, False)
        first.connection_lost(None)
        second.data_received(b"TP/1.1\r\nHost: h\r\n\r\n")
        third.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        late = world.connect()
        assert late.transport.sent == b""
        late.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (late.transport.status, late.transport.error) == (503, connections.TOO_MANY.error)
        assert [other.transport.closed for other in (busy, second, third)] == [False] * 3
        for task in world.state.tasks:
            task.cancel()

    play(scenario, never, limit=3)


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_who_has_to_go_for_another_hears_why_if_a_request_may_be_on_its_way(sent):
    async def scenario(world):
        first = world.connect()
        if sent:
            first.data_received(sent)
        world.now += REFUSAL_S / 2
        world.connect()
        if not sent:
            assert not first.transport.closed
            first.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (first.transport.status, first.transport.error) == (503, connections.TOO_MANY.error)
        assert first.transport.closed

    play(scenario, limit=1)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /a%20%C3%A9 HTTP/1.1\r\nHost: h:1\r\n\r\n", "h:1 /a é"),
        (b"GET http://other:7/a HTTP/1.1\r\nHost: h\r\n\r\n", "other:7 /a"),
        (b"GET /%FF%E9 HTTP/1.1\r\nHost: h\r\nX: \xff\r\n\r\n", "h /\ufffd\ufffd"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "h /"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 1\r\n\r\na", "h /"),
    ],
)
def test_hosts_and_paths_are_what_was_meant(request_, answer):
    async def scenario(world):
        connection = world.connect()
        connection.data_received(request_)
        await settle()
        host, path = answer.encode().split(b" ", 1)
        sent = connection.transport.sent
        assert connection.transport.status == 200
        assert b"\r\n" + host + b" \r\n" in sent
        assert b"\r\n" + path + b"\r\n" in sent

    play(scenario)


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("piece", [1, 7, 100, 10_000])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_request_that_offers_another_protocol_keeps_its_body_and_what_follows_stays_a_request(
    offer, piece, in_chunks
):
    inner = b"DELETE /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner) if in_chunks else inner
    length = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: %d" % len(inner)
    post = b"POST /a HTTP/1.1\r\nHost: h\r\n" + offer + length + b"\r\n\r\n" + framed
    sent = 2 * (post + b"GET /b HTTP/1.1\r\nHost: h\r\n" + offer + b"\r\n")
    app, seen = bodies()

    async def scenario(world):
        connection = world.connect()
        for start in range(0, len(sent), piece):
            connection.data_received(sent[start : start + piece])
            await settle()
        assert [request[:3] for request in seen] == 2 * [("POST", "/a", inner), ("GET", "/b", b"")]
        assert connection.transport.sent.count(b"200 OK") == 4
        assert not connection.transport.closed

    play(scenario, app)


def test_a_tunnel_is_refused_and_what_is_sent_into_it_is_no_request():
    app, seen = bodies()

    async def scenario(world):
        connection = world.connect()
        connection.data_received(b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await settle()
        transport = connection.transport
        assert (transport.status, transport.error, transport.closed) == (405, connections.NO_PROXY.error, True)
        assert seen == []

    play(scenario, app)


@pytest.mark.parametrize("head", [b"HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"HTTP/1.0\r\n\r\n"])
def test_the_last_request_of_a_connection_is_answered_whatever_comes_behind_it(head):
    app, seen = bodies()

    async def scenario(world):
        connection = world.connect()
        connection.data_received(b"GET /a " + head + b"GET /b " + head)
        await settle()
        assert [path for _, path, _, _ in seen] == ["/a"]
        assert (connection.transport.status, connection.transport.closed) == (200, True)

    play(scenario, app)


def test_headers_behind_a_body_in_chunks_are_none_of_the_request():
    app, seen = bodies()

    async def scenario(world):
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        world.connect().data_received(head + b"1\r\na\r\n0\r\nHost: evil.example\r\nOrigin: x\r\n\r\n")
        await settle()
        assert seen == [("POST", "/", b"a", [b"host", b"transfer-encoding"])]

    play(scenario, app)


CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"0\r\n", b"a:\r\n"),
        (b"0\r\na: ", b"aaaa"),
        (b"2;", b"aaaa"),
        (b"", b"1;" + b"a" * 1000 + b"\r\nx\r\n"),
    ],
)
@pytest.mark.parametrize("n", [1, 100])
def test_what_a_body_in_chunks_has_beside_its_bytes_has_an_end(begun, more, n):
    async def scenario(world):
        connection = world.connect()
        connection.data_received(CHUNKED + begun)
        for _ in range(MAX_HEAD_BYTES // len(more * n) + 2):
            if not connection.transport.closed:
                connection.data_received(more * n)
        transport = connection.transport
        assert (transport.status, transport.error, transport.closed) == (431, connections.NOT_BODY.error, True)

    play(scenario)


@pytest.mark.parametrize("n", [1, 5000])
def test_a_body_may_come_in_as_small_chunks_as_it_likes(n):
    app, seen = bodies()

    async def scenario(world):
        connection = world.connect()
        connection.data_received(CHUNKED)
        for _ in range(20_000 // n):
            connection.data_received(b"1\r\nx\r\n" * n)
        connection.data_received(b"0\r\n\r\n")
        await settle()
        assert (connection.transport.status, connection.transport.closed) == (200, False)
        assert [(path, len(body)) for _, path, body, _ in seen] == [("/", 20_000)]

    play(scenario, app)


def test_http_1_0_gets_its_own_version_and_a_plain_body_until_the_end():
    async def scenario(world):
        connection = world.connect()
        connection.data_received(b"GET /a HTTP/1.0\r\n\r\n")
        await settle()
        head, _, body = connection.transport.sent.partition(b"\r\n\r\n")
        assert (body, connection.transport.closed) == (b" /a", True)
        assert head.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"chunked" not in head
        assert b"content-length" not in head

    play(scenario)


def test_a_client_that_leaves_in_its_body_ends_what_waits_for_it():
    async def scenario(world):
        connection = world.connect()
        connection.data_received(HEAD + b"x")
        await settle()
        assert len(world.state.tasks) == 1
        connection.connection_lost(None)
        await settle()
        assert not world.state.tasks

    play(scenario)
