"""The rules of the repository, as functions from source text to the list of violations.

Each rule reads only the syntax tree, so it also sees imports inside functions and under
``TYPE_CHECKING``. ``test_rules.py`` proves that each rule catches something; ``test_repository.py``
applies them to the tree.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 700


class Layer(NamedTuple):
    """What the modules of one layer may import, besides the standard library and their own layer."""

    own: tuple[str, ...]
    project: tuple[str, ...]
    third_party: tuple[str, ...] = ()


FOUNDATION = ("zray._version", "zray.ids", "zray.errors", "zray.exceptions", "zray.config")
# What machines need of the protocol: messages, and values that they hand on as opaque bytes. Never the codec.
VALUES = (
    "zray.protocol.base", "zray.protocol.messages", "zray.protocol.user_messages", "zray.protocol.strategies",
    "zray.protocol.cluster", "zray.protocol.actor_messages", "zray.protocol.group_messages",
    "zray.protocol.local_messages", "zray.protocol.chain", "zray.protocol.faults", "zray.protocol.documents",
    "zray.protocol.flushing",
)  # fmt: skip
BELOW_RUNTIME = (*FOUNDATION, "zray.protocol", "zray.core", "zray.store", "zray.serialize")
BELOW_SERVICES = (*BELOW_RUNTIME, "zray.runtime")
PUBLIC = (
    "zray.actor", "zray.cloudpickle", "zray.cluster_utils", "zray.dag", "zray.runtime_context",
    "zray.remote_function", "zray.runtime_env", "zray.types", "zray.util",
)  # fmt: skip
PROCESS_LIBRARIES = ("cloudpickle", "msgspec", "numpy", "psutil", "zmq")

LAYERS = (
    Layer(own=FOUNDATION, project=()),
    Layer(own=("zray.protocol",), project=FOUNDATION, third_party=("msgspec",)),
    Layer(own=("zray.core.placement",), project=(*FOUNDATION, *VALUES, "zray.core"),
          third_party=("msgspec.structs", "numpy", "sortedcontainers")),
    # msgspec.structs handles messages as objects; encoding them (msgspec.msgpack) is the codec's part.
    Layer(own=("zray.core",), project=(*FOUNDATION, *VALUES),
          third_party=("msgspec.structs", "sortedcontainers")),
    Layer(own=("zray.store",), project=(*FOUNDATION, "zray.protocol"), third_party=("numpy",)),
    Layer(own=("zray.serialize",), project=(*FOUNDATION, "zray.protocol"),
          third_party=("cloudpickle", "msgspec", "numpy")),
    Layer(own=("zray.runtime",), project=BELOW_RUNTIME, third_party=PROCESS_LIBRARIES),
    # The storage of a site that has such a server; an extra, imported by who is told to use it.
    Layer(own=("zray.runtime.redis_log",), project=BELOW_SERVICES, third_party=("redis",)),
    Layer(own=("zray.services",), project=BELOW_SERVICES, third_party=PROCESS_LIBRARIES),
    Layer(own=("zray.api",), project=BELOW_SERVICES, third_party=PROCESS_LIBRARIES),
    # The simulation of a user's own program: the API on one side, the simulator on the other.
    Layer(own=("zray.api.simulation", "zray.api.simulated_actor", "zray.api.simulated_client",
               "zray.api.virtual_loop", "zray.api.virtual_process"),
          project=(*BELOW_SERVICES, "zray.api", "sim"),
          third_party=PROCESS_LIBRARIES),
    # Commands that start clusters elsewhere, and what runs there for them.
    Layer(own=("zray.launch",), project=BELOW_SERVICES, third_party=("msgspec",)),
    Layer(own=("zray.cli", "zray.cli_state", "zray.cli_doctor"),
          project=(*BELOW_SERVICES, "zray.services", "zray.api", "zray.launch", "zray", "zray.util", "sim"),
          third_party=(*PROCESS_LIBRARIES, "rich")),
    Layer(own=("sim",), project=(*FOUNDATION, "zray.protocol", "zray.core"),
          third_party=("msgspec", "numpy")),
    Layer(own=("sim.plots",), project=(*FOUNDATION, "zray.protocol", "zray.core", "sim"),
          third_party=("matplotlib",)),
    # Programs on real processes, beside the simulation; the only part of it that uses the public package.
    Layer(own=("sim.real",), project=(*FOUNDATION, "zray.protocol", "sim", "zray", "zray.util"),
          third_party=("msgspec",)),
    # The public modules: they gather names and nothing else, but for the helpers of zray.util.
    Layer(own=("zray",), project=(*FOUNDATION, "zray.api", *PUBLIC)),
    Layer(own=PUBLIC, project=(*FOUNDATION, "zray.api", "zray", *PUBLIC),
          third_party=("cloudpickle", "joblib")),
)  # fmt: skip

IMPURE_MODULES = frozenset({
    "asyncio", "concurrent", "datetime", "io", "logging", "mmap", "multiprocessing", "os",
    "pathlib", "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess",
    "sys", "tempfile", "threading", "time", "uuid", "zmq",
})  # fmt: skip
IMPURE_BUILTINS = frozenset({"frozenset", "hash", "id", "input", "open", "print", "set"})
IMPURE_PROJECT_NAMES = {
    "random_id": "draws randomness: let the host of the machine pass it in",
    "root_task_id": "draws randomness: let the host of the machine pass it in",
    "from_environment": "reads the environment: let the host of the machine pass the Config in",
}
FOREIGN_WORKPLACE = re.compile(r"(?<![\w.])/(?:work|opt)/")


# --- who may import whom -------------------------------------------------------------------------


def _within(module: str, packages: Iterable[str]) -> bool:
    """Whether ``module`` is one of ``packages`` or inside one; ``zray`` means the root module alone."""
    return any(
        module == package or (package != "zray" and module.startswith(package + ".")) for package in packages
    )


def layer_of(module: str) -> Layer | None:
    """The layer that owns ``module``: the longest name in the table wins."""
    best: tuple[int, Layer] | None = None
    for layer in LAYERS:
        for name in layer.own:
            if _within(module, (name,)) and (best is None or len(name) > best[0]):
                best = len(name), layer
    return best[1] if best else None


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The absolute name of the module that a ``from ... import`` reads."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    stem = parts[: len(parts) - node.level + is_package]
    return ".".join([*stem, node.module] if node.module else stem)


def imported_modules(
    tree: ast.AST, module: str, known: Container[str], *, is_package: bool = False
) -> Iterator[tuple[int, str]]:
    """``(line, module)`` for every import, at any depth of ``tree``.

    ``from a import b`` is the module ``a.b`` where ``known`` has one, otherwise ``a``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in known else base


def layer_violations(
    source: str, module: str, known: Container[str] = (), *, is_package: bool = False
) -> list[str]:
    """Imports of ``module`` that its layer does not allow."""
    layer = layer_of(module)
    if layer is None:
        return [f"{module} is in no layer: give it a place in tests/tidy/rules.py"]
    allowed = layer.own + layer.project
    found = []
    for line, target in imported_modules(ast.parse(source), module, known, is_package=is_package):
        top = target.partition(".")[0]
        if top in ("zray", "sim"):
            legal = _within(target, allowed)
        else:
            legal = top in sys.stdlib_module_names or _within(target, layer.third_party)
        if not legal:
            found.append(f"{module}:{line} may not import {target}")
    return found


# --- core is pure --------------------------------------------------------------------------------


def _impure_import(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        names = [alias.name.partition(".")[0] for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [(node.module or "").partition(".")[0]]
        if names == ["random"] and any(alias.name != "Random" for alias in node.names):
            return "imports a shared random generator: take a random.Random as an argument"
    else:
        return None
    return next((f"imports {name}" for name in names if name in IMPURE_MODULES), None)


def _random_aliases(tree: ast.AST) -> list[str]:
    """The names under which ``tree`` knows the module ``random``."""
    return [
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "random"
    ]


def _impure_expression(node: ast.AST, random_aliases: list[str]) -> str | None:
    if isinstance(node, ast.Set | ast.SetComp):
        return "builds a set, whose order differs between processes: use a dict"
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in IMPURE_BUILTINS:
        return f"uses {node.id}"
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if owner in random_aliases and node.attr != "Random":
            return f"uses random.{node.attr}: take a random.Random as an argument"
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
    if name is None and isinstance(node, ast.alias):
        name = node.name
    if name in IMPURE_PROJECT_NAMES:
        return f"{name} {IMPURE_PROJECT_NAMES[name]}"
    if isinstance(node, ast.Call) and not node.args and not node.keywords:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called == "Random":
            return "seeds a generator from the machine: pass a seed"
    return None


def purity_violations(source: str, module: str) -> list[str]:
    """What a module of ``zray.core`` does that a pure state machine may not do."""
    tree = ast.parse(source)
    aliases = _random_aliases(tree)
    found = []
    for node in ast.walk(tree):
        wrong = _impure_import(node) or _impure_expression(node, aliases)
        if wrong:
            found.append(f"{module}:{getattr(node, 'lineno', 0)} {wrong}")
    return found


# --- size, words, shape --------------------------------------------------------------------------


def length_violations(source: str, module: str) -> list[str]:
    """Functions and modules that are too long to be one room."""
    found = []
    lines = len(source.splitlines())
    if lines > MODULE_LINES_MAX:
        found.append(f"{module} has {lines} lines, more than {MODULE_LINES_MAX}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"{module}:{node.lineno} {node.name} has {lines} lines, "
                             f"more than {FUNCTION_LINES_MAX}")  # fmt: skip
    return found


def docstring_violations(source: str, module: str) -> list[str]:
    """The module and the public classes and functions at its top level that do not say what they are.

    An empty file, such as the ``__init__.py`` of an internal package, has nothing to say.
    """
    tree = ast.parse(source)
    if not tree.body:
        return []
    found = [] if ast.get_docstring(tree) else [f"{module} has no docstring"]
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found += [
        f"{module}:{node.lineno} {node.name} has no docstring"
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
        if not _is_overload(node)
    ]
    return found


def _is_overload(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is one signature of a function that says what it is below."""
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)


def _is_mutable(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("bytearray", "defaultdict", "deque", "dict", "list", "set")
    return isinstance(node, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def default_violations(source: str, module: str) -> list[str]:
    """Arguments whose default is one mutable object shared by every call."""
    return [
        f"{module}:{node.lineno} {getattr(node, 'name', 'lambda')} has a mutable default argument"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        and any(map(_is_mutable, [*node.args.defaults, *node.args.kw_defaults]))
    ]


def class_names(source: str) -> list[str]:
    """The classes defined at the top level of a module."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def duplicate_class_violations(names_by_module: dict[str, list[str]]) -> list[str]:
    """Class names that two modules define: one name, one meaning."""
    homes: dict[str, list[str]] = {}
    for module, names in names_by_module.items():
        for name in names:
            homes.setdefault(name, []).append(module)
    return [f"class {name} is defined in {', '.join(m)}" for name, m in sorted(homes.items()) if len(m) > 1]


def workplace_violations(text: str, path: str) -> list[str]:
    """Lines that name a directory of somebody's machine."""
    return [
        f"{path}:{number} names a machine path: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if FOREIGN_WORKPLACE.search(line)
    ]
