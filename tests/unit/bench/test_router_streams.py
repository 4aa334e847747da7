import json

import pytest

from bench.router_streams import main


@pytest.mark.slow
def test_streams_are_held_and_let_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams", "60", "--rounds", "2", "--step-s", "0.3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["streams"] == 60 and result["failed"] == 0
    assert result["events_while_held"] >= 120 and result["bytes_per_stream"] > 0
