"""Health, metrics, status, headers."""

import base64
import hashlib

import httpx
import pytest

from engine.core.types import KVLayout, PageCount, WorkerInfo, WorkerLoad
from router.api import RequestStatus, ServiceStatus, Timing, WorkerStatus
from router.recent import RecentTimes
from tests.unit.http.conftest import Service


async def test_health_follows_the_service(service: Service) -> None:
    assert (await service.http.get("/health")).status_code == 200
    assert (await service.http.head("/health")).status_code == 200
    service.status.now = ServiceStatus(ready=False, detail="no decode worker has joined")
    response = await service.http.get("/health")
    assert (response.status_code, response.json()["detail"]) == (503, "no decode worker has joined")


async def test_metrics_count_requests_by_route_and_status(service: Service) -> None:
    await service.http.post("/v1/completions", json={"model": "tiny", "prompt": "hi"})
    await service.http.post("/v1/completions", json={"model": "other", "prompt": "hi"})
    await service.http.get("/somewhere/else")
    lines = (await service.http.get("/metrics")).text.splitlines()
    counts = [line for line in lines if line.startswith("baton_http_request_seconds_count")]
    assert 'baton_http_request_seconds_count{route="/v1/completions",status="200"} 1.0' in counts
    assert 'baton_http_request_seconds_count{route="/v1/completions",status="404"} 1.0' in counts
    assert 'baton_http_request_seconds_count{route="other",status="404"} 1.0' in counts


async def test_status_page(service: Service) -> None:
    layout = KVLayout("hash", 2, 2, 16, 16, "float32")
    info = WorkerInfo("p0", (1 << 64) - 1, ("prefill",), "127.0.0.1:5", "tiny", layout, 100, 512, (("local", b"\xff"),))
    load = WorkerLoad(1, 0.0, 2, 300, 4, 60, 100, 0.0125, 1000.0, (PageCount("free", 60), PageCount("leased", 3, 2.5)))
    workers = (
        WorkerStatus(info, "ready", load=load, load_age_s=0.25),
        WorkerStatus(info, "refused", "page sizes differ"),
    )
    service.status.now = ServiceStatus(True, workers=workers, queued_requests=1, running_requests=2)
    body = (await service.http.get("/status")).json()
    assert (body["ready"], body["queued_requests"], body["running_requests"]) == (True, 1, 2)
    assert body["workers"][0]["incarnation"] == "f" * 16
    assert body["workers"][0]["load"]["step_ms"] == 12.5
    assert body["workers"][0]["load"]["pages_by_state"] == {"free": 60, "leased": 3}
    assert body["workers"][0]["load"]["oldest_page_s"] == {"leased": 2.5}
    assert (body["workers"][1]["detail"], body["workers"][1]["load"]) == ("page sizes differ", None)


async def test_timing_and_request_id_in_headers(service: Service) -> None:
    body = {"model": "tiny", "prompt": "hi"}
    headers = (await service.http.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})).headers
    assert headers["x-request-id"] == "mine-1"
    assert (headers["x-baton-transfer-ms"], headers["x-baton-cached-tokens"]) == ("4.000", "3")
    check_parts(headers)
    assert (headers["x-baton-prefill-worker"], headers["x-baton-decode-worker"]) == ("p0", "d0")
    response = await service.http.post("/v1/completions", json=body, headers={"x-request-id": "two\twords"})
    assert response.headers["x-request-id"].startswith("cmpl-")
    assert response.headers["x-request-id"] == response.json()["id"]


def check_parts(headers: httpx.Headers) -> None:
    """The four parts of the time to the first token add up to it."""
    parts_ms = [float(headers[f"x-baton-{part}-ms"]) for part in ("queue", "admit", "prefill", "deliver")]
    assert float(headers["x-baton-ttft-ms"]) == pytest.approx(sum(parts_ms), abs=0.003)
    assert all(part >= 0 for part in parts_ms) and parts_ms[1] == pytest.approx(0.2)


async def test_a_stream_says_in_its_headers_where_its_first_token_came_from(service: Service) -> None:
    service.generator.pause_after = 2
    body = {"model": "tiny", "prompt": "hi there", "max_tokens": 5, "stream": True, "ignore_eos": True}
    async with service.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["x-baton-prefill-worker"] == "p0" and "x-baton-transfer-ms" not in response.headers
        assert response.headers["x-baton-cached-tokens"] == "3"
        check_parts(response.headers)
        service.generator.resume.set()
        await response.aread()


async def test_tokenize(service: Service) -> None:
    tokenizer = service.model.tokenizer
    response = await service.http.post("/tokenize", json={"prompt": "the dog"})
    assert response.json() == {"tokens": list(tokenizer.encode("the dog")), "count": response.json()["count"],
                               "max_model_len": 512}  # fmt: skip
    chat = await service.http.post("/tokenize", json={"model": "tiny", "messages": [{"role": "user", "content": "a"}]})
    rendered = "<|begin|><|role|>user\na<|end|><|role|>assistant\n"
    assert chat.json()["tokens"] == list(tokenizer.encode(rendered, add_special_tokens=False))


async def test_the_page_brings_its_own_policy(service: Service) -> None:
    response = await service.http.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    for tag in ("script", "style"):
        block = response.text.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert " style=" not in response.text and " onclick=" not in response.text, "the policy would refuse them"


async def test_prefixes_requests_and_recent_times(service: Service) -> None:
    body = (await service.http.get("/status/prefixes")).json()
    (root,) = body["nodes"]
    assert (body["page_size"], body["left_out"]) == (16, 0)
    assert (root["id"], root["pages"], root["tokens"], root["workers"]) == (
        "01010101",
        2,
        32,
        ["decode-0", "prefill-0"],
    )
    assert root["children"] == [
        {"id": "02020202", "pages": 1, "tokens": 16, "workers": ["decode-0"], "children": []}
    ]  # fmt: skip
    recent = RecentTimes()
    recent.on_gap(0.02)
    recent.on_end(Timing(queue_s=0.001, prefill_s=0.002, ttft_s=0.004))
    request = RequestStatus("r-0", "decoding", 10, 3, 0.5, "p0", "d0")
    service.status.now = ServiceStatus(True, requests=(request,), totals=(("handoffs", 7),), recent=recent)
    status = (await service.http.get("/status")).json()
    assert status["totals"] == {"handoffs": 7} and status["requests"][0]["decode"] == "d0"
    assert (status["recent"]["ttft_ms"], status["recent"]["itl_ms"], status["recent"]["transfer_ms"]) == (
        4.0,
        20.0,
        0.0,
    )
