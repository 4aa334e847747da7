"""Which published formats of 8-bit weights are read: the quantization_config of config.json. Standard library only.

All store a product's weight as float8_e4m3fn beside a scale, and a value is the product of both (transformers,
FineGrainedFP8Config, FbgemmFp8Config and CompressedTensorsConfig):

    quant_method         scale                 its shape
    fp8                  weight_scale_inv      [O / 128, I / 128], one a block of 128 x 128
    fp8                  weight_scale          one for the tensor
    fbgemm_fp8           weight_scale          [O, 1]
    compressed-tensors   weight_scale          one for the tensor, [O, 1], or one a block

Activations are always quantized token by token when they come, whatever the file says: that is as exact as any static
scale. Products that a checkpoint leaves in 16 bits stay so.
"""

from typing import Any

from engine.core.errors import CheckpointError
from engine.models.facts import Facts

FP8 = "fp8"
BLOCK = 128
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")


def parse_quantization(facts: Facts) -> str:
    """FP8 where config.json names a format of the table, empty where it names none.

    Raises:
        CheckpointError: another format.
    """
    quantization = facts.nested("quantization_config")
    if quantization is None:
        return ""
    method = quantization.text("quant_method", "")
    if method not in METHODS:
        raise quantization.wrong("quant_method", f"one of {', '.join(METHODS)}")
    if method == "compressed-tensors":
        _check_groups(quantization)
    elif quantization.values.get("weight_block_size") not in (None, [BLOCK, BLOCK]):
        raise quantization.wrong("weight_block_size", f"[{BLOCK}, {BLOCK}]")
    return FP8


def _check_groups(quantization: Facts) -> None:
    groups = quantization.nested("config_groups")
    if groups is None:
        raise quantization.wrong("config_groups", "at least one group")
    for name, group in groups.values.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict) or not _is_fp8(weights):
            raise CheckpointError(
                f"{quantization.path}: quantization_config group {name} is not supported, expected symmetric weights "
                f"of 8-bit floats with one scale a tensor, a channel or a block of {BLOCK} x {BLOCK}"
            )


def _is_fp8(weights: dict[str, Any]) -> bool:
    by_block = weights.get("strategy") == "block" and weights.get("block_structure") in ([BLOCK, BLOCK], "128x128")
    return (
        (weights.get("type"), weights.get("num_bits")) == ("float", 8)
        and weights.get("symmetric", True) is True
        and (by_block or weights.get("strategy") in ("tensor", "channel"))
    )
