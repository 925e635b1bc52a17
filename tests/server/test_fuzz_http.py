"""Random requests over real sockets leave nothing behind: no error of ours, no traceback, no answer missing.

``python -m tests.server.fuzz_http --seconds 600`` does the same for longer.
"""

import pytest

from tests.server import fuzz_http


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_sent_is_answered_or_refused(store, seed):
    record = fuzz_http.run(store, seed, n_requests=40, n_clients=4)
    assert record["wrong"] == []
    assert {200, 400} <= record["statuses"].keys()
