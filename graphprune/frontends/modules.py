"""References to Python factories: ``path/to/file.py:factory`` and ``package.module:factory``.

A factory takes no arguments and returns a ``torch.nn.Module``, or ``(module, example inputs)``. Nothing here imports
PyTorch before the user's own code has been imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from graphprune.errors import GraphpruneError, InputError, Terminated, UsageError

__all__ = ["first_line", "is_reference", "missing_torch", "named", "resolve"]

_SHOWN = 8  # names listed in a message


def is_reference(text: str) -> bool:
    """Whether ``text`` names a Python factory rather than a model file.

    True for ``FILE.py:NAME``, ``package.module:NAME`` and, so that ``resolve`` can say what is missing, ``FILE.py``.
    An existing file whose name happens to hold a colon is a file.
    """
    place, colon, name = text.rpartition(":")
    if not colon:
        return text.endswith(".py")
    if place.endswith(".py"):
        return True
    dotted = all(part.isidentifier() for part in (*place.split("."), *name.split(".")))
    return dotted and not place.endswith(".onnx") and not Path(text).exists()


def resolve(text: str) -> Callable[[], Any]:
    """Import what ``text`` names and return a function that calls the factory and checks its result.

    A file that is part of a package (its folder has ``__init__.py``) is imported as that package's module, so that its
    absolute and relative imports work; any other file under a private name made from its name and contents. The
    folder to import from is put first on ``sys.path`` and stays there, as for a script: factories import lazily.
    Whatever user code prints goes to stderr.

    Returns:
        A function without arguments that returns a module or ``(module, inputs)``. It raises InputError when the
        factory raises, or returns something else.

    Raises:
        InputError: no such file or module, or it cannot be imported (a package it needs is missing, it raises).
        UsageError: no such name in it, or the name is not a factory without required arguments.
    """
    found = named(text)
    _check_factory(found, text)
    return lambda: _call(found, text)


def named(text: str) -> Any:
    """Import what ``text`` names. Raises InputError: it cannot be imported; UsageError: the name is not in it."""
    place, colon, name = text.rpartition(":")
    if not colon:
        place, name = text, ""
    with contextlib.redirect_stdout(sys.stderr):
        module = _import(place)
    if not name:
        raise UsageError(f"'{place}' names nothing in it: write {place}:NAME; it has {_listed(_candidates(module))}")
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            near = get_close_matches(part, _candidates(found), n=3) or _candidates(found)
            raise UsageError(f"'{place}' has no {name!r}; it has {_listed(near)}") from error
    return found


def first_line(error: BaseException) -> str:
    """An error's class and the first line of its text, without colours."""
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    line = next((line.strip() for line in plain.splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def missing_torch(what: str) -> InputError:
    """The error for a PyTorch module where PyTorch is not installed."""
    return InputError(f"{what} needs PyTorch, which is not installed: pip install graphprune[torch]")


def _candidates(holder: object) -> list[str]:
    """Public names that could be meant: what the file itself defines, or else all that can be called."""
    public = [name for name, held in vars(holder).items() if not name.startswith("_") and callable(held)]
    own = [
        name for name in public if getattr(getattr(holder, name), "__module__", None) == getattr(holder, "__name__", "")
    ]
    return own or public


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN])) or "no function at all"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _is_torch_module(thing: object) -> bool:
    """Without importing PyTorch: where it was never imported, nothing is a module of it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def _check_factory(found: object, text: str) -> None:
    if _is_torch_module(found):
        return
    if not callable(found):
        raise UsageError(f"'{text}' is a {type(found).__name__}, not a function that returns a module")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # a built-in that does not say what it takes
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UsageError(
            f"'{text}' cannot be called without arguments ({error}); name a function that takes none and returns "
            "the module"
        ) from error


def _call(factory: Any, text: str) -> Any:
    if _is_torch_module(factory):
        return factory
    try:
        with contextlib.redirect_stdout(sys.stderr):
            made = factory()
    except (GraphpruneError, Terminated):
        raise
    except ModuleNotFoundError as error:
        raise _lacking(text, error) from error
    except (Exception, SystemExit) as error:
        raise InputError(f"'{text}' raised {first_line(error)}") from error
    if _is_torch_module(made) or (isinstance(made, tuple) and len(made) == 2 and _is_torch_module(made[0])):
        return made
    if importlib.util.find_spec("torch") is None:
        raise missing_torch(f"'{text}'")
    shown = (
        f"a tuple ({', '.join(type(part).__name__ for part in made)})"
        if isinstance(made, tuple)
        else type(made).__name__
    )
    raise InputError(f"'{text}' returned {shown}; it must return a torch.nn.Module or (module, example inputs)")


def _lacking(what: str, error: ModuleNotFoundError) -> InputError:
    package = (error.name or "").partition(".")[0]
    if package == "torch":
        return missing_torch(f"'{what}'")
    return InputError(f"'{what}' needs the module {error.name!r}, which is not installed")


def _import(place: str) -> ModuleType:
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise InputError(f"'{place}' {'is a folder' if Path(place).is_dir() else 'does not exist'}")
    try:
        return _import_file(Path(place).resolve()) if is_file else _import_dotted(place)
    except (GraphpruneError, Terminated):
        raise
    except ModuleNotFoundError as error:
        if error.name and not is_file and (place == error.name or place.startswith(error.name + ".")):
            raise InputError(
                f"there is no module {place!r} to import; for a file write path/to/file.py:NAME"
            ) from error
        raise _lacking(place, error) from error
    except (Exception, SystemExit) as error:
        at = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"'{place}' cannot be imported: {first_line(error)}{at}") from error


def _import_dotted(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # a console script does not see the folder it is run in
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    root, parts = path.parent, [path.stem] if path.stem != "__init__" else []
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    if root != path.parent and all(part.isidentifier() for part in parts):
        module = importlib.import_module(".".join(parts))
        if module.__file__ is not None and Path(module.__file__).resolve() == path:
            return module
    # The name holds the contents, not the place: what is traced from it must be the same on every machine.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    name = f"_graphprune_{path.stem}_{digest}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their own module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
