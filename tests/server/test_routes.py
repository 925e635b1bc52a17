"""Routes, methods, guards and errors that belong to no endpoint."""

import pytest

from ollama_zmq import errors
from ollama_zmq.config import Config
from ollama_zmq.server import errors as server_errors
from ollama_zmq.server.endpoints.about import MISSING
from ollama_zmq.server.guards import is_allowed_host
from ollama_zmq.version import OLLAMA_VERSION

ORIGINS = Config.from_environment({"OLLAMA_ORIGINS": "https://*.example.com"}).origins


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "body"), [("/", "Ollama is running"), ("/api/version", f'{{"version":"{OLLAMA_VERSION}"}}')]
)
def test_the_server_says_what_it_is(on_site, method, path, body):
    async def scenario(site):
        response = await site.http.request(method, path)
        assert (response.status_code, response.text) == (200, "" if method == "HEAD" else body)

    on_site(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/nope", 404, "404 page not found"),
        ("GET", "/api/generate", 405, "405 method not allowed"),
        ("POST", "/api/tags", 405, "405 method not allowed"),
        ("PUT", "/api/blobs/x", 405, "405 method not allowed"),
        ("GET", "/api/embed", 405, "405 method not allowed"),
        ("GET", "/api/pull", 405, "405 method not allowed"),
    ],
)
def test_wrong_paths_and_methods_are_plain_text(on_site, method, path, status, text):
    async def scenario(site):
        response = await site.http.request(method, path)
        assert (response.status_code, response.text) == (status, text)

    on_site(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "location"),
    [
        ("GET", "/api/tags/", 301, "/api/tags"),
        ("GET", "/api/tags/?a=b/&c=%2F", 301, "/api/tags?a=b/&c=%2F"),
        ("HEAD", "/api/tags/", 307, "/api/tags"),
        ("POST", "/api/generate/", 307, "/api/generate"),
        ("DELETE", "/api/delete/", 307, "/api/delete"),
        ("DELETE", "/api/user/keys/a%20b/", 307, "/api/user/keys/a%20b"),
        ("POST", "/v1/chat/completions/", 307, "/v1/chat/completions"),
        ("GET", "/api/generate/", 404, None),
        ("POST", "/api/tags/", 404, None),
        ("HEAD", "/api/ps/", 404, None),
        ("GET", "/api/tags//", 404, None),
        ("GET", "//evil.example/", 404, None),
        ("GET", "/api/", 404, None),
    ],
)
def test_a_slash_at_the_end_leads_to_the_path_without_it_as_gin_does(on_site, method, path, status, location):
    async def scenario(site):
        headers = {"Host": "localhost:11434", "X-Forwarded-Proto": "https"}
        response = await site.http.request(method, f"http://localhost{path}", headers=headers, follow_redirects=False)
        assert (response.status_code, response.headers.get("location")) == (status, location)

    on_site(scenario)


@pytest.mark.parametrize(
    ("method", "path", "status", "answer"),
    [
        ("GET", "/api/status", 200, {"cloud": {"disabled": True, "source": "config"}}),
        ("POST", "/api/me", 503, {"error": "account unavailable"}),
        ("POST", "/api/signout", 401, {"error": "you are not currently signed in"}),
        ("DELETE", "/api/user/keys/abc", 401, {"error": "you are not currently signed in"}),
        ("GET", "/api/experimental/model-recommendations", 200, {"recommendations": []}),
    ],
)
def test_what_clients_ask_at_their_start_has_an_answer(on_site, method, path, status, answer):
    async def scenario(site):
        response = await site.http.request(method, path)
        assert (response.status_code, response.json()) == (status, answer)

    on_site(scenario)


def test_the_version_is_one_that_clients_accept_and_ours_is_told_elsewhere(on_site):
    async def scenario(site):
        version = (await site.http.get("/api/version")).json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 34, 0)
        assert "version" in (await site.http.get("/api/cluster")).json()

    on_site(scenario)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/nope"), ("GET", "/v1/chat/completions/x"), ("PUT", "/v1/models")]
)
def test_under_v1_unknown_paths_and_methods_have_the_error_that_its_clients_read(on_site, method, path):
    async def scenario(site):
        response = await site.http.request(method, path)
        kind, code = ("invalid_request_error", 405) if method == "PUT" else ("not_found_error", 404)
        error = response.json()["error"]
        assert (response.status_code, error.pop("message").endswith(path)) == (code, True)
        assert error == {"type": kind, "param": None, "code": None}
        assert (await site.http.get("/v1/messages/count_tokens")).json()["error"]["type"] == "not_found_error"

    on_site(scenario)


@pytest.mark.parametrize("path", sorted(MISSING))
def test_what_is_not_there_says_so(on_site, path):
    async def scenario(site):
        asked = path.replace("{model:path}", "me/tiny")
        response = await site.http.request("GET" if path.startswith("/v1/models") else "POST", asked)
        assert response.status_code == 501
        error = response.json()["error"]
        if path.startswith("/v1/"):
            assert error["type"] == "api_error"
            assert (response.json().get("type") == "error") == (path == "/v1/messages")
            error = error["message"]
        assert error.startswith(f"{asked} is not there yet")

    on_site(scenario)


@pytest.mark.parametrize(("path", "status"), [("/api/tags", 200), ("/api/ps", 405), ("/api/status", 405)])
def test_what_ollama_answers_to_head_is_answered(on_site, path, status):
    async def scenario(site):
        assert (await site.http.head(path)).status_code == status
        assert (await site.http.get(path)).status_code == 200

    on_site(scenario)


def test_pictures_are_not_made_yet(on_site):
    async def scenario(site):
        assert (await site.http.post("/v1/images/generations", json={})).status_code == 501

    on_site(scenario)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:11434", 200),
        ("127.0.0.1:11434", 200),
        ("[::1]:11434", 200),
        ("[fe80::1]:11434", 200),
        ("fe80::1", 200),
        ("192.168.1.5", 200),
        ("box.local", 200),
        ("api.internal:80", 200),
        ("evil.example", 403),
        ("8.8.8.8", 403),
        ("localhost.evil.example", 403),
    ],
)
def test_a_server_on_loopback_answers_to_its_own_names_only(on_site, host, status):
    async def scenario(site):
        response = await site.http.get("/api/version", headers={"Host": host})
        assert response.status_code == status

    on_site(scenario)


def test_a_server_on_the_network_answers_to_any_name(on_site):
    async def scenario(site):
        response = await site.http.get("/api/version", headers={"Host": "ollama.example"})
        assert response.status_code == 200

    on_site(scenario, host=Config.from_environment({"OLLAMA_HOST": "0.0.0.0"}).host)


def test_this_machines_own_name_is_allowed(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Box-7")
    assert is_allowed_host("box-7")
    assert is_allowed_host("LOCALHOST")


@pytest.mark.parametrize(
    ("origin", "status", "allowed"),
    [
        (None, 200, None),
        ("http://localhost", 200, None),  # the page's own server: no headers are needed
        ("https://127.0.0.1", 200, "https://127.0.0.1"),
        ("http://localhost:3000", 200, "http://localhost:3000"),
        ("app://obsidian.md", 200, "app://obsidian.md"),
        ("https://a.example.com", 200, "https://a.example.com"),
        ("https://example.org", 403, None),
        ("http://localhost.evil.example", 403, None),
        ("http://localhost:3000.evil.example", 403, None),
        ("http://localhost:3000@evil.example", 403, None),
        ("http://localhost:", 403, None),
        ("https://a.example.com/x.example.com", 403, None),
        ("http://evil.example/?https://a.example.com", 403, None),
    ],
)
def test_pages_of_foreign_origins_are_refused(on_site, origin, status, allowed):
    async def scenario(site):
        response = await site.http.get("/api/version", headers={} if origin is None else {"Origin": origin})
        assert (response.status_code, response.headers.get("access-control-allow-origin")) == (status, allowed)
        assert response.headers.get("vary") == ("Origin" if allowed else None)  # no cache gives it to another page

    on_site(scenario, origins=ORIGINS)


def test_a_browser_may_ask_before_it_posts(on_site):
    async def scenario(site):
        asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
        response = await site.http.options("/api/chat", headers=asked)
        headers = response.headers
        assert (response.status_code, headers["access-control-allow-origin"]) == (204, "http://localhost:3000")
        assert "POST" in headers["access-control-allow-methods"]
        assert "x-stainless-retry-count" in headers["access-control-allow-headers"]
        assert (await site.http.options("/api/chat")).status_code == 204

    on_site(scenario, origins=ORIGINS)


def test_every_error_of_ours_has_the_status_of_its_nearest_ancestor():
    class Deeper(errors.ContextOverflow):
        pass

    expected = {
        errors.RequestError: 400,
        errors.ModelNotFound: 404,
        Deeper: 400,
        errors.ModelFileError: 500,
        errors.ShapeError: 500,
        errors.RemoteProtocolError: 500,
        errors.ServerBusy: 503,
        errors.StageLost: 503,
        errors.Unreachable: 503,
        server_errors.NotThereYet: 501,
        server_errors.RequestCanceled: 499,
        ZeroDivisionError: 500,
    }
    assert {cls: server_errors.status_of(cls("x")) for cls in expected} == expected


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 204), ("box.local", 204), ("127.0.0.1", 405), ("[::1]:1", 405)]
)
def test_options_is_answered_on_a_name_and_is_a_method_like_others_on_an_address(on_site, host, status):
    async def scenario(site):
        assert (await site.http.options("/api/tags", headers={"Host": host})).status_code == status

    on_site(scenario)
