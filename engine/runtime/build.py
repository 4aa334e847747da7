"""From one EngineConfig to a running engine: the only place that knows all its parts."""

from collections.abc import MutableSequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

import torch

from engine.attention.base import AttentionBackend, AttentionShape
from engine.attention.choice import FA2_PAGE_MULTIPLE
from engine.attention.select import make_backend
from engine.core.config import SchedulerConfig
from engine.core.engine import EngineCore
from engine.core.errors import InvalidRequest
from engine.core.types import KVLayout
from engine.grammar.compiler import Compiler
from engine.grammar.vocabulary import load_vocabulary
from engine.models.base import CausalLM
from engine.models.checkpoint import model_hash
from engine.models.config import AttentionConfig, ModelConfig
from engine.models.fp8 import PRODUCTS, read_kv_scales
from engine.models.hub import resolve_model
from engine.models.llama import Llama
from engine.models.loader import Progress, load_model, random_model
from engine.models.quantization_config import FP8
from engine.models.registry import load_config
from engine.models.weights import parameters
from engine.runtime import memory
from engine.runtime.config import KV_DTYPES, EngineConfig
from engine.runtime.executor import ThreadedExecutor
from engine.runtime.kv_pool import KVPool
from engine.runtime.rows import RowTable
from engine.runtime.runner import StepRunner
from engine.runtime.warmup import WarmUp, warm_up

if TYPE_CHECKING:  # its kernels are imported only where there is a CUDA device
    from engine.runtime.graphs import DecodeGraphs

CPU_PAGE_SIZE, CUDA_PAGE_SIZE = 16, 128


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts of one worker's engine. `close` the executor when no step is in flight."""

    core: EngineCore
    executor: ThreadedExecutor
    pool: KVPool
    """Holds `layout` and `num_pages`."""
    scheduler: SchedulerConfig
    """Holds the resolved `max_model_len`."""
    model: ModelConfig
    attention: str
    """Name of the attention backend that runs."""

    def close(self) -> None:
        """Stop the executor's thread."""
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
    device, dtype = resolve_device(config.device), _dtype(config, facts)
    quantize = _quantize(config, facts, device)
    if config.random_weights:
        model: CausalLM = random_model(facts, dtype=dtype, device=device, seed=config.seed, quantize=quantize)
        name = blake2b(f"{facts} {config.seed}".encode(), digest_size=16).hexdigest()
    else:
        model = load_model(folder, facts, dtype=dtype, device=device, quantize=quantize, progress=progress)
        name = model_hash(folder, facts)
        facts = replace(facts, attention=replace(facts.attention, kv_scales=read_kv_scales(folder, facts.num_layers)))
    if quantize != (facts.quantization == FP8):  # not the function that the checkpoint names
        name = blake2b(f"{name} {config.formats.quantization}".encode(), digest_size=16).hexdigest()
    return assemble(config, facts, model, name)


def assemble(config: EngineConfig, facts: ModelConfig, model: CausalLM, name: str) -> Engine:
    """An engine around a model that is on its device already. `name` is what KVLayout calls model_hash.

    Raises:
        InvalidRequest: the settings do not fit the model or the device.
    """
    device = resolve_device(config.device)
    layout = KVLayout(
        model_hash=name,
        num_layers=facts.num_layers,
        num_kv_heads=facts.attention.num_kv_heads,
        head_dim=facts.attention.head_dim,
        page_size=config.page_size or _page_size(config, device),
        dtype=KV_DTYPES[config.formats.kv_dtype] or str(_dtype(config, facts)).removeprefix("torch."),
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading needed for a while is free again
    num_pages = memory.num_pages(config.kv_memory, layout.page_bytes, device, memory.free_bytes(device))
    max_len = memory.max_model_len(config.max_model_len, facts.max_position, num_pages, layout.page_size)
    pool = KVPool(layout, num_pages, device)
    shape = attention_shape(facts.attention)
    backend = make_backend(config.attention_backend, pool.tensor_NL2SKE, shape, _dtype(config, facts))
    grammars = Compiler(lambda: load_vocabulary(resolve_model(config.model), facts.vocab_size))
    table = RowTable(config.max_rows, max_len, layout.page_size, pool.filler_page, device, grammars)
    model = _fused(model, device, backend)
    graphs = _decode_graphs(config, model, backend, table)
    executor = ThreadedExecutor(StepRunner(model, backend, table, graphs))
    if device.type == "cuda" and config.launching.warm_up:
        sizes = [size for size in (1, 2, 4, 8) if size <= config.max_rows] if graphs is None else graphs.sizes
        warm_up(executor, WarmUp(layout.page_size, num_pages, max_len, config.max_step_tokens, sizes))
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
    core = EngineCore(scheduler, executor, model_hash=name, generations=generations)
    return Engine(core, executor, pool, scheduler, facts, backend.name)


def _fused(model: CausalLM, device: torch.device, backend: AttentionBackend) -> CausalLM:
    """The decoder with the kernels of its device, where it has some."""
    if not isinstance(model, Llama):
        return model
    if device.type == "cuda":
        from engine.models.llama_fused import FusedLlama

        return FusedLlama(model.config, model.weights)
    is_plain = model.weights.norm_D.dtype == torch.float32 and model.weights.layers[0].qkv.scale_O is None
    if backend.name == "numba" and is_plain:  # compiled kernels can be had
        from engine.models.llama_cpu import LlamaCPU

        return LlamaCPU(model.config, model.weights)
    return model


def _decode_graphs(
    config: EngineConfig, model: CausalLM, backend: AttentionBackend, table: RowTable
) -> "DecodeGraphs | None":
    if table.device.type != "cuda" or not config.launching.decode_graphs or not backend.capturable:
        return None
    from engine.runtime.graphs import DecodeGraphs

    return DecodeGraphs(model, backend, table, config.max_rows)


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


def _quantize(config: EngineConfig, facts: ModelConfig, device: torch.device) -> bool:
    """Whether the layers' products are kept in 8 bits. Raises InvalidRequest: the model's widths do not allow it."""
    wanted = FP8 in (config.formats.quantization, facts.quantization) and config.formats.quantization != "none"
    if wanted and device.type == "cuda":
        from engine.kernels.fp8 import check_widths

        check_widths(
            [size for name, each in parameters(facts).items() if name.endswith(PRODUCTS) for size in each.shape]
        )
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
