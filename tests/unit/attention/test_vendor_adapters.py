"""The adapters of vendor packages call what those packages have: stand-ins with the packages' own signatures, over the
reference. A call that the real function would refuse (a wrong name, a missing argument) fails here, without a GPU."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention.base import AttentionShape
from engine.attention.by_phase import ByPhase
from engine.attention.fa2 import FlashAttention2
from engine.attention.fa3 import FlashAttention3
from engine.attention.fa3_kernels import PACKAGES, find_kernels
from engine.attention.torch_ref import TorchReference, dense_attention
from engine.attention.triton import TritonAttention
from engine.core.errors import InvalidRequest
from tests.unit.attention.paged import by_definition, make_paged, shape_of

ROWS = {"new": [(0, 5), (0, 33), (0, 1)], "ragged": [(37, 5), (30, 1), (0, 20)], "decode": [(0, 1), (63, 1), (40, 1)]}
FP8 = torch.float8_e4m3fn


def packed(q: Tensor, cu_q: Tensor, keys: Callable[[int], tuple[Tensor, Tensor]], how: dict[str, Any]) -> Any:
    """out_THE and lse_HT, as FlashAttention's packed functions give them, by the reference."""
    assert how["causal"]
    left, right = how["window_size"]
    assert (left, right) == (-1, -1) or right == 0
    shape = AttentionShape(
        q.shape[1], keys(0)[0].shape[1], q.shape[2], how["softmax_scale"], (None,), how["softcap"] or None
    )
    parts = [
        dense_attention(q[begin:end], *keys(row), shape, None if left < 0 else left + 1)
        for row, (begin, end) in enumerate(zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True))
    ]
    return torch.cat([out for out, _ in parts]).to(q.dtype), torch.cat([lse for _, lse in parts]).T


def of_pages(k: Tensor, v: Tensor, table: Tensor, lengths: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:
    def keys(row: int) -> tuple[Tensor, Tensor]:
        count = int(lengths[row])
        return k[table[row].long()].flatten(0, 1)[:count], v[table[row].long()].flatten(0, 1)[:count]

    return keys


def of_rows(k: Tensor, v: Tensor, cu: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda row: (k[cu[row] : cu[row + 1]], v[cu[row] : cu[row + 1]])


MASK = ("softmax_scale", "causal", "window_size", "softcap")


def check_names(given: dict[str, Any], allowed: str) -> dict[str, Any]:
    """What a real function would refuse is refused; gives back the arguments that say what is computed."""
    unknown = set(given) - set(allowed.split()) - set(MASK)
    assert not unknown, f"no such arguments: {unknown}"
    return {name: given[name] for name in MASK}


def schedule(*lengths: Any, **given: Any) -> Tensor:
    """batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens"""
    assert set(given) == set("qkv_dtype cu_seqlens_q page_size causal window_size has_softcap".split())
    assert len(lengths) == 7 and given["causal"] and lengths[0] == len(lengths[6]) and lengths[1] == 1
    assert lengths[2] >= int(lengths[6].max())
    return torch.tensor([lengths[0], *given["window_size"]])


def with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, **given: Any) -> Any:
    how = check_names(
        given,
        "cache_seqlens page_table cu_seqlens_q max_seqlen_q scheduler_metadata return_softmax_lse k_descale v_descale",
    )
    lengths, cu = given["cache_seqlens"], given["cu_seqlens_q"]
    if given["scheduler_metadata"] is not None:
        assert given["scheduler_metadata"].tolist() == [len(lengths), *given["window_size"]]
    assert given["return_softmax_lse"] and given["max_seqlen_q"] == int(cu.diff().max())
    if "k_descale" in given:
        assert q.dtype == k_cache.dtype == FP8 and given["k_descale"].shape == (len(lengths), k_cache.shape[2])
        q, k_cache = q.float(), k_cache.float() * given["k_descale"][0, 0]
        v_cache = v_cache.float() * given["v_descale"][0, 0]
    return *packed(q, cu, of_pages(k_cache, v_cache, given["page_table"], lengths), how), None, None


def upstream_varlen(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, **given: Any) -> Any:
    """lengths: cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"""
    how = check_names(given, "return_attn_probs")
    cu_q, cu_k, longest_q, longest_k = lengths
    assert given["return_attn_probs"] and longest_q == longest_k == int(cu_q.diff().max())
    return packed(q, cu_q, of_rows(k, v, cu_k), how)


def sglang_varlen(*arguments: Any, return_softmax_lse: bool, **options: Any) -> Any:
    return *upstream_varlen(*arguments, return_attn_probs=return_softmax_lse, **options), None


def vllm_varlen(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, **given: Any) -> Any:
    """lengths: max_seqlen_q, cu_seqlens_q, max_seqlen_k"""
    names = "cu_seqlens_k seqused_k block_table return_softmax_lse scheduler_metadata fa_version"
    how = check_names(given, names)
    longest_q, cu_q, longest_k = lengths
    assert given["fa_version"] == 3 and given["return_softmax_lse"] and longest_q == int(cu_q.diff().max())
    if "cu_seqlens_k" in given:
        return packed(q, cu_q, of_rows(k, v, given["cu_seqlens_k"]), how)
    assert longest_k >= int(given["seqused_k"].max())
    return packed(q, cu_q, of_pages(k, v, given["block_table"], given["seqused_k"]), how)


FA3_STANDINS: dict[str, dict[str, Any]] = {
    "flash_attn_interface": {
        "flash_attn_varlen_func": upstream_varlen,
        "flash_attn_with_kvcache": with_kvcache,
        "get_scheduler_metadata": schedule,
    },
    "sgl_kernel.flash_attn": {"flash_attn_varlen_func": sglang_varlen, "flash_attn_with_kvcache": with_kvcache},
    "vllm.vllm_flash_attn.flash_attn_interface": {
        "flash_attn_varlen_func": vllm_varlen,
        "get_scheduler_metadata": schedule,
        "is_fa_version_supported": lambda version: version == 3,
    },
}


def fa2_varlen(q: Tensor, k: Tensor, v: Tensor, *lengths: Any, **given: Any) -> Any:
    """lengths: cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k"""
    how = check_names(given, "return_attn_probs block_table")
    cu_q, cu_k, longest_q, longest_k = lengths
    assert longest_q == int(cu_q.diff().max()) and longest_k == int(cu_k.diff().max())
    table = given.get("block_table")
    keys = of_rows(k, v, cu_k) if table is None else of_pages(k, v, table, cu_k.diff())
    out, lse = packed(q, cu_q, keys, how)
    return (out, lse, None) if given.get("return_attn_probs") else out


def fa2_with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, **given: Any) -> Any:
    how = check_names(given, "cache_seqlens block_table return_softmax_lse")
    if given["softcap"]:
        raise RuntimeError("This flash attention build does not support softcap.\nmore lines")
    assert q.dim() == 4 and q.shape[1] == 1
    keys = of_pages(k_cache, v_cache, given["block_table"], given["cache_seqlens"])
    out, lse = packed(q[:, 0], torch.arange(len(q) + 1), keys, how)
    return (out[:, None], lse.T[:, :, None]) if given.get("return_softmax_lse") else out[:, None]


def install(monkeypatch: pytest.MonkeyPatch, package: str, names: dict[str, Any]) -> None:
    parts = package.split(".")
    for end in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:end]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in names.items():
        monkeypatch.setattr(module, name, value, raising=False)


def check(backend: Any, rows: str, shape: AttentionShape, paged: Any, error: float = 1e-5) -> None:
    want, want_lse = by_definition(paged, shape)
    backend.plan(paged.batch)
    out = backend.run(paged.layer, paged.q_THE, paged.k_TKE, paged.v_TKE)
    again, lse = backend.attend(paged.layer, paged.q_THE)
    for got in (out, again):
        torch.testing.assert_close(got.double(), want, atol=error, rtol=error)
    torch.testing.assert_close(lse.double(), want_lse, atol=error, rtol=error)


@pytest.mark.parametrize("package", FA3_STANDINS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("options", [{}, {"windows": (None, 9)}, {"soft_cap": 2.0}])
def test_fa3(monkeypatch: pytest.MonkeyPatch, package: str, rows: str, options: dict[str, Any]) -> None:
    install(monkeypatch, package, FA3_STANDINS[package])
    kernels = find_kernels()
    assert kernels is not None and kernels.package == package and package in PACKAGES
    shape = shape_of(**options)
    paged = make_paged(ROWS[rows], shape, dtype=torch.float32)
    check(FlashAttention3(paged.pool_NL2SKE.nan_to_num(7.0), shape, kernels), rows, shape, paged)


def test_without_a_package_there_is_no_fa3(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "flash_attn_interface", {})
    install(monkeypatch, "vllm.vllm_flash_attn.flash_attn_interface", {
        "is_fa_version_supported": lambda version: False, "fa_version_unsupported_reason": lambda version: "no",
    })  # fmt: skip
    assert find_kernels() is None


@pytest.mark.parametrize("rows", ROWS)
def test_fa3_over_8_bit_pages(monkeypatch: pytest.MonkeyPatch, rows: str) -> None:
    install(monkeypatch, "flash_attn_interface", FA3_STANDINS["flash_attn_interface"])
    shape = shape_of(kv_scales=((1.0, 1.0), (0.25, 2.0)))
    paged = make_paged(ROWS[rows], shape, dtype=torch.float32, kv_dtype=FP8)
    paged.q_THE = paged.q_THE.to(FP8).float()  # so that rounding the queries changes nothing
    pool = paged.pool_NL2SKE.float().nan_to_num(7.0).to(FP8)
    kernels = find_kernels()
    assert kernels is not None
    check(FlashAttention3(pool, shape, kernels), rows, shape, paged)


@pytest.mark.parametrize("rows", ROWS)
def test_new_prompts_go_to_a_backend_that_cannot_read_the_pages(monkeypatch: pytest.MonkeyPatch, rows: str) -> None:
    install(monkeypatch, "flash_attn_interface", FA3_STANDINS["flash_attn_interface"])
    shape = shape_of(kv_scales=((1.0, 1.0), (0.25, 2.0)))
    paged = make_paged(ROWS[rows], shape, dtype=torch.float32, kv_dtype=FP8)
    kernels = find_kernels()
    assert kernels is not None
    new, pages = FlashAttention3(paged.pool_NL2SKE, shape, kernels), TritonAttention(paged.pool_NL2SKE, shape)
    monkeypatch.setattr(new, "write", lambda *_: pytest.fail("pages are written by who reads them"))
    backend = ByPhase(new, pages, pages)
    assert backend.name == "fa3+triton" and backend.capturable
    check(backend, rows, shape, paged, error=2e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("options", [{}, {"windows": (None, 9)}])
def test_fa2(monkeypatch: pytest.MonkeyPatch, rows: str, options: dict[str, Any]) -> None:
    install(
        monkeypatch, "flash_attn", {"flash_attn_varlen_func": fa2_varlen, "flash_attn_with_kvcache": fa2_with_kvcache}
    )
    shape = shape_of(**options)
    paged = make_paged(ROWS[rows], shape, 256, dtype=torch.float32)
    check(FlashAttention2(paged.pool_NL2SKE.nan_to_num(7.0), shape), rows, shape, paged)


def test_what_a_build_of_fa2_cannot_do_is_said_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = torch.zeros(2, 2, 2, 256, 2, 16)
    install(
        monkeypatch, "flash_attn", {"flash_attn_varlen_func": fa2_varlen, "flash_attn_with_kvcache": fa2_with_kvcache}
    )
    with pytest.raises(InvalidRequest, match=r"this build of flash_attn says: .* does not support softcap\.$"):
        FlashAttention2(pool, shape_of(soft_cap=5.0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(InvalidRequest, match="flash_attn does not import"):
        FlashAttention2(pool, shape_of())


class Wrapper:
    """Both of flashinfer's paged wrappers: what they are planned with is what they compute."""

    def __init__(self, workspace: Tensor, layout: str, *, backend: str = "", use_tensor_cores: bool = False) -> None:
        assert layout == "NHD" and (bool(backend) != use_tensor_cores)
        self._decodes = use_tensor_cores

    def plan(self, *arguments: Any, causal: bool = False, sm_scale: float, window_left: int, **options: Any) -> None:
        self._cu = torch.arange(len(arguments[0])) if self._decodes else arguments[0]
        assert causal != self._decodes and options["q_data_type"] == options["kv_data_type"]
        self._indptr, self._pages, self._last, *_, page_size = arguments[0 if self._decodes else 1 :]
        assert all(each.device.type == "cpu" for each in (self._cu, self._indptr, self._last))
        self._how = {
            "softmax_scale": sm_scale, "causal": True, "window_size": (window_left, -1 if window_left < 0 else 0),
            "softcap": options["logits_soft_cap"],
        }  # fmt: skip
        self._page_size = page_size

    def run(self, q: Tensor, caches: tuple[Tensor, Tensor], *, return_lse: bool) -> tuple[Tensor, Tensor]:
        assert return_lse

        def keys(row: int) -> tuple[Tensor, Tensor]:
            pages = self._pages[self._indptr[row] : self._indptr[row + 1]].long()
            count = (len(pages) - 1) * self._page_size + int(self._last[row])
            return caches[0][pages].flatten(0, 1)[:count], caches[1][pages].flatten(0, 1)[:count]

        out, lse = packed(q, self._cu, keys, self._how)
        return out, lse.T / torch.log(torch.tensor(2.0))


def install_flashinfer(monkeypatch: pytest.MonkeyPatch, compiled: Callable[[str], bool]) -> None:
    def specification(kernels: str, *arguments: Any) -> SimpleNamespace:
        assert len(arguments) == 10
        return SimpleNamespace(is_compiled=compiled(kernels), name=f"prefill_{kernels}")

    wrappers = {"BatchPrefillWithPagedKVCacheWrapper": Wrapper, "BatchDecodeWithPagedKVCacheWrapper": Wrapper}
    install(monkeypatch, "flashinfer.jit.attention.modules", {"gen_batch_prefill_module": specification})
    install(monkeypatch, "flashinfer", wrappers)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("options", [{}, {"windows": (None, 9)}, {"soft_cap": 2.0}])
def test_flashinfer(monkeypatch: pytest.MonkeyPatch, rows: str, options: dict[str, Any]) -> None:
    from engine.attention.flashinfer import FlashInfer

    install_flashinfer(monkeypatch, lambda kernels: True)
    shape = shape_of(**options)
    paged = make_paged(ROWS[rows], shape, 16, dtype=torch.float32)
    check(FlashInfer(paged.pool_NL2SKE.nan_to_num(7.0), shape), rows, shape, paged)


@pytest.mark.parametrize("missing", ["fa3", "fa2"])
def test_flashinfer_does_not_compile_while_a_worker_starts(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    from engine.attention.flashinfer import FlashInfer

    install_flashinfer(monkeypatch, lambda kernels: kernels != missing)
    with pytest.raises(
        InvalidRequest, match=f"head dim 16, no sliding window .* not compiled .module prefill_{missing}"
    ):
        FlashInfer(torch.zeros(2, 2, 2, 16, 2, 16), shape_of())


def test_reference_and_stand_ins_agree_on_what_a_window_is() -> None:
    shape = shape_of(windows=(None, 9))
    paged = make_paged(ROWS["ragged"], shape, dtype=torch.float32)
    check(TorchReference(paged.pool_NL2SKE, shape), "ragged", shape, paged)
