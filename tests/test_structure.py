"""What a linter cannot see: sizes, who may register hooks, how much is written twice.

The limits are a ratchet, not a virtue. A finding that is right as it is goes into EXCEPTIONS with its reason, and an exception
that no longer applies fails as well.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.tree import DEFINITIONS, docstring_lines, modules, source

FILE_LINES, FUNCTION_LINES, METHODS, PARAMETERS = 400, 60, 15, 8
BLOCK = 8
DUPLICATED_SHARE = 0.01
HOOKS = {
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_module_forward_hook",
}

EXCEPTIONS: dict[str, str] = {
    "cli/factors.py: function train": "a line for each option",
    "cli/factors.py: parameters of encode": "those of build: it builds one lens",
    "cli/factors.py: parameters of train": "those of build, and the choices of a dictionary",
    "cli/judging.py: parameters of compare": "those of build: it builds one lens",
    "cli/judging.py: parameters of evaluate": "those of build: it builds one lens",
    "cli/verbs.py: parameters of build": "an option is an argument, and build has the options of everything it runs",
    "cli/verbs.py: parameters of diff": "an option is an argument, and models are compared in two ways",
    "cli/verbs.py: parameters of geometry": "those of build: it builds one lens",
    "cli/verbs.py: parameters of neurons": "those of build: it builds one lens",
    "cli/verbs.py: parameters of steer": "an option is an argument",
    "cli/verbs.py: parameters of vocabulary": "those of build, and of how a single vector is read",
}


def code_lines(tree: ast.Module, module: str, node: ast.AST) -> int:
    """Lines of a definition with code on them: no blank ones, no comments, no docstrings; nested functions count."""
    prose, lines = docstring_lines(tree), source(module)
    numbers = range(node.lineno, node.end_lineno + 1)  # pyright: ignore[reportAttributeAccessIssue]
    return sum(1 for n in numbers if n not in prose and lines[n - 1].strip() and not lines[n - 1].lstrip().startswith("#"))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a caller sees."""
    named = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")])


def methods(node: ast.ClassDef) -> int:
    """How many methods a class defines."""
    return sum(isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) for child in node.body)


def oversized() -> Iterator[tuple[str, str]]:
    """Every file, function and class over a limit: what EXCEPTIONS calls it, and its size."""
    for module, tree in modules().items():
        if (size := len(source(module))) > FILE_LINES:
            yield f"{module}: file", f"{size} lines, limit {FILE_LINES}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and (size := methods(node)) > METHODS:
                yield f"{module}: class {node.name}", f"{size} methods, limit {METHODS}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if (size := code_lines(tree, module, node)) > FUNCTION_LINES:
                    yield f"{module}: function {node.name}", f"{size} code lines, limit {FUNCTION_LINES}"
                if (size := parameters(node)) > PARAMETERS:
                    yield f"{module}: parameters of {node.name}", f"{size} parameters, limit {PARAMETERS}"


def calls(kind: type[ast.Name] | type[ast.Attribute], name: str) -> list[str]:
    """Where a function (ast.Name) or method (ast.Attribute) of this name is called, as `module:line`."""
    return [
        f"{module}:{node.lineno}"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, kind)
        and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
    ]


def telling_lines(module: str, tree: ast.Module) -> list[str]:
    """A module's lines without prose, imports and lone punctuation."""
    prose = docstring_lines(tree)
    imports = {
        n
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for n in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = (line.strip() for n, line in enumerate(source(module), 1) if n not in prose and n not in imports)
    return [line for line in lines if re.search(r"\w", line) and not line.startswith("#")]


def test_sizes_stay_within_limits() -> None:
    found = dict(oversized())
    new = {where: size for where, size in found.items() if where not in EXCEPTIONS}
    assert not new, "over the limit: split it, or add it to EXCEPTIONS with the reason"
    stale = set(EXCEPTIONS) - set(found)
    assert not stale, "no longer over the limit: remove from EXCEPTIONS"
    assert all(reason.strip() for reason in EXCEPTIONS.values())


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_only_model_hooks_registers_hooks(name: str) -> None:
    assert [where for where in calls(ast.Attribute, name) if not where.startswith("model/hooks.py:")] == []


@pytest.mark.parametrize("name", ["print", "hasattr", "breakpoint", "eval", "exec"])
def test_nothing_calls(name: str) -> None:
    assert calls(ast.Name, name) == []


def test_every_module_says_why_it_exists() -> None:
    silent = [module for module, tree in modules().items() if not (ast.get_docstring(tree) or "").strip()]
    assert silent == []


def test_every_package_is_one() -> None:
    folders = {module.rpartition("/")[0] for module in modules()}
    assert [folder for folder in folders if folder and f"{folder}/__init__.py" not in modules()] == []


def test_package_inits_are_aliases_only() -> None:
    wrong = [
        f"{module}:{node.lineno}"
        for module, tree in modules().items()
        if module.endswith("/__init__.py")
        for node in tree.body[1:]
        if not isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.Assign) and "__all__" in ast.unparse(node.targets[0]))
    ]
    assert wrong == []


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc", "base"}
    assert [module for module in modules() if drawers & set(module.removesuffix(".py").split("/"))] == []


def test_the_package_does_not_import_its_own_surface() -> None:
    """`microtome` itself lists the public names; code inside imports them where they live."""
    wrong = [
        f"{module}:{node.lineno}"
        for module, tree in modules().items()
        if module not in ("__init__.py", "__main__.py")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name == "microtome" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "microtome")
    ]
    assert wrong == []


def test_little_is_written_twice() -> None:
    lines = {module: telling_lines(module, tree) for module, tree in modules().items()}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for module, code in lines.items():
        for start in range(len(code) - BLOCK + 1):
            places[tuple(code[start : start + BLOCK])].append((module, start))
    shared = {block: where for block, where in places.items() if len({module for module, _ in where}) > 1}
    twice = {(module, start + step) for where in shared.values() for module, start in where for step in range(BLOCK)}
    share = len(twice) / sum(map(len, lines.values()))
    pairs = sorted({" ~ ".join(sorted({module for module, _ in where})) for where in shared.values()})
    assert share < DUPLICATED_SHARE, f"{share:.1%} of the lines stand in two files: {'; '.join(pairs)}"


def test_definitions_are_not_hidden_twice_in_a_module() -> None:
    """A second definition of a name at the top of a module silently replaces the first."""
    wrong = []
    for module, tree in modules().items():
        names = [node.name for node in tree.body if isinstance(node, DEFINITIONS) and not node.decorator_list]
        wrong += [f"{module}: {name}" for name in set(names) if names.count(name) > 1]
    assert wrong == []
