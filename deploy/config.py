"""Frozen settings of a whole service, and the command-line flags that fill them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cluster import EMBEDDED
from engine.core.errors import InvalidRequest
from engine.runtime.config import COLLECTIVES, KV_DTYPES, EngineConfig, Formats, Parallel, parse_kv_memory
from engine.server.config import TRANSPORTS
from engine.server.kv_events.config import FeedConfig, parse_feed
from router.dialect.dialect import REASONING_PARSERS, TOOL_PARSERS
from router.doors.config import DoorConfig
from router.logs import LOG_FORMATS
from router.policies.registry import POLICY_NAMES
from router.server_config import GatewayConfig, tls_of


@dataclass(frozen=True, slots=True)
class Links:
    """What workers say to others than routers."""

    transport: str = "auto"
    """How pages move between them."""
    kv_events: FeedConfig | None = None
    """Where the first worker publishes prefix events; each further one two ports on, unless it takes free ones."""

    def feed_of(self, number: int) -> FeedConfig | None:
        """Of worker `number`, counted over all of them."""
        feed = self.kv_events
        if feed is None or not feed.port:
            return feed
        return replace(feed, port=feed.port + 2 * number, replay_port=feed.replay_port + 2 * number)


@dataclass(frozen=True, slots=True)
class Routing:
    """Who stands before the workers."""

    policy: str = "cost"
    num_routers: int = 1
    """Before the same workers, each with ports and an index of its own."""


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What runs where. Worker processes share one engine config; each has its own pages."""

    engine: EngineConfig
    num_prefill: int = 1
    num_decode: int = 1
    colocated: bool = False
    """`num_decode` workers that each run whole requests; num_prefill is not used."""
    decode_tp: int | None = None
    """Ranks of a decode worker, where there are others than engine.parallel.tp_size."""
    host: str = "127.0.0.1"
    port: int = 8000
    """Of HTTP; 0 takes any free one."""
    grpc_port: int = 8001
    admin_port: int = 0
    """Of the router's admin door, on loopback; 0 takes any free one."""
    name: str = ""
    """See `model_name`."""
    links: Links = field(default_factory=Links)
    routing: Routing = field(default_factory=Routing)
    doors: DoorConfig = field(default_factory=DoorConfig)
    ray_address: str = EMBEDDED
    gateway: GatewayConfig = field(default_factory=GatewayConfig)

    def __post_init__(self) -> None:
        counts = {"prefill": self.num_prefill, "decode": self.num_decode, "decode-tp": self.decode_tp or 1}
        for name, count in (counts | {"routers": self.routing.num_routers}).items():
            if count < 1:
                raise InvalidRequest(f"must be at least 1, not {count}", param=name)
        for name, port in (("port", self.port), ("grpc-port", self.grpc_port), ("admin-port", self.admin_port)):
            if not 0 <= port <= 65535:
                raise InvalidRequest(f"must be 0 to 65535, not {port}", param=name)
        if self.links.kv_events and self.links.kv_events.port + 2 * self.num_workers > 65_536:
            raise InvalidRequest(f"{self.num_workers} workers need two ports each", param="kv-events")
        if self.port == self.grpc_port != 0:
            raise InvalidRequest(f"HTTP and gRPC cannot share {self.port}", param="grpc-port")
        for name, value, choices in (
            ("transport", self.links.transport, TRANSPORTS),
            ("policy", self.routing.policy, POLICY_NAMES),
            ("log-format", self.gateway.log_format or LOG_FORMATS[0], LOG_FORMATS),
            ("tool-parser", self.doors.tool_parser, TOOL_PARSERS),
            ("reasoning-parser", self.doors.reasoning_parser, REASONING_PARSERS),
        ):
            if value not in choices:
                raise InvalidRequest(f"must be one of {', '.join(choices)}, not {value!r}", param=name)

    @property
    def model_name(self) -> str:
        """What clients call the model: `name`, else the last part of its path or hub id."""
        return self.name or self.engine.model.rstrip("/").rpartition("/")[2]

    @property
    def num_workers(self) -> int:
        """Worker processes."""
        return self.num_decode if self.colocated else self.num_prefill + self.num_decode

    @property
    def prefill_ranks(self) -> int:
        """Of each prefill worker."""
        return self.engine.parallel.tp_size

    @property
    def decode_ranks(self) -> int:
        """Of each decode worker, or of each colocated one."""
        return self.decode_tp or self.engine.parallel.tp_size

    @property
    def num_ranks(self) -> int:
        """Of all workers together: the GPUs that they need."""
        return self.num_decode * self.decode_ranks + (0 if self.colocated else self.num_prefill * self.prefill_ranks)


@dataclass(frozen=True, slots=True)
class Flag:
    """One command-line flag: --name with dashes for underscores."""

    name: str
    kind: Any
    default: Any
    help: str


FLAGS = (
    Flag("model", str, "builtin", "Checkpoint folder, Hugging Face hub id, or the built-in model."),
    Flag("model_name", str, "", "What clients call the model; the last part of --model when left out."),
    Flag("prefill", int, 1, "Prefill workers."),
    Flag("decode", int, 1, "Decode workers."),
    Flag("routers", int, 1, "Routers before the same workers; each further one has ports ten above the last one's."),
    Flag("colocated", bool, False, "Run both roles in each of --decode workers; no pages move."),
    Flag("host", str, "127.0.0.1", "Address to listen on; 0.0.0.0 for all interfaces."),
    Flag("port", int, 8000, "HTTP port; 0 takes a free one."),
    Flag("grpc_port", int, 8001, "gRPC port; 0 takes a free one."),
    Flag("admin_port", int, 0, "Port for `baton drain` and the like, on loopback; 0 takes a free one."),
    Flag("tp", int, 1, "Devices of one host that compute a worker's model together (tensor parallel)."),
    Flag("decode_tp", int | None, None, "The same for decode workers; --tp when left out."),
    Flag("collective", str, "auto", f"How the GPUs of a worker sum up: {', '.join(COLLECTIVES)}."),
    Flag("device", str, "auto", "cpu, cuda, or auto: CUDA where there is a GPU for each worker."),
    Flag("dtype", str, "auto", "float32, bfloat16, float16; auto is the checkpoint's own."),
    Flag("kv_dtype", str, "auto", f"Of KV pages: {', '.join(KV_DTYPES)}; auto is the dtype."),
    Flag("quantization", str, "auto", "fp8: 8-bit weights; none: never; auto: where the checkpoint has them."),
    Flag("page_size", int | None, None, "Tokens in a KV page; 16 on CPU and 128 on CUDA when left out."),
    Flag("kv_memory", str | None, None, "KV pages on each device of a worker: bytes (1GiB on CPU) or a share (0.9)."),
    Flag("transport", str, "auto", f"How pages move between workers: {', '.join(TRANSPORTS)}."),
    Flag("kv_events", str, "", "Workers publish prefix events: tcp://HOST:PORT or curve://HOST:PORT; 0: free ports."),
    Flag("policy", str, "cost", f"How workers are chosen; cost: by expected ms. One of {', '.join(POLICY_NAMES)}."),
    Flag("tenants", str | None, None, "TOML file of tenants and their keys' hashes; everybody may call when left out."),
    Flag("tls_cert", str | None, None, "PEM file: TLS at the HTTP and gRPC doors; needs --tls-key."),
    Flag("tls_key", str | None, None, "PEM file: the key of --tls-cert."),
    Flag("tls_client_ca", str | None, None, "PEM file: clients must show a certificate of this authority."),
    Flag("cluster_tls", str | None, None, "Folder with tls.crt, tls.key, ca.crt on each node: mutual TLS inside."),
    Flag("otlp_endpoint", str | None, None, "Base URL of an OpenTelemetry collector that gets traces of requests."),
    Flag("log_format", str, "", "Log a line for each request: text or json; only warnings are logged when left out."),
    Flag("tool_parser", str, "auto", f"How the model writes calls of tools: {', '.join(TOOL_PARSERS)}."),
    Flag("reasoning_parser", str, "auto", f"How it writes what it thinks: {', '.join(REASONING_PARSERS)}."),
    Flag("max_model_len", int | None, None, "Tokens of prompt and answer together; the model's own when left out."),
    Flag("max_step_tokens", int, 2048, "Tokens that one step computes: the chunk size of prefill."),
    Flag("attention_backend", str, "auto", "Attention kernels; auto takes the best that the device can run."),
)  # fmt: skip


def service_config(values: dict[str, Any], *, ray_address: str) -> ServiceConfig:
    """The config from flag values by name. Raises InvalidRequest naming the flag at fault."""
    kv_memory = values["kv_memory"]
    engine = EngineConfig(
        model=values["model"],
        device=values["device"],
        dtype=values["dtype"],
        formats=Formats(values["kv_dtype"], values["quantization"]),
        page_size=values["page_size"],
        kv_memory=None if kv_memory is None else parse_kv_memory(kv_memory),
        max_model_len=values["max_model_len"],
        max_step_tokens=values["max_step_tokens"],
        attention_backend=values["attention_backend"],
        parallel=Parallel(values["tp"], values["collective"]),
    )
    return ServiceConfig(
        engine=engine,
        num_prefill=values["prefill"],
        num_decode=values["decode"],
        colocated=values["colocated"],
        decode_tp=values["decode_tp"],
        host=values["host"],
        port=values["port"],
        grpc_port=values["grpc_port"],
        admin_port=values["admin_port"],
        name=values["model_name"],
        links=Links(values["transport"], parse_feed(values["kv_events"])),
        routing=Routing(values["policy"], values["routers"]),
        doors=DoorConfig(tool_parser=values["tool_parser"], reasoning_parser=values["reasoning_parser"]),
        ray_address=ray_address,
        gateway=GatewayConfig(
            _path(values["tenants"]),
            values["otlp_endpoint"],
            log_format=values["log_format"],
            tls=tls_of(*(_path(values[name]) for name in ("tls_cert", "tls_key", "tls_client_ca", "cluster_tls"))),
        ),
    )


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given).absolute()


def as_command(
    name: str, run: Callable[[dict[str, Any]], None], flags: tuple[Flag, ...] = FLAGS
) -> Callable[..., None]:
    """A function that typer shows as `name` with one option a flag; it passes their values to `run` by name."""

    def command(**values: Any) -> None:
        run(values)

    parameters = [
        inspect.Parameter(
            flag.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=flag.default,
            annotation=Annotated[flag.kind, typer.Option(f"--{flag.name.replace('_', '-')}", help=flag.help)],
        )
        for flag in flags
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = name, run.__doc__
    return command
