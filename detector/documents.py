"""JSON documents: reading those that come from others, and what two differ in."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detector.errors import UserError


def read_json(path: Path) -> Any:
    """The document. Raises UserError naming the file and the place in it."""
    try:
        return _parsed(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a null character in the path
        raise UserError(f"{path}: cannot be read ({error})") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key is OLD, now NEW` for every leaf that differs, keys of sections joined by dots."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key} is {before}, now {after}"


def in_short(differing: Iterable[str]) -> str:
    """The first three, and how many more there are."""
    found = list(differing)
    return "; ".join(found[:3]) + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")


def _parsed(content: bytes, path: Path) -> Any:
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UserError(f"{path}: is not valid JSON ({where})") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"{path}: is not valid JSON ({error})") from error
