"""From one EngineConfig to a running engine: the only place that knows all its parts."""

from collections.abc import Callable, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import torch

from engine.attention.base import AttentionBackend, AttentionShape
from engine.attention.choice import FA2_PAGE_MULTIPLE
from engine.attention.select import make_backend
from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.errors import InvalidRequest
from engine.core.executor import Executor
from engine.core.types import KVLayout
from engine.grammar.compiler import Compiler
from engine.grammar.vocabulary import load_vocabulary
from engine.models.base import CausalLM
from engine.models.checkpoint import model_hash
from engine.models.config import AttentionConfig, ModelConfig
from engine.models.fp8 import PRODUCTS, read_kv_scales
from engine.models.hub import resolve_model
from engine.models.llama import Llama
from engine.models.loader import ALONE, Member, Progress, load_model, random_model
from engine.models.quantization_config import FP8
from engine.models.registry import load_config
from engine.models.weights import Rank, parameters
from engine.runtime import memory
from engine.runtime.collective.base import Ranks
from engine.runtime.collective.choose import open_ranks
from engine.runtime.config import KV_DTYPES, EngineConfig
from engine.runtime.executor import RankedExecutor, ThreadedExecutor
from engine.runtime.kv_pool import KVPool
from engine.runtime.rows import RowTable
from engine.runtime.runner import StepRunner
from engine.runtime.warmup import WarmUp, warm_up

if TYPE_CHECKING:  # its kernels are imported only where there is a CUDA device
    from engine.runtime.graphs import StepGraphs

CPU_PAGE_SIZE, CUDA_PAGE_SIZE = 16, 128


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts of one worker's engine. `close` the executor when no step is in flight."""

    core: EngineCore
    executor: Executor
    pool: KVPool
    """Holds `layout` and `num_pages`."""
    scheduler: SchedulerConfig
    """Holds the resolved `max_model_len`."""
    model: ModelConfig
    attention: str
    """Name of the attention backend that runs."""

    def close(self) -> None:
        """Stop the executor's threads."""
        self.executor.close()


def build_engine(config: EngineConfig, progress: Progress | None = None) -> Engine:
    """Load the model that `config` names and assemble an engine around it.

    Args:
        progress: called while weights are read.

    Raises:
        CheckpointError: the checkpoint cannot be served.
        InvalidRequest: the settings do not fit the model or the device.
    """
    folder = resolve_model(config.model)
    facts = load_config(folder, config.max_model_len)
    devices, dtype = rank_devices(config.device, config.parallel.tp_size), _dtype(config, facts)
    quantize = _quantize(config, facts, devices)
    if config.random_weights:
        name = blake2b(f"{facts} {config.seed}".encode(), digest_size=16).hexdigest()
    else:
        name = model_hash(folder, facts)
        facts = replace(facts, attention=replace(facts.attention, kv_scales=read_kv_scales(folder, facts.num_layers)))
    if quantize != (facts.quantization == FP8):  # not the function that the checkpoint names
        name = blake2b(f"{name} {config.formats.quantization}".encode(), digest_size=16).hexdigest()
    if devices[0].type == "cuda":
        # Of the vendor's two libraries the faster one from 33 to 128 rows (2 % of a step of 64), as fast elsewhere.
        torch.backends.cuda.preferred_blas_library("cublaslt")
    ranks = open_ranks(config.parallel.collective, devices) if len(devices) > 1 else None

    def load(rank: int) -> Llama:
        member = ALONE if ranks is None else Member(Rank(rank, len(devices)), ranks.members[rank])
        how: dict[str, Any] = {"dtype": dtype, "device": devices[rank], "quantize": quantize, "member": member}
        if config.random_weights:
            return random_model(facts, seed=config.seed, **how)
        return load_model(folder, facts, progress=progress if rank == 0 else None, **how)  # all read equally much

    return _assemble(config, facts, _in_threads(load, len(devices)), ranks, name)


def _in_threads(load: Callable[[int], Llama], num_ranks: int) -> list[Llama]:
    if num_ranks == 1:
        return [load(0)]
    with ThreadPoolExecutor(num_ranks, thread_name_prefix="load") as threads:
        return list(threads.map(load, range(num_ranks)))


def _assemble(
    config: EngineConfig, facts: ModelConfig, models: Sequence[Llama], ranks: Ranks | None, name: str
) -> Engine:
    """An engine around a model that is on its devices already. `name` is what KVLayout calls model_hash.

    Raises:
        InvalidRequest: the settings do not fit the model or the device.
    """
    devices = [model.weights.embedding_VD.device for model in models]
    device = devices[0]
    layout = KVLayout(
        model_hash=name,
        num_layers=facts.num_layers,
        num_kv_heads=facts.attention.num_kv_heads,
        head_dim=facts.attention.head_dim,
        page_size=config.page_size or _page_size(config, device),
        dtype=KV_DTYPES[config.formats.kv_dtype] or str(_dtype(config, facts)).removeprefix("torch."),
        tp_size=len(devices),
    )
    for each in devices:
        if each.type == "cuda":
            with torch.cuda.device(each):
                torch.cuda.empty_cache()  # what loading needed for a while is free again
    free = min(memory.free_bytes(each) // devices.count(each) for each in devices)
    num_pages = memory.num_pages(config.kv_memory, layout.page_bytes, device, free)
    max_len = memory.max_model_len(config.max_model_len, facts.max_position, num_pages, layout.page_size)
    pool = KVPool(layout, num_pages, devices)
    backends = [
        make_backend(
            config.attention_backend, tensor_NL2SKE, attention_shape(model.config.attention), _dtype(config, facts)
        )
        for model, tensor_NL2SKE in zip(models, pool.tensors_NL2SKE, strict=True)
    ]
    grammars = Compiler(lambda: load_vocabulary(resolve_model(config.model), facts.vocab_size))
    runners = []
    graphs: list[Sequence[StepGraphs]] = []
    for model, backend in zip(models, backends, strict=True):
        place = model.weights.embedding_VD.device
        table = RowTable(config.max_rows, max_len, layout.page_size, pool.filler_page, place, grammars)
        fused = _fused(model, backend)
        graphs.append(_graphs(config, fused, backend, table))
        runners.append(StepRunner(fused, backend, table, graphs[-1], model.ranks))
    executor = ThreadedExecutor(runners[0]) if ranks is None else RankedExecutor(runners, ranks.abort)
    if device.type == "cuda" and config.launching.warm_up:  # of all ranks, by plans like any other
        limits = layout.page_size, num_pages, max_len, config.max_step_tokens
        warm_up(executor, WarmUp(*limits, *_warm_sizes(graphs[0], config.max_rows)))
    scheduler = SchedulerConfig(
        page_size=layout.page_size,
        num_pages=num_pages,
        max_model_len=max_len,
        max_step_tokens=config.max_step_tokens,
        max_rows=config.max_rows,
        max_in_flight=config.launching.max_in_flight,
        max_queued=config.max_queued,
    )
    generations = cast(MutableSequence[int], pool.generations[:num_pages])  # a memoryview is one in all but name
    core = EngineCore(scheduler, executor, model_hash=name, generations=generations, is_compiled=grammars.is_compiled)
    return Engine(core, executor, pool, scheduler, facts, backends[0].name)


def _fused(model: Llama, backend: AttentionBackend) -> CausalLM:
    """The decoder with the kernels of its device, where it has some."""
    weights = model.weights
    if weights.embedding_VD.device.type == "cuda":
        from engine.models.llama_fused import FusedLlama

        return FusedLlama(model.config, weights, model.ranks)
    is_plain = weights.norm_D.dtype == torch.float32 and weights.layers[0].qkv.scale_O is None and model.ranks is None
    if backend.name == "numba" and is_plain:  # compiled kernels can be had
        from engine.models.llama_cpu import LlamaCPU

        return LlamaCPU(model.config, weights)
    return model


def _graphs(
    config: EngineConfig, model: CausalLM, backend: AttentionBackend, table: RowTable
) -> "Sequence[StepGraphs]":
    if table.device.type != "cuda":
        return ()
    from engine.runtime.graphs import DecodeGraphs, GraphMemory
    from engine.runtime.prompt_graphs import PromptGraphs

    memory = GraphMemory(table.device)
    graphs: list[StepGraphs] = []
    if config.launching.decode_graphs and backend.capturable:
        graphs.append(DecodeGraphs(model, backend, table, memory, config.max_rows))
    if config.launching.prompt_graphs and backend.captures_prompts:
        graphs.append(PromptGraphs(model, backend, table, memory, config.max_step_tokens))
    return graphs


def _warm_sizes(graphs: "Sequence[StepGraphs]", max_rows: int) -> tuple[Sequence[int], Sequence[int]]:
    """Rows of decode steps and tokens of prompts that are worth a step before the engine is ready."""
    from engine.runtime.graphs import DecodeGraphs

    decode = [each.sizes for each in graphs if isinstance(each, DecodeGraphs)]
    prompts = [each.sizes for each in graphs if not isinstance(each, DecodeGraphs)]
    few = [size for size in (1, 2, 4, 8) if size <= max_rows]
    return (decode[0] if decode else few), (prompts[0] if prompts else ())


def attention_shape(facts: AttentionConfig) -> AttentionShape:
    """What attention backends need of a model's facts."""
    return AttentionShape(
        num_heads=facts.num_heads,
        num_kv_heads=facts.num_kv_heads,
        head_dim=facts.head_dim,
        softmax_scale=facts.head_dim**-0.5,
        windows=facts.sliding_windows,
        kv_scales=facts.kv_scales,
    )


def resolve_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one.

    Raises:
        InvalidRequest: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest(f"device {name!r} is unknown; choose cpu, cuda or cuda:N", param="device") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidRequest(f"device {name!r} is not supported; choose cpu, cuda or cuda:N", param="device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidRequest(f"no device {name!r} here: {torch.cuda.device_count()} CUDA devices found", param="device")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def rank_devices(name: str, count: int) -> list[torch.device]:
    """The device called `name` and those that follow it, one a rank; on the CPU all are the same.

    Raises:
        InvalidRequest: there are not so many here.
    """
    first = resolve_device(name)
    if first.type == "cpu":
        return [first] * count
    devices = [torch.device("cuda", first.index + rank) for rank in range(count)]
    if devices[-1].index >= torch.cuda.device_count():
        raise InvalidRequest(
            f"{count} ranks from {first} on need more than the {torch.cuda.device_count()} CUDA devices found here",
            param="tp",
        )
    return devices


def _quantize(config: EngineConfig, facts: ModelConfig, devices: Sequence[torch.device]) -> bool:
    """Whether the layers' products are kept in 8 bits. Raises InvalidRequest: a rank's widths do not allow it."""
    wanted = FP8 in (config.formats.quantization, facts.quantization) and config.formats.quantization != "none"
    if wanted and devices[0].type == "cuda":
        from engine.kernels.fp8 import check_widths

        held = parameters(facts, Rank(0, len(devices)))
        check_widths([size for name, each in held.items() if name.endswith(PRODUCTS) for size in each.shape])
    return wanted


def _page_size(config: EngineConfig, device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_PAGE_SIZE
    return FA2_PAGE_MULTIPLE if config.attention_backend == "fa2" else CUDA_PAGE_SIZE


def _dtype(config: EngineConfig, facts: ModelConfig) -> torch.dtype:
    name = facts.dtype if config.dtype == "auto" else config.dtype
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
