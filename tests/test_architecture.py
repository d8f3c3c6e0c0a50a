"""The rules that keep the rooms apart, read off the source: who imports whom, and what may be written where."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

ROOT: Final = Path(__file__).parents[1]
MAX_FILE_LINES: Final = 250
MAX_FUNCTION_LINES: Final = 30

ROOMS: Final = {
    "words": ("errors", "events", "usage", "retry_after", "values"),
    "settings": ("settings",),
    "request": ("request",),
    "decode": ("decode",),
    "wire": ("wire",),
    "codec": ("log.codec",),
    "admission": ("admission",),
    "quotas": ("quotas",),
    "log": ("log",),
    "upstream": ("upstream",),
    "places": ("places",),
    "relay": (
        *(
            "relay",
            "attempt",
            "attempts",
            "charging",
            "entrance",
            "means",
            "order",
            "progress",
            "summary",
            "clocks",
            "lingering",
            "retries",
        ),
        *("turns", "stream", "catalogue", "chats", "overview", "trace_context"),
        *("streams", "logs", "idempotency", "gone", "fleet", "following", "elsewhere"),
    ),
    "door": ("door",),
    "api": ("api",),
    "telemetry": ("telemetry",),
    "webhook": ("webhook",),
    "process": ("main", "server", "admin", "listener", "protocol", "parting"),
    "demo": ("demo",),
    "client": ("client",),
    "terminal": ("terminal",),
    "cli": ("cli", "cli_keys", "__main__"),
}
"""The modules of each room, below `app`; the longest name that fits a module is its room's."""

MAY_IMPORT: Final = {
    "words": "",
    "settings": "",
    "places": "words",
    "request": "words settings admission",
    "decode": "words",
    "wire": "words",
    "codec": "words",
    "admission": "words places",
    "quotas": "words admission log",
    "log": "words codec",
    "upstream": "words decode places settings",
    "relay": "words settings request decode admission places quotas log",
    "door": "words settings admission",
    "api": "words settings request wire admission door log relay",
    "telemetry": "settings relay",
    "webhook": "words settings relay",
    "process": "words settings api door relay log telemetry upstream quotas webhook",
    "demo": "words",
    "client": "words",
    "terminal": "settings client demo process",
    "cli": "settings admission terminal process",
}
"""`relay` never sees bytes going out, `api` never sees bytes coming in, and nobody looks into who starts them."""

FOREIGN: Final = {
    "openai": "upstream",
    "aiohttp": "upstream webhook",
    "prometheus_client": "telemetry",
    "opentelemetry": "telemetry",
    "httpx2": "upstream client door terminal",
    "fastapi": "api process",
    "starlette": "api process demo",
    "sse_starlette": "api process",
    "uvicorn": "process demo",
    "uvloop": "process",
    "pydantic": "settings request api",
    "dotenv": "settings",
    "pydantic_core": "settings",
    "pydantic_settings": "settings",
    "structlog": "relay log quotas upstream api door telemetry webhook",
    "joserfc": "door",
    "cryptography": "door",
    "redis": "log quotas",
    "limits": "quotas",
    "typer": "cli",
    "rich": "cli terminal",
    "msgspec": " ".join(ROOMS),
}
"""Who may know which package of others."""

PURE: Final = ("words", "request", "decode", "wire", "codec", "admission", "places")
IMPURE: Final = {
    *("asyncio", "anyio", "concurrent", "threading", "multiprocessing", "subprocess", "signal", "contextvars"),
    *("socket", "ssl", "select", "selectors", "http", "urllib", "io", "pathlib", "shutil", "tempfile", "sqlite3"),
    *("time", "random", "secrets", "uuid", "os", "sys", "platform", "logging"),
}
CLOCKS: Final = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
PULLED: Final = ("relay", "log", "codec", "wire", "decode", "api")


class Module(msgspec.Struct, frozen=True):
    """A file of ours; `name` is dotted and without `app`."""

    path: str
    name: str
    lines: int
    tree: ast.Module

    @property
    def room(self) -> str:
        return room_of(self.name)

    def nodes(self) -> Iterator[ast.AST]:
        return ast.walk(self.tree)

    def imports(self) -> Iterator[str]:
        """The full dotted names of all that is imported, wherever it is: `app.errors.RelayError`."""
        for node in self.nodes():
            match node:
                case ast.Import(names=names):
                    yield from (alias.name for alias in names)
                case ast.ImportFrom(module=module, names=names, level=level):
                    assert level == 0, f"{self.path} imports by dots"
                    yield from (f"{module}.{alias.name}" for alias in names)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in self.nodes() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def room_of(name: str) -> str:
    fitting = [(module, room) for room, modules in ROOMS.items() for module in modules if fits(name, module)]
    return max(fitting, default=("", "nowhere"), key=lambda found: len(found[0]))[1]


def fits(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def source() -> Iterator[Module]:
    for file in sorted((ROOT / "app").rglob("*.py")):
        path = file.relative_to(ROOT)
        name = ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")
        text = file.read_text(encoding="utf-8")
        yield Module(str(path), name, text.count("\n"), ast.parse(text))


MODULES: Final = [module for module in source() if module.name != "__init__"]


def test_every_module_lives_in_a_room() -> None:
    assert [module.path for module in MODULES if module.room == "nowhere"] == []
    assert MAY_IMPORT.keys() == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = {room, *MAY_IMPORT[room].split()}
    strays = [
        f"{module.path} imports {name}"
        for module in MODULES
        for name in module.imports()
        if module.room == room and fits(name, "app") and name != "app.__version__"
        if room_of(name.removeprefix("app.")) not in allowed
    ]
    assert strays == []


def test_packages_of_others_stay_in_their_rooms() -> None:
    strays = [
        f"{module.path} imports {name}"
        for module in MODULES
        for name in module.imports()
        if not fits(name, "app") and (package := name.split(".")[0]) not in sys.stdlib_module_names
        if module.room not in FOREIGN.get(package, "").split()
    ]
    assert strays == []


def test_pure_modules_know_no_loop_network_clock_or_environment() -> None:
    pure = [module for module in MODULES if module.room in PURE]
    imported = [f"{m.path} imports {name}" for m in pure for name in m.imports() if name.split(".")[0] in IMPURE]
    called = [
        f"{module.path}:{node.lineno} asks the clock"
        for module in pure
        for node in module.nodes()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS
    ]
    assert imported + called == []


def test_only_the_settings_read_the_environment() -> None:
    readers = {
        module.path
        for module in MODULES
        for node in module.nodes()
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
    }
    assert {path for path in readers if not path.startswith("app/settings")} == set()


def test_exceptions_in_general_are_caught_in_two_places_and_handed_on_in_two() -> None:
    places = [
        module.path
        for module in MODULES
        for node in module.nodes()
        if isinstance(node, ast.ExceptHandler)
        if node.type is None or {"Exception", "BaseException"} & {*names_in(node.type)}
    ]
    assert places == ["app/api/middleware.py", "app/log/reader.py", "app/relay.py", "app/upstream/body.py"]


def test_no_async_generator_carries_a_stream() -> None:
    generators = [
        f"{module.path}:{function.lineno} {function.name}"
        for module in MODULES
        for function in module.functions()
        if module.room in PULLED and isinstance(function, ast.AsyncFunctionDef) and yields(function)
    ]
    assert generators == []


def test_files_and_functions_are_short() -> None:
    files = [f"{module.path}: {module.lines} lines" for module in MODULES if module.lines > MAX_FILE_LINES]
    functions = [
        f"{module.path}:{function.lineno} {function.name}: {length(function)} lines"
        for module in MODULES
        for function in module.functions()
        if length(function) > MAX_FUNCTION_LINES
    ]
    assert files + functions == []


def names_in(node: ast.AST) -> Iterator[str]:
    return (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def yields(function: ast.AsyncFunctionDef) -> bool:
    """Whether it is a generator itself: what is defined inside it does not count."""
    inside = list(function.body)
    while inside:
        match node := inside.pop():
            case ast.Yield():
                return True
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case _:
                inside += ast.iter_child_nodes(node)  # type: ignore[arg-type]
    return False


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    return lines if ast.get_docstring(function) is None else lines - docstring_lines(function.body[0])


def docstring_lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1
