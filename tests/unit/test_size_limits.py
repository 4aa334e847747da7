"""The size limits that keep Baton readable in a day: a file, a function, a parameter list, a class."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = """
baton bench decode_worker deploy engine kv_transfer prefill_worker router simulator tests tools
""".split()

MAX_FILE_LINES = 499
MAX_FUNCTION_LINES = 79
MAX_PARAMETERS = 7
MAX_ATTRIBUTES = 15

# Classes whose attributes are the fields of somebody else's schema: splitting them would only hide the schema.
FOREIGN_SCHEMAS: set[str] = set()

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                yield path


def num_parameters(function: FunctionNode) -> int:
    """All parameters but self and cls."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def attributes(cls: ast.ClassDef) -> set[str]:
    """Names declared in the class body or assigned to self anywhere in it. Constants in capitals are not attributes."""
    names = {
        item.target.id for item in cls.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    for node in ast.walk(cls):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        ):
            names.add(node.attr)
    return {name for name in names if not name.isupper()}


def is_device_kernel(function: FunctionNode) -> bool:
    """A kernel of Triton or an intrinsic of numba gets every pointer, stride and size as a parameter of its own."""
    names = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any("triton" in name or name == "intrinsic" for name in names)


def violations(path: Path) -> Iterator[str]:
    text = path.read_text()
    where = path.relative_to(ROOT)
    num_lines = text.count("\n") + 1
    if num_lines > MAX_FILE_LINES:
        yield f"{where}: {num_lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FunctionNode):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{where}:{node.lineno} {node.name}: {length} lines"
            if num_parameters(node) > MAX_PARAMETERS and not is_device_kernel(node):
                yield f"{where}:{node.lineno} {node.name}: {num_parameters(node)} parameters"
        elif isinstance(node, ast.ClassDef) and f"{where}:{node.name}" not in FOREIGN_SCHEMAS:
            if len(attributes(node)) > MAX_ATTRIBUTES:
                yield f"{where}:{node.lineno} {node.name}: {len(attributes(node))} attributes"


def test_every_file_function_and_class_is_within_limits() -> None:
    found = [violation for path in sources() for violation in violations(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n" * MAX_FILE_LINES, "lines"),
        ("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES, "f: 80 lines"),
        ("def f(a, b, c, d, e, f, g, *, h): ...\n", "8 parameters"),
        ("class C:\n    def f(self):\n" + "".join(f"        self.a{i} = 1\n" for i in range(16)), "16 attributes"),
    ],
)
def test_each_limit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert any(expected in violation for violation in violations(path))
