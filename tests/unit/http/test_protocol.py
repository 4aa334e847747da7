"""What one connection may make the server keep is bounded, whatever it sends and however slowly."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.doors.config import DoorConfig
from router.http import protocol
from router.text.model import ServedModel
from tests.unit.http.conftest import Service, running

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def post(**fields: Any) -> bytes:
    body = json.dumps({"model": "tiny", "prompt": "hi"} | fields).encode()
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("line", [b"x: " + b"a" * 4096, b"x: y\r\n" * 700, b"/" * 4096], ids=["one", "many", "no line"])
async def test_a_head_without_end_is_cut_off(service: Service, line: bytes) -> None:
    async with connected(service) as (reader, writer):
        writer.write(HEAD)
        try:
            while not reader.at_eof():
                writer.write(line)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        answer = await until_closed(reader)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert (await service.http.get("/health")).status_code == 200


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_come(service: Service, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.01)
    async with connected(service) as (reader, writer):
        writer.write(sent)
        answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert "headers did not come" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


async def test_a_stray_newline_does_not_cut_an_answer(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.01)
    service.answers("abcdef")
    service.generator.pause_after = 2
    async with connected(service) as (reader, writer):
        writer.write(post() + b"\r\n")
        await service.generator.paused.wait()
        await asyncio.sleep(0.05)  # several times the limit
        service.generator.resume.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_does_not_end(tiny: ServedModel) -> None:
    impatient = DoorConfig(body_timeout_s=0.01)
    async with running(tiny, impatient) as service, connected(service) as (reader, writer):
        writer.write(HEAD + b"content-length: 100\r\n\r\n{")
        answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"the body took too long" in answer


async def test_a_client_that_leaves_within_its_body_is_no_fault_of_the_server(service: Service) -> None:
    async with connected(service) as (_, writer):
        writer.write(HEAD + b"content-length: 100\r\n\r\n{")
        await writer.drain()
    left = 'baton_http_request_seconds_count{route="/v1/completions",status="499"} 1.0'
    while left not in (await service.http.get("/metrics")).text:
        await asyncio.sleep(0)


async def test_what_is_not_http_gets_an_error_object(service: Service) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        answer = await until_closed(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    service.answers("abc")
    async with connected(service) as (reader, writer):
        writer.write(post(max_tokens=1) + post(prompt=[]) + post(max_tokens=2))
        statuses = []
        while len(statuses) < 3:
            head = await reader.readuntil(b"\r\n\r\n")
            statuses.append(head.split()[1])
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))
    assert statuses == [b"200", b"400", b"200"]


async def test_too_many_pipelined_requests_end_the_connection_and_its_work(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after = 2
    async with connected(service) as (reader, writer):
        writer.write(post(stream=True))
        await service.generator.paused.wait()
        writer.write(post() * (protocol.MAX_PIPELINED + 2))
        await until_closed(reader)
        await service.generator.idle.wait()
    assert len(service.generator.calls) == 1


async def test_a_client_that_leaves_with_requests_in_line_frees_everything(service: Service) -> None:
    service.answers("abcdef")
    service.generator.pause_after = 2
    async with connected(service) as (_, writer):
        writer.write(post(stream=True) + post() * 3)
        await service.generator.paused.wait()
    await service.generator.idle.wait()
    assert len(service.generator.calls) == 1


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"


@pytest.mark.parametrize("wrapping", [b"0\r\n", b"1;a="], ids=["trailers", "extension of a chunk"])
@pytest.mark.parametrize("line", [b"x: y\r\n" * 1000, b"a" * 4096], ids=["many", "one"])
async def test_what_surrounds_a_body_without_end_is_cut_off(service: Service, wrapping: bytes, line: bytes) -> None:
    sent = 0
    async with connected(service) as (reader, writer):
        writer.write(CHUNKED + wrapping + b"x: " * (wrapping == b"0\r\n"))
        try:
            while not reader.at_eof():
                writer.write(line)
                sent += len(line)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        await until_closed(reader)
    assert sent < 100 * protocol.MAX_HEAD_BYTES, "the kernel's buffers and one read beyond the limit"


async def test_trailers_are_no_headers_of_this_request_or_the_next(service: Service) -> None:
    service.answers("abc")
    end = b"0\r\nx-request-id: smuggled\r\n\r\n"
    body = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1}).encode()
    request = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n" + end
    async with connected(service) as (reader, writer):
        writer.write(request + request)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and b"smuggled" not in head
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))


OFFER = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize("cut", [0, 10, None], ids=["body apart", "body in two", "at once"])
async def test_an_offer_to_speak_another_protocol_is_declined(service: Service, cut: int | None) -> None:
    service.answers("abc")
    plain = post(max_tokens=1)
    offer = plain.replace(HEAD, HEAD + OFFER)
    place = len(offer) if cut is None else offer.index(b"\r\n\r\n") + 4 + cut
    async with connected(service) as (reader, writer):
        writer.write(offer[:place])
        for _ in range(5):
            await asyncio.sleep(0)
        writer.write(offer[place:] + plain)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.split()[1]))


async def test_many_offers_at_once_are_answered_one_after_the_other(service: Service) -> None:
    offer = b"GET /health HTTP/1.1\r\nhost: x\r\n" + OFFER + b"\r\n"
    async with connected(service) as (reader, writer):
        writer.write(offer * protocol.MAX_PIPELINED)
        for _ in range(protocol.MAX_PIPELINED):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"}")
