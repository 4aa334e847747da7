"""Commands and worker infos <-> protobuf messages of worker.proto.

Deadlines travel as the milliseconds that are left: `now` is the sender's clock on the way out and the receiver's
on the way in.
"""

import sys
from array import array

from engine.core.errors import InvalidRequest
from engine.core.messages import (
    Adopt,
    Cancel,
    Command,
    DeliverTicket,
    Drain,
    Generate,
    PeerJoined,
    PeerLeft,
    Prefill,
    Release,
    SendPrefixes,
)
from engine.core.types import Grammar, GrammarKind, KVLayout, Request, Sampling, WorkerInfo
from engine.wire import worker_pb2 as pb

# ---------------------------------------------------------------------------------------------------- requests


def tokens_to_bytes(tokens: "array[int]") -> bytes:
    """Token ids as little-endian int32."""
    if sys.byteorder == "big":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens.tobytes()


def tokens_from_bytes(data: bytes) -> "array[int]":
    """The inverse of `tokens_to_bytes`. Raises InvalidRequest when it is not a whole number of tokens."""
    tokens = array("i")
    if len(data) % tokens.itemsize:
        raise InvalidRequest(f"{len(data)} bytes are not a whole number of tokens", param="tokens")
    tokens.frombytes(data)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


_KIND_TO_PROTO = {
    GrammarKind.JSON_SCHEMA: pb.Grammar.KIND_JSON_SCHEMA,
    GrammarKind.LENIENT_JSON_SCHEMA: pb.Grammar.KIND_LENIENT_JSON_SCHEMA,
    GrammarKind.REGEX: pb.Grammar.KIND_REGEX,
    GrammarKind.LARK: pb.Grammar.KIND_LARK,
}
_KIND_FROM_PROTO = {number: kind for kind, number in _KIND_TO_PROTO.items()}


def _grammar_to_proto(grammar: Grammar | None) -> pb.Grammar | None:
    return None if grammar is None else pb.Grammar(kind=_KIND_TO_PROTO[grammar.kind], source=grammar.source)


def _grammar_from_proto(message: pb.Sampling) -> Grammar | None:
    if not message.HasField("grammar"):
        return None
    kind = _KIND_FROM_PROTO.get(message.grammar.kind)
    if kind is None:  # without it the answer would look like anything
        raise InvalidRequest("this worker does not know that kind of grammar", param="grammar")
    return Grammar(kind, message.grammar.source)


def sampling_to_proto(sampling: Sampling) -> pb.Sampling:
    """Every field; the optional ones only when set."""
    return pb.Sampling(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        bias_tokens=[token for token, _ in sampling.logit_bias],
        bias_values=[value for _, value in sampling.logit_bias],
        seed=sampling.seed,
        stop_token_ids=sampling.stop_token_ids,
        num_logprobs=sampling.num_logprobs,
        num_prompt_logprobs=sampling.num_prompt_logprobs,
        grammar=_grammar_to_proto(sampling.grammar),
    )


def sampling_from_proto(message: pb.Sampling) -> Sampling:
    """The inverse of `sampling_to_proto`. Raises InvalidRequest for parallel fields of unequal length and for an
    unknown kind of grammar.
    """
    if len(message.bias_tokens) != len(message.bias_values):
        raise InvalidRequest("bias_tokens and bias_values differ in length", param="logit_bias")
    return Sampling(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple(zip(message.bias_tokens, message.bias_values, strict=True)),
        seed=message.seed,
        stop_token_ids=tuple(message.stop_token_ids),
        num_logprobs=message.num_logprobs if message.HasField("num_logprobs") else None,
        num_prompt_logprobs=message.num_prompt_logprobs if message.HasField("num_prompt_logprobs") else None,
        grammar=_grammar_from_proto(message),
    )


def request_to_proto(request: Request, now: float) -> pb.Request:
    """`now` is the sender's clock, on which request.deadline_s was set."""
    return pb.Request(
        id=request.id,
        tokens=tokens_to_bytes(request.tokens),
        num_prompt=request.num_prompt,
        sampling=sampling_to_proto(request.sampling),
        deadline_ms=round((request.deadline_s - now) * 1000),
        priority=request.priority,
        cache_salt=request.cache_salt,
        request_id=request.request_id,
    )


def request_from_proto(message: pb.Request, now: float) -> Request:
    """`now` is the receiver's clock: the request arrived now and has deadline_ms left."""
    return Request(
        id=message.id,
        tokens=tokens_from_bytes(message.tokens),
        num_prompt=message.num_prompt,
        sampling=sampling_from_proto(message.sampling),
        arrival_s=now,
        deadline_s=now + message.deadline_ms / 1000,
        priority=message.priority,
        cache_salt=message.cache_salt,
        request_id=message.request_id,
    )


# ------------------------------------------------------------------------------------------------ worker info


def info_to_proto(info: WorkerInfo) -> pb.WorkerInfo:
    """Every field."""
    layout = info.layout
    return pb.WorkerInfo(
        id=info.id,
        incarnation=info.incarnation,
        roles=info.roles,
        address=info.address,
        model=info.model,
        layout=pb.KVLayout(
            model_hash=layout.model_hash,
            num_layers=layout.num_layers,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            page_size=layout.page_size,
            dtype=layout.dtype,
            tp_size=layout.tp_size,
            order=layout.order,
            version=layout.version,
        ),
        num_pages=info.num_pages,
        max_model_len=info.max_model_len,
        transports=[pb.TransportDescriptor(name=name, descriptor=data) for name, data in info.transports],
        topology=[pb.Label(key=key, value=value) for key, value in info.topology],
        version=info.version,
        protocol=info.protocol,
    )


def info_from_proto(message: pb.WorkerInfo) -> WorkerInfo:
    """The inverse of `info_to_proto`."""
    layout = message.layout
    return WorkerInfo(
        id=message.id,
        incarnation=message.incarnation,
        roles=tuple(message.roles),
        address=message.address,
        model=message.model,
        layout=KVLayout(
            model_hash=layout.model_hash,
            num_layers=layout.num_layers,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
            page_size=layout.page_size,
            dtype=layout.dtype,
            tp_size=layout.tp_size,
            order=layout.order,
            version=layout.version,
        ),
        num_pages=message.num_pages,
        max_model_len=message.max_model_len,
        transports=tuple((entry.name, entry.descriptor) for entry in message.transports),
        topology=tuple((label.key, label.value) for label in message.topology),
        version=message.version,
        protocol=message.protocol,
    )


# --------------------------------------------------------------------------------------------------- commands


def command_to_proto(command: Command, now: float) -> pb.Command:
    """`now` is the sender's clock."""
    match command:
        case Generate() | Prefill() | Adopt():
            return _request_command_to_proto(command, now)
        case DeliverTicket(id, ticket):
            return pb.Command(deliver_ticket=pb.DeliverTicket(id=id, ticket=ticket))
        case Cancel(id):
            return pb.Command(cancel=id)
        case Release(id):
            return pb.Command(release=id)
        case PeerJoined(info):
            return pb.Command(peer_joined=info_to_proto(info))
        case PeerLeft(worker_id, incarnation):
            return pb.Command(peer_left=pb.PeerLeft(worker_id=worker_id, incarnation=incarnation))
        case SendPrefixes():
            return pb.Command(send_prefixes=pb.SendPrefixes())
        case Drain(grace_s):
            return pb.Command(drain=pb.Drain(grace_s=grace_s))


def command_from_proto(message: pb.Command, now: float) -> Command | None:
    """`now` is the receiver's clock. None for a kind that this version does not know. Raises InvalidRequest."""
    match message.WhichOneof("kind"):
        case "generate" | "prefill" | "adopt":
            return _request_command_from_proto(message, now)
        case "deliver_ticket":
            return DeliverTicket(message.deliver_ticket.id, message.deliver_ticket.ticket)
        case "cancel":
            return Cancel(message.cancel)
        case "release":
            return Release(message.release)
        case "peer_joined":
            return PeerJoined(info_from_proto(message.peer_joined))
        case "peer_left":
            return PeerLeft(message.peer_left.worker_id, message.peer_left.incarnation)
        case "send_prefixes":
            return SendPrefixes()
        case "drain":
            return Drain(message.drain.grace_s)
        case _:
            return None


def _request_command_to_proto(command: Generate | Prefill | Adopt, now: float) -> pb.Command:
    match command:
        case Generate(request):
            return pb.Command(generate=request_to_proto(request, now))
        case Prefill(request):
            return pb.Command(prefill=request_to_proto(request, now))
        case Adopt(request):
            return pb.Command(adopt=request_to_proto(request, now))


def _request_command_from_proto(message: pb.Command, now: float) -> Command:
    if message.HasField("generate"):
        return Generate(request_from_proto(message.generate, now))
    if message.HasField("prefill"):
        return Prefill(request_from_proto(message.prefill, now))
    return Adopt(request_from_proto(message.adopt, now))
