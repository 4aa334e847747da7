"""What the processes of a pool are started from, and what they need of a node."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from deploy.actors import DecodeWorker, Endpoints, Place, PrefillWorker, Router
from deploy.cluster import ROUTER_RESOURCE, ROUTER_SHARE
from deploy.fleet.config import ROUTER_POOL, FleetConfig
from deploy.fleet.placing import Need, Strategy
from deploy.fleet.plan import Pool, Restart
from deploy.launcher import RayProcess
from deploy.tags import Tag
from engine.core.errors import InvalidRequest
from engine.models.checkpoint import model_hash, stored_tensors
from engine.models.hub import resolve_model
from engine.models.registry import load_config
from engine.models.weights import Rank, parameters
from engine.runtime.config import EngineConfig, parse_kv_memory
from engine.server.config import WorkerConfig
from router.config import RouterConfig
from router.server_config import RouterServerConfig

PORT_STEP = 10
_TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What of a model on disk decides who works with whom."""

    weights: str
    """See engine.models.checkpoint.model_hash."""
    text: str
    """Of its tokenizer and chat template: what routers read."""


@dataclass(frozen=True, slots=True)
class Site:
    """What of the cluster the processes are told."""

    cluster_key: bytes
    has_gpus: bool
    offers_router_node: bool
    """Some node has ROUTER_RESOURCE: clients are told of that one."""
    only_node: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """Of one pool."""

    pool: str
    role: str
    version: str
    model: ModelFacts
    need: Need
    strategy: Strategy
    drain_s: float
    config: WorkerConfig | None
    """Of a worker, but for its id; None for routers."""
    place: Place
    is_lost: bool = False
    """Only the tag of what was started is known, by an earlier controller; the next start is by another one."""

    @property
    def tag(self) -> Tag:
        """What a process that is started from it says of itself."""
        return Tag(self.pool, self.version, self.model.weights, self.need.resources)

    def as_tagged(self, tag: Tag) -> "Recipe":
        """Of a process that an earlier controller started from that."""
        if tag == self.tag:
            return self
        return replace(
            self,
            pool=tag.pool,
            version=tag.version,
            model=replace(self.model, weights=tag.model),
            need=replace(self.need, resources=tag.resources),
            is_lost=True,
        )

    def worker(self, id: str, options: Mapping[str, object]) -> RayProcess:
        """One that is not started yet."""
        assert self.config is not None
        config = replace(self.config, worker_id=id)
        actor = PrefillWorker if self.role == "prefill" else DecodeWorker
        return RayProcess(actor, lambda: (config, self.place), options=options, tag=self.tag)


def model_facts(config: FleetConfig) -> ModelFacts:
    """Fetch the model and look at it. Raises CheckpointError, InvalidRequest."""
    folder = resolve_model(config.model)
    facts = load_config(folder, config.engine.max_model_len)
    stored_tensors(folder)
    for name, pool in config.pools.items():
        try:
            parameters(facts, Rank(0, pool.tp_size))
        except InvalidRequest as error:
            raise InvalidRequest(f"pools.{name}.tp_size: {error.message}") from error
    return ModelFacts(model_hash(folder, facts), _text_hash(folder))


def recipes(config: FleetConfig, model: ModelFacts, site: Site) -> dict[str, Recipe]:
    """By pool, the routers' among them."""
    found = {name: _worker_recipe(config, name, model, site) for name in config.pools}
    found[ROUTER_POOL] = _router_recipe(config, model, site)
    return found


def wanted(config: FleetConfig, recipe: Recipe, count: int) -> Pool:
    """The pool as the reconciler sees it."""
    if recipe.pool == ROUTER_POOL:
        return Pool(ROUTER_POOL, count, recipe.version)
    shape = config.pools[recipe.pool]
    return Pool(recipe.pool, count, recipe.version, shape.max_surge, shape.max_unavailable)


def restart_of(config: FleetConfig) -> Restart:
    """See deploy.fleet.plan."""
    options = config.restart
    return Restart(options.max_restarts, options.first_s, options.max_s, options.healthy_after_s)


def router_config(
    config: FleetConfig, index: int, site: Site, known: Endpoints | None, max_model_len: int | None
) -> RouterServerConfig:
    """Of the router at that place. `known` is where it listened before, so that clients find its successor."""
    options = config.routers
    return RouterServerConfig(
        model=Path(),
        model_name=config.served_name,
        cluster_key=site.cluster_key,
        max_model_len=max_model_len,
        host=options.host,
        port=known.http_port if known else port_at(options.port, index),
        grpc_port=known.grpc_port if known else port_at(options.grpc_port, index),
        admin_port=0,
        policy=options.policy,
        gateway=config.gateway,
        doors=config.doors,
        limits=RouterConfig(salt_key=site.cluster_key),
    )


def port_at(first: int, index: int) -> int:
    """Of router `index`, where the first one has `first`; 0 is any free one for all."""
    return first + PORT_STEP * index if first else 0


def _worker_recipe(config: FleetConfig, pool: str, model: ModelFacts, site: Site) -> Recipe:
    shape, engine = config.pools[pool], config.engine_of(pool)
    on_gpus = engine.device.startswith("cuda") or (engine.device == "auto" and site.has_gpus)
    engine = replace(engine, device="cuda" if on_gpus else "cpu")
    gpus = shape.gpus if shape.gpus is not None else float(shape.tp_size if on_gpus else 0)
    resources = {"CPU": shape.cpus, "GPU": gpus, **shape.resources}
    if shape.memory is not None:
        resources["memory"] = float(parse_kv_memory(shape.memory))
    resources = {name: amount for name, amount in resources.items() if amount}
    return Recipe(
        pool=pool,
        role=config.role_of(pool),
        version=_version(model, engine, shape.transport, resources),
        model=model,
        need=Need(resources, shape.labels),
        strategy=Strategy(shape.placement, shape.topology),
        drain_s=config.drain_s,
        config=WorkerConfig(
            engine=engine,
            worker_id=pool,
            cluster_key=site.cluster_key,
            model_name=config.served_name,
            transport=shape.transport,
            drain_grace_s=config.drain_s,
            tls=config.gateway.tls.cluster,
        ),
        place=Place(max(1, int(shape.cpus)), is_only_node=site.only_node),
    )


def _router_recipe(config: FleetConfig, model: ModelFacts, site: Site) -> Recipe:
    options = config.routers
    resources = {"CPU": options.cpus, **options.resources}
    if site.offers_router_node and not options.resources and not options.labels:
        resources[ROUTER_RESOURCE] = ROUTER_SHARE
    return Recipe(
        pool=ROUTER_POOL,
        role=ROUTER_POOL,
        version="",
        model=model,
        need=Need({name: amount for name, amount in resources.items() if amount}, options.labels),
        strategy=Strategy(),
        drain_s=options.drain_s,
        config=None,
        place=Place(1, is_only_node=site.only_node),
    )


def router_process(recipe: Recipe, args: Any, options: Mapping[str, object]) -> RayProcess:
    """One that is not started yet; `args` is called when it starts."""
    return RayProcess(Router, args, options=options, tag=recipe.tag)


def _version(model: ModelFacts, engine: EngineConfig, transport: str, resources: Mapping[str, float]) -> str:
    """Equal for processes that need not be replaced by each other, whatever their role."""
    text = f"{model.weights} {engine} {transport} {sorted(resources.items())}"
    return blake2b(text.encode(), digest_size=6).hexdigest()


def _text_hash(folder: Path) -> str:
    digest = blake2b(digest_size=6)
    for name in _TEXT_FILES:
        path = folder / name
        data = path.read_bytes() if path.is_file() else b""
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
