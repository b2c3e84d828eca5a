"""Imports point one way: the pure core knows nothing outside itself, and only the endpoint knows every transport."""

import ast
from pathlib import Path

import pytest

import overlay

ROOT = Path(overlay.__file__).parent
FORBIDDEN = {
    "asyncio",
    "socket",
    "ssl",
    "threading",
    "random",
    "time",
    "os",
    "select",
    "selectors",
    "secrets",
    "datetime",
}
CONCRETE = {f"overlay.transports.{name}" for name in ("quic", "tcp", "udp", "memory")}
ORDER = ("errors", "config", "identity", "addresses", "transports", "session", "streams", "endpoint", "router", "cli")


def imports(path: Path) -> set[str]:
    """Every module that the file names in an import, at any depth; those for type checkers only left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(folder: str = "") -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("protocol"), ids=lambda path: path.name)
def test_pure_core_imports_no_clock_no_loop_no_socket_and_nothing_above_it(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        assert top not in FORBIDDEN, f"{path.name} imports {name}"
        assert top != "overlay" or name.startswith("overlay.protocol"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", files("protocol"), ids=lambda path: path.name)
def test_pure_core_has_no_coroutines(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))


@pytest.mark.parametrize("path", [path for path in files() if "protocol" not in path.parts], ids=lambda path: path.name)
def test_concrete_transports_are_named_by_the_endpoint_only(path: Path) -> None:
    where = path.relative_to(ROOT)
    if where.parts[0] in {"transports", "testing.py"} or where.name == "endpoint.py":
        return
    assert not imports(path) & CONCRETE, f"{where} names a concrete transport"


@pytest.mark.parametrize("path", files("transports"), ids=lambda path: path.name)
def test_transports_know_nothing_of_what_is_above_them(path: Path) -> None:
    above = {f"overlay.{name}" for name in ORDER[ORDER.index("session") :]}
    assert not imports(path) & above


@pytest.mark.parametrize("path", [path for path in files() if path.parent == ROOT], ids=lambda path: path.name)
def test_foundation_imports_nothing_above_itself(path: Path) -> None:
    if path.stem not in {"errors", "config", "identity", "addresses"}:
        return
    above = {f"overlay.{name}" for name in ORDER[ORDER.index("transports") :]}
    assert not {name for name in imports(path) if any(name == one or name.startswith(f"{one}.") for one in above)}


def test_graph_of_the_pure_core_has_no_circle() -> None:
    modules = {
        "overlay." + ".".join(path.relative_to(ROOT).with_suffix("").parts): imports(path)
        for path in files("protocol")
        if path.stem != "__init__"
    }
    graph = {
        module: {one for one in modules if any(name == one or name.startswith(f"{one}.") for name in named)}
        for module, named in modules.items()
    }
    while graph:
        free = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]
