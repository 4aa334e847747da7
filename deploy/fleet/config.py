"""CONFIG.yaml of `baton up`: its schema, strictly read. Whatever is wrong is one line that names the key."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.fleet.autoscale import Bounds, Objectives, ScaleConfig
from engine.core.errors import InvalidRequest
from engine.runtime.config import EngineConfig, Formats, Parallel, parse_kv_memory
from router.doors.config import DoorConfig
from router.policies.registry import POLICY_NAMES
from router.server_config import GatewayConfig, RouterTls, tls_of

ROUTER_POOL = "router"
ROLES = ("prefill", "decode")
_NAME = r"^[a-z]([a-z0-9-]*[a-z0-9])?$"
Name = Annotated[str, Field(pattern=_NAME, max_length=40)]
Count = Annotated[int, Field(ge=0, le=4096)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(gt=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    """A mapping of the file; a key that it does not know is an error, and no value is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class EngineOptions(_Section):
    """Of the engine, as the flags of `baton serve` of the same names; a pool's own count for it instead."""

    device: str | None = None
    dtype: str | None = None
    kv_dtype: str | None = None
    quantization: str | None = None
    page_size: Positive | None = None
    kv_memory: str | None = None
    max_model_len: Positive | None = None
    max_step_tokens: Positive | None = None
    max_rows: Positive | None = None
    attention_backend: str | None = None
    collective: str | None = None


class PoolConfig(_Section):
    """Workers of one shape."""

    role: Literal["prefill", "decode"] | None = None
    """The pool's name when left out."""
    replicas: Count = 1
    tp_size: Positive = 1
    gpus: Amount | None = None
    """Of one worker, on one node. Left out: tp_size, and none for device cpu."""
    cpus: Amount = 1.0
    memory: str | None = None
    """What Ray shall set aside for one worker, such as 16GiB; nodes must say how much they have."""
    resources: dict[str, Amount] = {}
    """Custom resources of Ray that its node must offer."""
    labels: dict[str, str] = {}
    """Labels that its node must have."""
    transport: Literal["auto", "nixl", "grpc", "local"] = "auto"
    engine: EngineOptions = EngineOptions()
    placement: Literal["spread", "pack"] = "spread"
    topology: str = ""
    """A node label (a rack's, say) that placement goes by instead of nodes."""
    max_surge: Count = 1
    max_unavailable: Count = 0


class RouterConfig(_Section):
    """The routers. The first one listens on these ports, the i-th one 10 * i above them."""

    replicas: Count = 1
    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port = 8001
    policy: str = "cost"
    tenants: str | None = None
    tool_parser: str = "auto"
    reasoning_parser: str = "auto"
    log_format: str = ""
    cpus: Amount = 0.0
    resources: dict[str, Amount] = {}
    labels: dict[str, str] = {}
    drain_s: Amount = 30.0
    """For answers under way when a router is told to end."""


class TlsConfig(_Section):
    """Files as every node has them; see docs/security.md."""

    cert: str | None = None
    key: str | None = None
    """PEM files of the routers' doors."""
    client_ca: str | None = None
    """Clients must show a certificate of this authority."""
    cluster: str | None = None
    """Folder with tls.crt, tls.key and ca.crt: mutual TLS between routers and workers."""

    @property
    def files(self) -> RouterTls:
        """Raises InvalidRequest."""
        given = (self.cert, self.key, self.client_ca, self.cluster)
        return tls_of(*(None if path is None else Path(path) for path in given))


class RestartOptions(_Section):
    """See deploy.fleet.plan.Restart."""

    max_restarts: Count = 5
    first_s: Amount = 0.1
    max_s: Amount = 10.0
    healthy_after_s: Amount = 10.0


class BoundsConfig(_Section):
    """Of one pool."""

    min: Positive = 1
    max: Positive


class AutoscaleConfig(_Section):
    """See deploy.fleet.autoscale. Only pools that are named here are changed."""

    pools: dict[str, BoundsConfig]
    every_s: AboveZero = 2.0
    ttft_s: AboveZero = 1.0
    itl_s: AboveZero = 0.1
    attainment: Part = 0.95
    max_busy: Share = 0.8
    max_pages: Share = 0.8
    low: Part = 0.6
    up_after_s: Amount = 5.0
    down_after_s: Amount = 60.0
    cooldown_s: Amount = 30.0
    max_step: Positive = 2

    @property
    def bounds(self) -> dict[str, Bounds]:
        """By pool."""
        return {name: Bounds(each.min, each.max) for name, each in self.pools.items()}

    @property
    def objectives(self) -> Objectives:
        """What workers shall reach."""
        return Objectives(self.ttft_s, self.itl_s, self.attainment, max_busy=self.max_busy, max_pages=self.max_pages)

    @property
    def scale(self) -> ScaleConfig:
        """When to change."""
        return ScaleConfig(self.low, self.up_after_s, self.down_after_s, self.cooldown_s, self.max_step)


class FleetConfig(_Section):
    """The whole file."""

    pools: dict[Name, PoolConfig]
    name: Name = "baton"
    """Of the service: Ray's namespace of its actors is baton-NAME."""
    model: str = "builtin"
    model_name: str = ""
    """What clients call it; the last part of `model` when left out."""
    engine: EngineOptions = EngineOptions()
    routers: RouterConfig = RouterConfig()
    tls: TlsConfig = TlsConfig()
    restart: RestartOptions = RestartOptions()
    drain_s: Amount = 60.0
    """For a worker that leaves: what runs there moves or ends within this."""
    place_s: Amount = 30.0
    """`scale` and `update` wait this long for room before they say what lacks."""
    control_port: Port = 0
    """Of the door of `baton scale` and the like, on loopback; 0 takes a free one."""
    autoscale: AutoscaleConfig | None = None

    @property
    def served_name(self) -> str:
        """See `model_name`."""
        return self.model_name or self.model.rstrip("/").rpartition("/")[2]

    def role_of(self, pool: str) -> str:
        """prefill, decode, or router."""
        return ROUTER_POOL if pool == ROUTER_POOL else self.pools[pool].role or pool

    def count_of(self, pool: str) -> int:
        """What the file asks for."""
        return self.routers.replicas if pool == ROUTER_POOL else self.pools[pool].replicas

    def engine_of(self, pool: str) -> EngineConfig:
        """Of one worker. Raises InvalidRequest."""
        shape = self.pools[pool]
        given: dict[str, Any] = self.engine.model_dump(exclude_none=True) | shape.engine.model_dump(exclude_none=True)
        formats = Formats(given.pop("kv_dtype", "auto"), given.pop("quantization", "auto"))
        parallel = Parallel(shape.tp_size, given.pop("collective", "auto"))
        if "kv_memory" in given:
            given["kv_memory"] = parse_kv_memory(given["kv_memory"])
        return EngineConfig(model=self.model, formats=formats, parallel=parallel, **given)

    @property
    def gateway(self) -> GatewayConfig:
        """Of every router."""
        tenants = None if self.routers.tenants is None else Path(self.routers.tenants).absolute()
        return GatewayConfig(tenants, None, log_format=self.routers.log_format, tls=self.tls.files)

    @property
    def doors(self) -> DoorConfig:
        """Of every router."""
        return DoorConfig(tool_parser=self.routers.tool_parser, reasoning_parser=self.routers.reasoning_parser)


def read_config(path: Path) -> FleetConfig:
    """Raises InvalidRequest: one line, with the file and the key that is wrong."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return config_from(values)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error.message}") from error


def config_from(values: object) -> FleetConfig:
    """The config from plain values, as YAML or JSON give them. Raises InvalidRequest."""
    try:
        config = FleetConfig.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(_one_line(error)) from None
    _check(config)
    return config


def _one_line(error: ValidationError) -> str:
    """The first thing that is wrong: the key, then what it should be."""
    errors = error.errors(include_url=False, include_context=False)
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])  # a typo explains the rest
    place = [str(part) for part in first["loc"] if part != "[key]"]
    what = "no such key" if first["type"] == "extra_forbidden" else first["msg"][:1].lower() + first["msg"][1:]
    given = first["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float) and first["type"] != "extra_forbidden" else ""
    return f"{'.'.join(place) or 'the file'}: {what}{shown}"


def _check(config: FleetConfig) -> None:
    """What the types cannot say. Raises InvalidRequest."""
    if not config.pools:
        raise InvalidRequest("pools: name at least one")
    for name, pool in config.pools.items():
        key = f"pools.{name}"
        if name == ROUTER_POOL:
            raise InvalidRequest(f"{key}: this name is taken; routers have a section of their own")
        if config.role_of(name) not in ROLES:
            raise InvalidRequest(f"{key}.role: say prefill or decode, as the pool's name does not")
        if pool.max_surge + pool.max_unavailable < 1:
            raise InvalidRequest(f"{key}.max_surge: 0 needs max_unavailable above 0, else no update gets on")
        _check_engine(config, name)
    if all(config.role_of(name) != "decode" for name in config.pools):
        raise InvalidRequest("pools: at least one must be of the role decode")
    if config.routers.policy not in POLICY_NAMES:
        raise InvalidRequest(f"routers.policy: one of {', '.join(POLICY_NAMES)}, not {config.routers.policy!r}")
    _check_tls(config.tls)
    if config.routers.port == config.routers.grpc_port != 0:
        raise InvalidRequest(f"routers.grpc_port: HTTP has {config.routers.port} already")
    for name, bounds in (config.autoscale.pools if config.autoscale else {}).items():
        _check_bounds(config, name, bounds)


def _check_tls(tls: TlsConfig) -> None:
    try:
        _ = tls.files
    except InvalidRequest as error:
        raise InvalidRequest(f"tls: {error.message}") from error


def _check_engine(config: FleetConfig, pool: str) -> None:
    memory = config.pools[pool].memory
    try:
        if memory is not None and not isinstance(parse_kv_memory(memory), int):
            raise InvalidRequest(f"{memory!r} is a share; say how many bytes, such as 16GiB")
    except InvalidRequest as error:
        raise InvalidRequest(f"pools.{pool}.memory: {error.message}") from error
    try:
        config.engine_of(pool)
    except InvalidRequest as error:
        raise InvalidRequest(f"pools.{pool}.engine.{error.param or 'dtype'}: {error.message}") from error


def _check_bounds(config: FleetConfig, pool: str, bounds: BoundsConfig) -> None:
    key = f"autoscale.pools.{pool}"
    if pool not in config.pools:
        raise InvalidRequest(f"{key}: there is no such pool")
    if bounds.min > bounds.max:
        raise InvalidRequest(f"{key}.min: {bounds.min} is above max, {bounds.max}")
    if not bounds.min <= config.pools[pool].replicas <= bounds.max:
        raise InvalidRequest(f"{key}: replicas, {config.pools[pool].replicas}, is not between min and max")
