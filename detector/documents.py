"""Reading JSON files that come from others."""

import json
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
