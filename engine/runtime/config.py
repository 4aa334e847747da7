"""Frozen settings of one engine: what to load, on which device, how much memory its pages get."""

import re
from dataclasses import dataclass

from engine.core.errors import InvalidRequest

MIN_PAGE_SIZE, MAX_PAGE_SIZE = 1, 1024
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES = {"auto": "", "bfloat16": "bfloat16", "float16": "float16", "fp8_e4m3": "float8_e4m3fn"}
"""Names on the command line, and torch's."""
QUANTIZATIONS = ("auto", "none", "fp8")
COLLECTIVES = ("auto", "peer", "nccl")
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@dataclass(frozen=True, slots=True)
class Formats:
    """What weights and pages are kept in, where that is not the type that the model computes in."""

    kv_dtype: str = "auto"
    """One of KV_DTYPES, of KV pages; auto is the model's dtype."""
    quantization: str = "auto"
    """One of QUANTIZATIONS. fp8: the layers' products are kept in 8-bit floats; auto: where the checkpoint has them so;
    none: never."""

    def __post_init__(self) -> None:
        for field, word, choices in (
            ("kv_dtype", self.kv_dtype, tuple(KV_DTYPES)),
            ("quantization", self.quantization, QUANTIZATIONS),
        ):
            if word not in choices:
                raise InvalidRequest(f"{field} must be one of {', '.join(choices)}, not {word!r}", param=field)


@dataclass(frozen=True, slots=True)
class Launching:
    """How steps get to the device."""

    max_in_flight: int = 2
    """Steps that are launched and not collected."""
    decode_graphs: bool = True
    """Decode steps run as CUDA graphs where there is a CUDA device."""
    prompt_graphs: bool = True
    """So do steps of one prompt of moderate length."""
    warm_up: bool = True
    """On a CUDA device: compile kernels and capture graphs before `build_engine` returns."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """How many devices compute one model together."""

    tp_size: int = 1
    """Tensor-parallel ranks of a worker, on the devices from `EngineConfig.device` on; on the CPU they share it."""
    collective: str = "auto"
    """One of COLLECTIVES, on CUDA: peer sums by own kernels that read the other devices' memory, nccl by NCCL; auto
    takes peer where the devices can read each other's memory."""

    def __post_init__(self) -> None:
        if self.tp_size < 1:
            raise InvalidRequest(f"tp must be at least 1, not {self.tp_size}", param="tp")
        if self.collective not in COLLECTIVES:
            raise InvalidRequest(
                f"collective must be one of {', '.join(COLLECTIVES)}, not {self.collective!r}", param="collective"
            )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything `build_engine` needs. `None` and "auto" are resolved there, by device and checkpoint."""

    model: str
    """A checkpoint folder in Hugging Face's layout."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1"; auto takes CUDA where there is one."""
    dtype: str = "auto"
    """One of DTYPES, of weights, activations and KV pages; auto is the checkpoint's own."""
    formats: Formats = Formats()
    page_size: int | None = None
    """Tokens in a page. None: 16 on CPU, 128 on CUDA, 256 for attention backend fa2, which has no smaller ones."""
    kv_memory: int | float | None = None
    """Memory of the pages on each rank: an int is bytes, a float in (0, 1] a fraction of what the device has free once
    the model is loaded (of several ranks: the one with the least). None: 1 GiB on CPU, 0.9 of the rest on CUDA."""
    max_model_len: int | None = None
    """Tokens of prompt and output together. None: the model's own limit, or fewer when the pages hold fewer."""
    max_step_tokens: int = 2048
    max_rows: int = 256
    max_queued: int = 4096
    attention_backend: str = "auto"
    """A name that engine.attention.select knows; auto takes the best one that the device can run."""
    launching: Launching = Launching()
    random_weights: bool = False
    """Draw the weights from `seed` instead of reading them; `model` then needs only its config.json."""
    seed: int = 0
    parallel: Parallel = Parallel()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidRequest(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}", param="dtype")
        if self.page_size is not None and not MIN_PAGE_SIZE <= self.page_size <= MAX_PAGE_SIZE:
            raise InvalidRequest(f"page_size must be {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE} tokens", param="page_size")
        if isinstance(self.kv_memory, float) and not 0.0 < self.kv_memory <= 1.0:
            raise InvalidRequest("kv_memory as a fraction must be above 0 and at most 1", param="kv_memory")
        counts = {
            "kv_memory": self.kv_memory,
            "max_model_len": self.max_model_len,
            "max_step_tokens": self.max_step_tokens,
            "max_rows": self.max_rows,
            "max_in_flight": self.launching.max_in_flight,
            "max_queued": self.max_queued,
        }
        for name, value in counts.items():
            if value is not None and value <= 0:
                raise InvalidRequest(f"{name} must be positive, not {value}", param=name)


def parse_kv_memory(text: str) -> int | float:
    """`--kv-memory` as typed: "0.8" is a fraction, "2GiB", "500M" and "1073741824" are bytes.

    Raises:
        InvalidRequest: the text is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise InvalidRequest(f"cannot read {text!r} as bytes (2GiB) or as a fraction (0.8)", param="kv_memory")
    number, unit = match.groups()
    if not unit and "." in number and not text.lower().rstrip().endswith("b"):
        return float(number)
    return int(float(number) * _UNITS[unit])
