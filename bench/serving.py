"""Load a running service and report what its clients see: `python -m bench.serving --url http://... --rate 4 --json`.

Open loop: requests leave at Poisson times whether or not earlier ones have come back, over the OpenAI completions
endpoint with streaming, so any compatible server can be measured with the same command. Every error counts as a failed
request. TTFT runs from the time a request was due, not from when a busy client came round to sending it.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from dataclasses import asdict
from typing import Any

import aiohttp

from bench.report import RequestResult, Slo, summarize
from bench.workload import PlannedRequest, WorkloadConfig, plan

ENDPOINT = "/v1/completions"
DATA = b"data:"


class LoadClient:
    """Sends planned requests to one server. `start_s` is the clock's time of arrival 0."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session = session
        self._url = url.rstrip("/") + ENDPOINT
        self._model = model

    async def run(self, planned: list[PlannedRequest]) -> list[RequestResult]:
        """Send everything at its time and wait for the last answer."""
        start_s = time.perf_counter()
        return list(await asyncio.gather(*(self._run_one(request, start_s) for request in planned)))

    async def _run_one(self, request: PlannedRequest, start_s: float) -> RequestResult:
        due_s = start_s + request.arrival_s
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        result = RequestResult(planned_s=due_s, sent_s=time.perf_counter())
        body = {
            "model": self._model,
            "prompt": request.prompt,
            "max_tokens": request.output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status != 200:
                    result.error = f"HTTP {response.status}"
                else:
                    await self._read(response, result)
        except TimeoutError:
            result.error = "timeout"
        except aiohttp.ClientError as error:
            result.error = type(error).__name__
        if result.error is None and result.output_tokens < request.output_len:
            result.error = "answer cut short"
        return result

    async def _read(self, response: aiohttp.ClientResponse, result: RequestResult) -> None:
        finished = False
        async for line in response.content:
            if not line.startswith(DATA):
                continue
            now = time.perf_counter()
            data = line[len(DATA) :].strip()
            if data == b"[DONE]":
                finished = True
                break
            event = json.loads(data)
            if "error" in event:
                result.error = f"error event: {event['error'].get('code') or event['error'].get('type')}"
                return
            if event.get("usage"):
                _count(event["usage"], result)
            if event.get("choices"):
                _mark(now, result)
        if not finished:
            result.error = "stream ended without [DONE]"


def _mark(now: float, result: RequestResult) -> None:
    if result.first_s is None:
        result.first_s = now
    elif result.last_s is not None:
        result.gaps_s.append(now - result.last_s)
    result.last_s = now


def _count(usage: dict[str, Any], result: RequestResult) -> None:
    result.input_tokens = usage["prompt_tokens"]
    result.output_tokens = usage["completion_tokens"]
    result.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


async def measure(url: str, config: WorkloadConfig, *, model: str | None, timeout_s: float) -> list[RequestResult]:
    """Run the load of `config` against `url`; the first served model when `model` is None."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20) as session:
        if model is None:
            async with session.get(url.rstrip("/") + "/v1/models") as response:
                response.raise_for_status()
                model = (await response.json())["data"][0]["id"]
        return await LoadClient(session, url, model).run(plan(config))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the server")
    parser.add_argument("--model", help="model name; the first served one when left out")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second on average; inf sends all at once")
    parser.add_argument("--num-requests", type=int, default=100)
    parser.add_argument("--input-len", type=int, default=512, help="tokens (words with --text) in a prompt")
    parser.add_argument("--output-len", type=int, default=64, help="tokens in an answer")
    parser.add_argument("--shared-prefix", type=int, default=0, help="tokens at the start that prompts share")
    parser.add_argument("--num-prefixes", type=int, default=1, help="different shared prefixes")
    parser.add_argument("--vocab-size", type=int, default=256, help="token ids are drawn below this")
    parser.add_argument("--text", action="store_true", help="send words instead of token ids")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of one request")
    parser.add_argument("--slo-ttft-ms", type=float, default=500.0)
    parser.add_argument("--slo-tpot-ms", type=float, default=50.0)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when every request completed, 1 otherwise."""
    args = arguments(argv)
    config = WorkloadConfig(
        rate=args.rate,
        num_requests=args.num_requests,
        input_len=args.input_len,
        output_len=args.output_len,
        shared_prefix=args.shared_prefix,
        num_prefixes=args.num_prefixes,
        vocab_size=args.vocab_size,
        text=args.text,
        seed=args.seed,
    )
    results = asyncio.run(measure(args.url, config, model=args.model, timeout_s=args.timeout_s))
    report = summarize(results, Slo(args.slo_ttft_ms / 1000, args.slo_tpot_ms / 1000))
    report["workload"] = asdict(config) | {"rate": args.rate if math.isfinite(args.rate) else None}
    if not args.json:
        for name, value in report.items():
            print(f"{name:24} {value}")
    else:
        print(json.dumps(report))
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
