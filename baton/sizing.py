"""How many workers of each kind a load needs, and what its clients would see. Pure.

Everything is a bound of the chip (bytes over bandwidth, operations over speed) divided by the share of it that this
engine was measured to reach on an H200 (docs/results/h200.md). Other chips are assumed to reach the same shares of what
their data sheets say, times what H200s reach of theirs; nobody has measured that.

A prefill worker is a queue with one server and a fixed time of service; a decode worker runs all its rows in one step.
"""

from dataclasses import dataclass
from math import ceil, exp, expm1, inf, log

from engine.core.errors import InvalidRequest
from engine.models.config import ModelConfig

PREFILL_SHARE = 0.785
"""Of the product speed, over prompts of 512 to 8,192 tokens: rows "prefill" of docs/results/h200.md."""
PREFILL_FIXED_S = 1e-3
"""From the same rows: what a prompt costs beyond its operations."""
DECODE_SHARE = 0.81
"""Of the memory bandwidth, over batches of 1 to 256: rows "decode ITL" of docs/results/h200.md."""
EDGE_S = 1.5e-3
"""TTFT of two GPUs at 2 requests a second less the prompt's own time: router, streams, client."""
ITL_TAIL = 1.25
"""p99 over p50 of ITL with two GPUs at 2 to 14 requests a second: 1.20, 1.30, 1.34."""
MAX_PREFILL_LOAD = 0.8
"""Beyond this share of its time a prefill worker's queue grows at every burst."""
KV_SHARE = 0.9
"""Of what the weights leave; engine.runtime.memory takes the same."""
WORKSPACE_BYTES = 2 << 30
MAX_WORKERS = 4096
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One chip."""

    name: str
    flops_per_s: float
    """Of a large bfloat16 product."""
    bytes_per_s: float
    """Of its memory."""
    memory_bytes: int
    link_bytes_per_s: float
    """Of one pair of workers."""
    measured: bool = False


def _from_data_sheet(name: str, tflops: float, tb_per_s: float, gb: int, link_gb_per_s: float) -> Gpu:
    """Shares of the data sheet that an H200 reaches: 790 of 989 TFLOP/s, 4.25 of 4.8 TB/s."""
    return Gpu(name, tflops * 1e12 * 790 / 989, tb_per_s * 1e12 * 4.25 / 4.8, gb * 10**9, link_gb_per_s * 1e9)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 790e12, 4.25e12, 141 * 10**9, 109e9, measured=True),
        _from_data_sheet("h100", 989, 3.35, 80, 109),
        _from_data_sheet("a100", 312, 2.039, 80, 60),
        _from_data_sheet("l40s", 362, 0.864, 48, 20),
        _from_data_sheet("b200", 2250, 8.0, 180, 200),
    )
}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model costs to read and to compute."""

    layer_weights: int
    """Values of all layers' products."""
    head_weights: int
    """Of the output projection."""
    other_weights: int
    """In memory, but not read in a step: the embedding table, where it is another one than the output projection."""
    kv_values_per_token: int
    attention_flops_per_pair: int
    """Of one query token and one key token, all layers."""
    value_bytes: int

    @classmethod
    def of(cls, config: ModelConfig) -> "ModelSize":
        """From a checkpoint's facts."""
        hidden, layers, heads = config.hidden_size, config.num_layers, config.attention
        attention = hidden * heads.head_dim * 2 * (heads.num_heads + heads.num_kv_heads)
        head = hidden * config.vocab_size
        return cls(
            layer_weights=layers * (attention + 3 * hidden * config.intermediate_size),
            head_weights=head,
            other_weights=0 if config.tied_embeddings else head,
            kv_values_per_token=layers * 2 * heads.num_kv_heads * heads.head_dim,
            attention_flops_per_pair=layers * 4 * heads.num_heads * heads.head_dim,
            value_bytes=VALUE_BYTES[config.dtype],
        )

    @property
    def weight_bytes(self) -> int:
        """Of all weights."""
        return (self.layer_weights + self.head_weights + self.other_weights) * self.value_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one token's KV."""
        return self.kv_values_per_token * self.value_bytes

    def prefill_s(self, gpu: Gpu, num_new: int, num_cached: int = 0) -> float:
        """One prompt of `num_new` tokens after `num_cached` that are there."""
        pairs = num_new * num_cached + num_new * (num_new + 1) / 2
        flops = 2 * num_new * self.layer_weights + self.attention_flops_per_pair * pairs + 2 * self.head_weights
        return PREFILL_FIXED_S + flops / (gpu.flops_per_s * PREFILL_SHARE)

    def step_s(self, gpu: Gpu, num_rows: float, context: float) -> float:
        """One token for each of `num_rows` sequences of `context` tokens."""
        weights = (self.layer_weights + self.head_weights) * self.value_bytes
        num_bytes = weights + num_rows * context * self.kv_bytes_per_token
        flops = 2 * num_rows * (self.layer_weights + self.head_weights)
        return max(num_bytes / (gpu.bytes_per_s * DECODE_SHARE), flops / (gpu.flops_per_s * PREFILL_SHARE))


@dataclass(frozen=True, slots=True)
class Load:
    """What clients ask for, and how long they want to wait."""

    input_len: int
    output_len: int
    requests_per_s: float
    ttft_s: float
    """p99."""
    itl_s: float
    """p99."""
    cached: float = 0.0
    """Share of prompt tokens that are found in a cache."""

    def __post_init__(self) -> None:
        for name, value in (("input-len", self.input_len), ("output-len", self.output_len)):
            if value < 1:
                raise InvalidRequest(f"must be at least 1, not {value}", param=name)
        for name, number in (("rate", self.requests_per_s), ("slo-ttft-ms", self.ttft_s), ("slo-itl-ms", self.itl_s)):
            if not 0 < number < inf:
                raise InvalidRequest("must be a number above 0", param=name)
        if not 0 <= self.cached < 1:
            raise InvalidRequest("must be at least 0 and below 1", param="cached")


@dataclass(frozen=True, slots=True)
class Plan:
    """Workers, and what follows from their number."""

    prefill_workers: int
    decode_workers: int
    rows: float
    """Sequences that one decode worker runs at a time, on average."""
    max_rows: int
    """That its memory holds."""
    weight_bytes: int
    kv_bytes: int
    """For pages, on one worker."""
    prefill_load: float
    """Share of its time that a prefill worker computes."""
    prefill_s: float
    transfer_s: float
    """Moving the pages of one prompt; between the first and the second token."""
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float


def make_plan(size: ModelSize, gpu: Gpu, load: Load) -> Plan:
    """The fewest workers of each kind that keep the promises.

    Raises InvalidRequest when no number of workers does, with the reason.
    """
    kv_bytes = int(KV_SHARE * (gpu.memory_bytes - WORKSPACE_BYTES - size.weight_bytes))
    held_tokens = load.input_len + load.output_len
    max_rows = kv_bytes // (held_tokens * size.kv_bytes_per_token)
    if max_rows < 1:
        raise InvalidRequest(
            f"{size.weight_bytes / 1e9:.0f} GB of weights and one request of {held_tokens} tokens do not fit in the "
            f"{gpu.memory_bytes / 1e9:.0f} GB of one {gpu.name}",
            param="gpu",
        )
    cached = int(load.cached * load.input_len)
    prompt_s = size.prefill_s(gpu, load.input_len - cached, cached)
    prefill_workers = _prefill_workers(prompt_s, load)
    decode_workers, rows, step_s = _decode_workers(size, gpu, load, max_rows)
    queue = _Queue(prompt_s, load.requests_per_s / prefill_workers)
    return Plan(
        prefill_workers=prefill_workers,
        decode_workers=decode_workers,
        rows=rows,
        max_rows=max_rows,
        weight_bytes=size.weight_bytes,
        kv_bytes=kv_bytes,
        prefill_load=queue.load,
        prefill_s=prompt_s,
        transfer_s=(load.input_len - cached) * size.kv_bytes_per_token / gpu.link_bytes_per_s,
        ttft_p50_s=queue.wait_s(0.5) + prompt_s + EDGE_S,
        ttft_p99_s=queue.wait_s(0.99) + prompt_s + EDGE_S,
        itl_p50_s=step_s,
        itl_p99_s=step_s * ITL_TAIL,
    )


@dataclass(frozen=True, slots=True)
class _Queue:
    """Random arrivals, one server, a fixed time of service."""

    service_s: float
    arrivals_per_s: float

    @property
    def load(self) -> float:
        return self.service_s * self.arrivals_per_s

    def wait_s(self, share: float) -> float:
        """What `share` of the requests wait at most.

        The tail of M/D/1 (Cramer and Lundberg's constant, as in Asmussen, Applied Probability and Queues, XIII.5):
        P(wait > t) = (1 - load) / (load e^d - 1) e^(-d t / service), where load (e^d - 1) = d > 0.
        """
        load = self.load
        if load >= 1:
            return inf
        if load <= 1 - share:
            return 0.0
        low, high = 0.0, 1.0
        while load * expm1(high) < high:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if load * expm1(middle) < middle else (low, middle)
        above = (1 - load) / (load * exp(high) - 1)
        return max(0.0, log(above / (1 - share)) * self.service_s / high)


def _prefill_workers(prompt_s: float, load: Load) -> int:
    if prompt_s + EDGE_S > load.ttft_s:
        raise InvalidRequest(
            f"a prompt alone takes {(prompt_s + EDGE_S) * 1e3:.0f} ms: "
            f"no number of workers gives {load.ttft_s * 1e3:g}",
            param="slo-ttft-ms",
        )
    fewest = max(1, ceil(load.requests_per_s * prompt_s / MAX_PREFILL_LOAD))
    for workers in range(fewest, MAX_WORKERS):
        if _Queue(prompt_s, load.requests_per_s / workers).wait_s(0.99) + prompt_s + EDGE_S <= load.ttft_s:
            return workers
    raise InvalidRequest(f"more than {MAX_WORKERS} prefill workers", param="rate")


def _decode_workers(size: ModelSize, gpu: Gpu, load: Load, max_rows: int) -> tuple[int, float, float]:
    """(workers, rows of each, seconds a step)."""
    context = load.input_len + load.output_len / 2
    if size.step_s(gpu, 1, context) * ITL_TAIL > load.itl_s:
        raise InvalidRequest(
            f"one row alone takes {size.step_s(gpu, 1, context) * ITL_TAIL * 1e3:.1f} ms a token (p99): "
            f"no number of workers gives {load.itl_s * 1e3:g}",
            param="slo-itl-ms",
        )
    for workers in range(1, MAX_WORKERS):
        rows = _rows(size, gpu, load, workers, max_rows)
        if rows <= max_rows and size.step_s(gpu, rows, context) * ITL_TAIL <= load.itl_s:
            return workers, rows, size.step_s(gpu, rows, context)
    raise InvalidRequest(f"more than {MAX_WORKERS} decode workers", param="rate")


def _rows(size: ModelSize, gpu: Gpu, load: Load, workers: int, limit: int) -> float:
    """Rows at which a worker ends as many requests as come: rows = arrivals * tokens * step(rows). Above `limit` when
    there is no such number up to it.
    """
    context = load.input_len + load.output_len / 2
    tokens_per_s = load.requests_per_s / workers * load.output_len

    def missing(rows: float) -> float:
        return tokens_per_s * size.step_s(gpu, rows, context) - rows

    if missing(limit) > 0:
        return inf
    low, high = 0.0, float(limit)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > 0 else (low, middle)
    return high
