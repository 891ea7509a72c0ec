"""Functions of Python files that a user names on the command line."""

import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from jaxrl4lm.types import InputError

_OURS = (str(pathlib.Path(__file__).parent), "<frozen importlib.")
"""Code between a command and what a user wrote."""


def describe_error(error: BaseException) -> str:
    """An exception on one line, with the line of the user's code that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OURS)]
    where = f" at {pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split()) or 'no message'}"


def name_absolutely(named: str) -> str:
    """FILE.py:function with the whole path of the file, which other folders understand; any other name as it is."""
    path, _, function = named.rpartition(":")
    return f"{pathlib.Path(path).absolute()}:{function}" if path.endswith(".py") else named


def load_function(path: pathlib.Path, function: str, option: str) -> Callable[..., Any]:
    """A function of a Python file, which may import its neighbours.

    Args:
      option: by which the file was named, for messages.
    Raises:
      InputError: if there is no such file or function, or the file raises.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{option}: {path} {what}: check the path")
    spec = importlib.util.spec_from_file_location(f"_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by its name; files beside this one may be imported by it.
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # Leave no __pycache__ beside the user's file.
    keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does wrong
        raise InputError(
            f"{option}: importing {path} raised {describe_error(error)}: mend the file"
        ) from error
    finally:
        sys.dont_write_bytecode = keep
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{option}: {path} has no function {function!r}: name one that it defines")
    return found
