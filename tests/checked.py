"""Annotations are checked while tests run: by beartype, within jaxtyping's memory of axes, as cheaply as the same check can be had.

The import hook of `--jaxtyping-packages` puts `jaxtyping.jaxtyped` before every function and data class. That checks arguments
twice and binds them once more, and took as long as what a build on a toy model computes. With `install` instead

- one wrapper of beartype checks arguments and result, within a memory of axes only where annotations name axes;
- a function within a function, which is made at every call of the outer one, gets the check that was made the first time:
  a check depends on names and annotations only;
- what is neither (a generator, an annotation that is a string or names an axis by an argument) is left to jaxtyping.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ForwardRef, Literal, TypeVar, get_args, get_origin

import jaxtyping
from beartype import beartype

_within_axes = jaxtyping.jaxtyped
_made: dict[tuple[object, ...], Callable[..., Any]] = {}


def install() -> None:
    """Let the decorator of the import hook be the one of this module; before anything of the package is imported."""
    jaxtyping.jaxtyped = _jaxtyped  # pyright: ignore[reportAttributeAccessIssue]


def _jaxtyped(*, typechecker: object) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`, as the import hook calls it."""
    return _checked


def _checked(found: Any) -> Any:
    if inspect.isclass(found):
        if dataclasses.is_dataclass(found) and "__init__" in vars(found):
            found.__init__ = _checked(found.__init__)
        return found
    if not isinstance(found, types.FunctionType):
        return _within_axes(typechecker=_remembered)(found)
    hints = found.__annotations__.values()
    if not hints:
        return found
    if "<locals>" in found.__qualname__ or inspect.isgeneratorfunction(found) or any(map(_not_plain, hints)):
        return _within_axes(typechecker=_remembered)(found)
    return _with_axes(beartype(found)) if any(map(_names_axes, hints)) else beartype(found)


def _with_axes(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a memory of its own for the lengths that axes have."""

    @functools.wraps(function)
    def within(*arguments: object, **named: object) -> object:
        with _within_axes("context"):
            return function(*arguments, **named)

    return within


def _parts(hint: object) -> list[object]:
    """What an annotation is made of; the arguments of a `Callable` are in a list, and those of a `Literal` are values."""
    if get_origin(hint) is Literal:
        return []
    return [*hint] if isinstance(hint, list | tuple) else [*get_args(hint)]


def _is_array(hint: object) -> bool:
    return inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)


def _names_axes(hint: object) -> bool:
    return _is_array(hint) or any(map(_names_axes, _parts(hint)))


def _not_plain(hint: object) -> bool:
    """Whether what it says depends on more than itself: on another annotation, on a name, on the value of an argument."""
    by_value = _is_array(hint) and "{" in vars(hint)["dim_str"]
    return by_value or isinstance(hint, str | TypeVar | ForwardRef) or any(map(_not_plain, _parts(hint)))


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype(function)`, where `function` is the empty one that jaxtyping makes of a signature."""
    code = function.__code__
    arguments = (code.co_varnames, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    annotations = tuple((name, repr(hint)) for name, hint in function.__annotations__.items())
    key = (function.__module__, function.__qualname__, arguments, annotations)
    if key not in _made:
        _made[key] = beartype(function)
    return _made[key]
