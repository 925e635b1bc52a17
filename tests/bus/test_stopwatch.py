from __future__ import annotations

from ollama_zmq.bus import stopwatch


def test_what_lies_between_stop_and_start_does_not_count(monkeypatch):
    monkeypatch.setattr(stopwatch, "monotonic", iter([10.0, 13.0, 100.0, 101.0, 101.0, 105.0, 105.0]).__next__)
    watch = stopwatch.Stopwatch()
    watch.stop()
    watch.start()
    assert watch.lap() == 4.0
    assert watch.lap() == 4.0
