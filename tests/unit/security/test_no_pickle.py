"""Nothing that executes what it reads: no module of ours imports or calls a serializer that runs code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = "baton bench decode_worker deploy engine kv_transfer prefill_worker router simulator tools".split()
MODULES = frozenset(
    ("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib")
)
CALLS = frozenset(("send_pyobj", "recv_pyobj", "get_serialized_descs", "deserialize_descs"))
"""PyZMQ's and NIXL's own ways to pickle."""


def found_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            yield from _called(node)


def _called(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name.rpartition(".")[2] in CALLS or name in ("eval", "exec"):
        yield name
    safe = any(each.arg == "weights_only" and ast.unparse(each.value) == "True" for each in node.keywords)
    if name == "torch.load" and not safe:
        yield name
    if name.endswith("load") and any(each.arg == "allow_pickle" for each in node.keywords):
        yield f"{name}(allow_pickle)"


def test_no_module_can_run_what_it_reads() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 200
    found = {str(path.relative_to(ROOT)): list(found_in(path.read_text())) for path in paths}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from cloudpickle import loads", "s.recv_pyobj()", "torch.load(f)",
     "np.load(f, allow_pickle=True)", "agent.get_serialized_descs(d)", "import marshal as m", "eval(text)"],
)  # fmt: skip
def test_each_way_is_noticed(source: str) -> None:
    assert list(found_in(source))
