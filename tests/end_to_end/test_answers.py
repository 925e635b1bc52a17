"""A model in several processes answers as it does in one."""

from __future__ import annotations

import pytest

from tests.end_to_end.cluster import Cluster


def test_an_answer_streams_token_by_token(quiet_cluster: Cluster) -> None:
    with quiet_cluster.stream(24) as lines:
        *chunks, last = list(lines)
    assert len(chunks) > 8
    assert not any(chunk["done"] for chunk in chunks)
    assert last["done"]
    assert (last["done_reason"], last["eval_count"]) == ("length", 24)


def test_the_layers_lie_on_the_workers_that_were_named(quiet_cluster: Cluster) -> None:
    quiet_cluster.generate()
    (model,) = quiet_cluster.get("/api/cluster")["models"]
    stages = [s for s in model["stages"] if s["part"] == "layers"]
    assert [s["worker"] for s in stages] == list(quiet_cluster.addresses[:2])
    assert stages[0]["first_layer"] == 0
    assert stages[1]["first_layer"] == stages[0]["last_layer"] + 1
    assert stages[1]["last_layer"] == 7


def test_every_stage_tells_its_latency(quiet_cluster: Cluster) -> None:
    quiet_cluster.generate(num_predict=8)
    (model,) = quiet_cluster.get("/api/cluster")["models"]
    for stage in model["stages"]:
        assert stage["latency"]["steps"] >= 7
        assert 0 < stage["latency"]["compute"]["p50_us"] <= stage["latency"]["compute"]["p95_us"]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "seeded"])
def test_the_answer_does_not_depend_on_the_split(quiet_cluster: Cluster, options: dict[str, float]) -> None:
    lists = [",".join(quiet_cluster.addresses[:n]) for n in (0, 1, 2, 3)]
    texts = [quiet_cluster.generate("the other", rpc_servers=servers, **options)["context"] for servers in lists]
    assert texts[1:] == texts[:1] * 3


def test_the_list_of_a_request_goes_before_the_servers_own(quiet_cluster: Cluster) -> None:
    quiet_cluster.generate(rpc_servers=quiet_cluster.addresses[2])
    assert quiet_cluster.places() == {quiet_cluster.addresses[2], "local"}
