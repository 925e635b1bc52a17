"""What is kept beside a model in memory."""

from types import SimpleNamespace

from ollama_zmq.server.resident import MAX_TEMPLATES, Resident


def test_templates_that_requests_bring_do_not_pile_up():
    loaded = SimpleNamespace(network=SimpleNamespace(gguf=SimpleNamespace(metadata={})), tokenizer=None)
    resident = Resident(model=None, loaded=loaded, keep_alive_s=1.0)
    first = resident.template("0 {{ .Prompt }}")
    assert resident.template("0 {{ .Prompt }}") is first
    for i in range(10 * MAX_TEMPLATES):
        assert resident.template(f"{i} {{{{ .Prompt }}}}").render([{"role": "user", "content": "hi"}]) == f"{i} hi"
        assert len(resident.templates) <= MAX_TEMPLATES
