"""Names of models in requests, with Ollama's statuses and words."""

import pytest

INVALID = (400, "invalid model name")
REQUIRED = (400, "model is required")
ROUTES = ["generate", "chat", "show", "create", "copy", "delete"]


async def ask(site, route, name):
    """Status and error of *route* for a model called *name*."""
    method = "DELETE" if route == "delete" else "POST"
    body = {"model": name, "source": name, "destination": "x", "messages": []}
    if route == "create":
        body["from"] = "tiny"
    response = await site.http.request(method, f"/api/{route}", json=body)
    return response.status_code, response.json()["error"] if response.status_code != 200 and response.content else ""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", [" tiny ", "tiny:local", "\ttiny:latest:local\n", "TINY", "library/tiny"])
def test_blanks_and_a_last_local_are_cut(on_site, route, name):
    async def scenario(site):
        assert await ask(site, route, name) == (200, "")

    on_site(scenario)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "name", ["a//b::c", "a b!", "../../etc/passwd", "tiny:local:cloud", "tiny:cloud:local", "\ufffd"]
)
def test_a_name_that_cannot_be_one_is_called_so(on_site, route, name):
    quoted = {"copy": f'source "{name}" is invalid', "delete": f'name "{name}" is invalid'}

    async def scenario(site):
        assert await ask(site, route, name) == (400, quoted.get(route, "invalid model name"))

    on_site(scenario)


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        ("generate", (404, "model '' not found")),
        ("chat", REQUIRED),
        ("show", REQUIRED),
        ("create", INVALID),
        ("copy", (400, 'source "" is invalid')),
        ("delete", (400, 'name "" is invalid')),
    ],
)
@pytest.mark.parametrize("name", ["", "  ", ":local"])
def test_an_empty_name_is_what_each_route_calls_it(on_site, route, answer, name):
    async def scenario(site):
        status, error = await ask(site, route, name)
        assert (status, error.replace(name, "") if name and route in ("copy", "delete") else error) == answer

    on_site(scenario)


def test_a_destination_that_cannot_be_a_name_is_called_so(on_site):
    async def scenario(site):
        response = await site.post("/api/copy", source="tiny", destination="a b")
        assert (response.status_code, response.json()) == (400, {"error": 'destination "a b" is invalid'})

    on_site(scenario)


def test_an_answer_has_the_name_as_it_was_asked_for(on_site):
    async def scenario(site):
        assert (await site.lines("/api/generate", model=" tiny:local", prompt="Hi"))[0]["model"] == " tiny:local"

    on_site(scenario)
