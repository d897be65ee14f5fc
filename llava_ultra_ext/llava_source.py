"""Reading LLaVA's source without importing it: where it is, and what its modules define."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def llava_folder() -> Path | None:
    """The folder of the ``llava`` package that Python would import, or ``None``; imports nothing."""
    spec = importlib.util.find_spec("llava")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def source_file(folder: Path, module: str) -> Path:
    """The file of a module of LLaVA (of the package itself where it is one); need not exist."""
    path = folder.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parameters(node: ast.AST) -> tuple[str, ...] | None:
    """Parameter names of a function in order, with their stars; ``None`` for anything else."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    if node.args.vararg:
        names.append("*" + node.args.vararg.arg)
    if node.args.kwarg:
        names.append("**" + node.args.kwarg.arg)
    return tuple(names)


class Definitions:
    """What LLaVA's modules define; each file is parsed once.

    Args:
        folder: LLaVA's package folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bodies: dict[str, list[ast.stmt]] = {}

    def find(self, module: str, name: str) -> ast.AST | None:
        """The statement that defines a global (or ``Class.method``) as ``module`` sees it.

        Imports from LLaVA's own modules are followed, ``import *`` too; one from elsewhere counts as a definition.

        Raises:
            SyntaxError: a file on the way is not Python for this interpreter.
        """
        first, *rest = name.split(".")
        node = self._global(module, first, set())
        for part in rest:
            node = _bound_names(getattr(node, "body", [])).get(part)
        return node

    def _global(self, module: str, name: str, seen: set) -> ast.AST | None:
        if (module, name) in seen:
            return None
        seen.add((module, name))
        body = self._body(module)
        node = _bound_names(body).get(name)
        if isinstance(node, ast.ImportFrom):
            source = self._absolute(module, node)
            own = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            if not source.startswith("llava.") or source_file(self._folder, f"{source}.{own}").is_file():
                return node
            return self._global(source, own, seen)
        if node is not None:
            return node
        stars = (statement for statement in _statements(body) if _is_star(statement))
        sources = (self._absolute(module, star) for star in stars if isinstance(star, ast.ImportFrom))
        found = (self._global(source, name, seen) for source in sources if source.startswith("llava."))
        return next((item for item in found if item is not None), None)

    def _body(self, module: str) -> list[ast.stmt]:
        if module not in self._bodies:
            path = source_file(self._folder, module)
            self._bodies[module] = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
        return self._bodies[module]

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.split(".")
        steps = node.level - (source_file(self._folder, module).name == "__init__.py")
        return ".".join([*package[: len(package) - steps], *((node.module or "").split(".") if node.module else ())])


def _is_star(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, with those inside ``try`` and ``if`` (LLaVA imports its models in a ``try``)."""
    for node in body:
        yield node
        if isinstance(node, (ast.Try, ast.If)):
            yield from _statements([*node.body, *node.orelse])


def _bound_names(body: list[ast.stmt]) -> dict[str, ast.AST]:
    """Names that a module's or class's body binds, without running it."""
    names: dict[str, ast.AST] = {}
    for node in _statements(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update({alias.asname or alias.name: node for alias in node.names})
        elif isinstance(node, ast.Assign):
            names.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
    return names
