"""What only the gRPC transport has: a door that must stay closed to strangers, and a port that may be taken over."""

from collections.abc import Iterator

import grpc
import pytest

from engine.core.errors import TransferFailed
from engine.core.types import KVLayout
from engine.wire import kv_pb2, kv_pb2_grpc
from kv_transfer.host_pool import HostPool
from kv_transfer.transports.base import OpStatus, PageRead, peer_key
from kv_transfer.transports.grpc import GrpcTransport
from kv_transfer.transports.page_stream import CHUNK_BYTES
from kv_transfer.transports.signed import Signer
from tests.contract.transport_rigs import KEY, LAYOUT, NUM_PAGES, Rig, grpc_rig, info_of, page_bytes, stamp

PULL = kv_pb2.PullRequest(pages=[1, 2], layer_begin=0, layer_end=4)


def sign(method: str, source: str, message: kv_pb2.PullRequest | kv_pb2.GenerationsRequest, key: bytes):  # noqa: ANN201
    return Signer(key).sign(method, source, message)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = grpc_rig()
    yield rig
    rig.close()


@pytest.fixture
def stub(rig: Rig) -> Iterator[kv_pb2_grpc.PageTransferStub]:
    with grpc.insecure_channel(rig.source.descriptor().decode()) as channel:
        yield kv_pb2_grpc.PageTransferStub(channel)


def refusal(call: Iterator[object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value.code()


def test_a_signed_request_is_served(rig: Rig, stub: kv_pb2_grpc.PageTransferStub) -> None:
    chunks = stub.Pull(sign("Pull", rig.peer, PULL, KEY))
    assert b"".join(chunk.data for chunk in chunks) == page_bytes(rig.source_pool, 1) + page_bytes(rig.source_pool, 2)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda peer: kv_pb2.SignedRequest(body=PULL.SerializeToString()),
        lambda peer: kv_pb2.SignedRequest(body=PULL.SerializeToString(), mac=bytes(32)),
        lambda peer: sign("Pull", peer, PULL, b"another cluster's key"),
        lambda peer: sign("Pull", peer_key("source", 2), PULL, KEY),
        lambda peer: sign("Generations", peer, PULL, KEY),
    ],
    ids=["unsigned", "zeros", "other key", "other incarnation", "other method"],
)
def test_nobody_else_reads_memory(rig: Rig, stub: kv_pb2_grpc.PageTransferStub, request_of) -> None:  # noqa: ANN001
    assert refusal(stub.Pull(request_of(rig.peer))) is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caught:
        stub.Generations(sign("Pull", rig.peer, kv_pb2.GenerationsRequest(pages=[1]), KEY))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_signature_covers_every_byte(rig: Rig, stub: kv_pb2_grpc.PageTransferStub) -> None:
    signed = sign("Pull", rig.peer, PULL, KEY)
    more = kv_pb2.PullRequest(pages=[1, 2, 3], layer_begin=0, layer_end=4).SerializeToString()
    for change in ({"body": more}, {"number": signed.number + 1}, {"reader": bytes(16)}, {"reader": signed.reader[1:]}):
        fields = {"body": signed.body, "mac": signed.mac, "reader": signed.reader, "number": signed.number} | change
        assert refusal(stub.Pull(kv_pb2.SignedRequest(**fields))) is grpc.StatusCode.UNAUTHENTICATED


def test_a_recorded_request_is_not_served_again(rig: Rig, stub: kv_pb2_grpc.PageTransferStub) -> None:
    signed = sign("Pull", rig.peer, PULL, KEY)
    assert len(list(stub.Pull(signed))) == 1
    with pytest.raises(grpc.RpcError, match="served before"):
        list(stub.Pull(signed))


@pytest.mark.parametrize(
    ("pages", "layers"),
    [([], (0, 4)), ([NUM_PAGES + 4], (0, 4)), ([2**32 - 1], (0, 4)), ([1], (0, 5)), ([1], (2, 2)), ([1], (3, 1))],
)
def test_pages_and_layers_outside_the_pool_are_refused(
    rig: Rig, stub: kv_pb2_grpc.PageTransferStub, pages: list[int], layers: tuple[int, int]
) -> None:
    pull = kv_pb2.PullRequest(pages=pages, layer_begin=layers[0], layer_end=layers[1])
    assert refusal(stub.Pull(sign("Pull", rig.peer, pull, KEY))) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("part", [(0, 17, 0, 2), (16, 1, 0, 2), (0, 0, 0, 2), (0, 16, 1, 2), (2**32 - 1, 1, 0, 1)])
def test_parts_outside_a_page_are_refused(
    rig: Rig, stub: kv_pb2_grpc.PageTransferStub, part: tuple[int, int, int, int]
) -> None:
    position, num_positions, head, num_heads = part
    cut = kv_pb2.PagePart(position=position, num_positions=num_positions, head=head, num_heads=num_heads)
    pull = kv_pb2.PullRequest(pages=[1], layer_begin=0, layer_end=4, part=cut)
    assert refusal(stub.Pull(sign("Pull", rig.peer, pull, KEY))) is grpc.StatusCode.INVALID_ARGUMENT


def test_ranks_that_a_worker_does_not_have_are_refused(rig: Rig, stub: kv_pb2_grpc.PageTransferStub) -> None:
    pull = kv_pb2.PullRequest(pages=[1], layer_begin=0, layer_end=4, rank=1)
    assert refusal(stub.Pull(sign("Pull", rig.peer, pull, KEY))) is grpc.StatusCode.INVALID_ARGUMENT


def test_an_old_read_never_reaches_a_new_worker_on_the_same_port(rig: Rig) -> None:
    address = rig.source.descriptor().decode()
    rig.source.close()
    pool = HostPool(LAYOUT, NUM_PAGES)
    stamp(pool, 1, 77)
    successor = GrpcTransport(pool, peer_key("source", 2), KEY, bind=address)
    assert successor.descriptor().decode() == address
    for op in range(1, 100):
        rig.reader.read_pages(PageRead(op, rig.peer, (1,), (1,), 0, 4))
        ended = rig.wait(op)[op]
        assert (ended.status, ended.peer_lost) == (OpStatus.FAILED, True)
        if "UNAUTHENTICATED" in ended.message:
            break
    assert "incarnation" in ended.message
    assert page_bytes(rig.reader_pool, 1) == bytes(LAYOUT.page_bytes)
    rig.reader.connect(info_of("source", 2, successor))
    rig.reader.read_pages(PageRead(200, peer_key("source", 2), (1,), (1,), 0, 4))
    assert rig.wait(200)[200].status is OpStatus.DONE
    assert page_bytes(rig.reader_pool, 1) == page_bytes(pool, 1)
    successor.close()


def test_two_workers_cannot_share_a_port(rig: Rig) -> None:
    with pytest.raises(TransferFailed, match="cannot listen on"):
        GrpcTransport(HostPool(LAYOUT, 1), "other@1", KEY, bind=rig.source.descriptor().decode())


def test_pages_larger_than_a_chunk_cross_in_parts() -> None:
    layout = KVLayout("m", num_layers=2, num_kv_heads=2, head_dim=128, page_size=1536, dtype="float32")
    assert layout.page_bytes > 2 * CHUNK_BYTES
    rig = grpc_rig(layout)
    rig.reader.read_pages(PageRead(1, rig.peer, (3, 9), (5, 6), 0, 2))
    rig.reader.read_pages(PageRead(2, rig.peer, (4,), (7,), 1, 2))
    rig.wait(1, 2)
    assert page_bytes(rig.reader_pool, 5) == page_bytes(rig.source_pool, 3)
    assert page_bytes(rig.reader_pool, 6) == page_bytes(rig.source_pool, 9)
    assert bytes(rig.reader_pool.read(7, 1, 2)) == bytes(rig.source_pool.read(4, 1, 2))
    rig.close()


def test_closing_twice_is_fine_and_the_advertised_host_is_told() -> None:
    transport = GrpcTransport(HostPool(LAYOUT, 1), "a@1", KEY, bind="127.0.0.1:0", advertise_host="node-7")
    assert transport.descriptor().decode().startswith("node-7:")
    transport.close()
    transport.close()
