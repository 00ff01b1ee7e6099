"""A user's own function by "MODULE:FUNCTION", imported as Python would from the folder that the program starts in."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Collection, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

GIVEN = "given_in_python"  # in the place of a module
_given: dict[str, Callable[..., Any]] = {}  # objects have no name that another process could find


def give(name: str, function: Callable[..., Any]) -> str:
    """Makes ``function`` known by ``name`` in this process; returns what ``own_function`` finds it by."""
    _given[name] = function
    return f"{GIVEN}:{name}"


def own_function(
    name: str, what: str, positional: Sequence[str] = (), keywords: Sequence[str] = (), *, has_options: bool = False
) -> Callable[..., Any]:
    """The function called ``name``, which takes these arguments, and keywords of its own if it ``has_options``.

    ``what`` it is for begins every ``ValueError``.
    """
    module_name, _, function = name.partition(":")
    if module_name == GIVEN:
        if function not in _given:
            raise ValueError(
                f"{what} {name!r} was given from Python as an object, and is not in this process: give it there again, "
                "or as MODULE:FUNCTION, which every process can import"
            )
        return _given[function]
    if not all(part.isidentifier() for part in (*module_name.split("."), function)):
        raise ValueError(f"{what} {name!r}: expected MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does when it is imported
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        reason = error if missing else f"importing {module_name} failed with {failure(error)}"
        raise ValueError(f"{what} {name!r}: {reason}") from error
    found = getattr(module, function, None)
    place = getattr(module, "__file__", module_name)  # a module of Python itself has no file
    wanted = f"{what} {name!r} must be a function of {', '.join((*positional, *keywords))} in {place}"
    if not callable(found):
        raise ValueError(f"{wanted}; got {found!r}")
    try:
        signature = inspect.signature(found)
        named = [one.name for one in signature.parameters.values() if has_options and one.kind == one.KEYWORD_ONLY]
        signature.bind(*positional, **dict.fromkeys((*keywords, *named)))
    except (TypeError, ValueError) as error:  # the second of what has no signature
        raise ValueError(f"{wanted}: {error}") from error
    return found


def failure(error: Exception) -> str:
    """What went wrong in a user's code and where: ``TypeError: ... (mine.py:3)``."""
    frame = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


ALLOW = "Networks by MODULE:FUNCTION that may be imported because a folder names them."  # the flag's help


def check_allowed(name: str, folder: Path, allow: Collection[str]) -> None:
    """``ValueError`` if the run in ``folder`` asks for code that the user did not name, or that lies in the folder."""
    if ":" not in name or name.startswith(f"{GIVEN}:"):  # which nothing is imported for
        return
    if name not in ((allow,) if isinstance(allow, str) else allow):
        raise ValueError(
            f"{folder} asks for code, {name}: none was run. If you know that module and trust it, add --allow={name}"
        )
    home, places = folder.resolve(), None
    for part in name.partition(":")[0].split("."):
        spec = PathFinder.find_spec(part, places)  # which imports nothing
        within = spec.submodule_search_locations if spec else None
        places = None if within is None else [*within]
        found = [spec.origin, *(places or ())] if spec else []
        if any(place and Path(place).resolve().is_relative_to(home) for place in found):
            raise ValueError(f"{folder} asks for code in itself, {name}: nothing in a run's folder is ever run")
        if places is None:
            return
