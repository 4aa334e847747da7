"""What a log reader learns of a request."""

import logging
from dataclasses import replace

import pytest

from engine.core.messages import Adopted, Finished, HandoffFailed
from engine.core.types import FinishReason
from engine.server.request_log import RequestLog
from engine.server.role import Ended
from tests.fakes.virtual_worker import make_request


@pytest.mark.parametrize(
    ("word", "level", "said"),
    [
        (Finished(255, FinishReason.LENGTH), logging.DEBUG, "finished reason=length"),
        (Finished(255, FinishReason.ERROR, "too long"), logging.WARNING, "finished reason=error: too long"),
        (HandoffFailed(255, "digest: other"), logging.WARNING, "handoff failed: digest: other"),
        (Ended(255, "released"), logging.DEBUG, "released"),
    ],
)
def test_one_line_an_end(caplog: pytest.LogCaptureFixture, word: object, level: int, said: str) -> None:
    caplog.set_level(logging.DEBUG)
    log = RequestLog()
    log.submitted(replace(make_request(255, range(7)), request_id="cmpl-1"))
    log.said(Adopted(255, 10, 0.002, 1, 0), 1.0)
    log.said(word, 1.5)  # type: ignore[arg-type]
    log.said(word, 2.0)  # type: ignore[arg-type]
    adopted, ended = caplog.records
    assert adopted.getMessage() == "request_id=cmpl-1 attempt=00000000000000ff adopted bytes=10 transfer_ms=2.0"
    assert ended.levelno == level
    assert ended.getMessage() == f"request_id=cmpl-1 attempt=00000000000000ff tokens=7 seconds=1.500 {said}"
