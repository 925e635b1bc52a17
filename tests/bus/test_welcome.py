from __future__ import annotations

import pytest

from ollama_zmq.bus import welcome
from ollama_zmq.devices.base import Speeds
from ollama_zmq.wire.messages import MatrixSpeed

SPEEDS = Speeds(1e10, 1e11, (MatrixSpeed(12, 2e10, 3e11),), 1e9, 1e-6)


class Measuring:
    name = "a CPU"
    measurements = 0

    def measure(self):
        self.measurements += 1
        return SPEEDS


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "speeds.json"


def test_a_device_measures_itself_once_a_day(path, monkeypatch):
    device = Measuring()
    assert [welcome.measured_speeds(device, path) for _ in range(2)] == [SPEEDS, SPEEDS]
    assert device.measurements == 1
    now = welcome.time.time()
    monkeypatch.setattr(welcome.time, "time", lambda: now + welcome.KEPT_S)
    welcome.measured_speeds(device, path)
    assert device.measurements == 2


def test_another_device_measures_itself(path):
    one, other = Measuring(), Measuring()
    other.name = "another CPU"
    assert welcome.measured_speeds(one, path) == welcome.measured_speeds(other, path)
    assert (one.measurements, other.measurements) == (1, 1)


def test_rubbish_in_the_file_and_a_folder_that_cannot_be_written_do_no_harm(path):
    path.parent.mkdir()
    path.write_text("rubbish")
    assert welcome.measured_speeds(Measuring(), path) == SPEEDS
    assert welcome.measured_speeds(Measuring(), path / "no folder" / "file") == SPEEDS


ENDPOINT = "tcp://10.0.0.10:50052"


def test_a_worker_is_known_by_what_its_machine_keeps_and_its_endpoint(tmp_path):
    kept = tmp_path / "cache" / "worker-id"
    first = welcome.worker_id(ENDPOINT, kept)
    assert len(first) == 32
    assert welcome.worker_id(ENDPOINT, kept) == first
    assert welcome.worker_id("tcp://10.0.0.10:50053", kept) != first
    assert welcome.worker_id("tcp://127.0.0.1:50052", kept) != first
    assert welcome.worker_id(ENDPOINT, tmp_path / "another") != first


def test_machines_that_share_home_and_host_name_have_workers_of_their_own(tmp_path):
    ids = {welcome.worker_id("tcp://0.0.0.0:50052", tmp_path / "worker-id", network) for network in ("a", "b", None)}
    assert len(ids) == 3


def test_a_worker_that_can_keep_nothing_has_no_id(tmp_path):
    (tmp_path / "file").write_text("")
    assert welcome.worker_id(ENDPOINT, tmp_path / "file" / "worker-id") == ""
