"""Large annotation files as arrays on disk: made once, then mapped into memory and shared by all processes."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from detector.annotations import Annotations
from detector.cache import build_once, cache_folder
from detector.errors import UserError

LARGE_BYTES = 32 * 2**20  # of a file: what is smaller is read in about a second
VERSION = 1
ARRAYS = ("image_ids", "image_hw", "start", "boxes", "labels", "crowd", "area")
PLAIN = ("category_ids", "category_names", "hash", "skipped", "missing")


class Names(Sequence[str]):
    """Many strings as one array of bytes; string i ends at ends[i]."""

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        begin = int(self.ends[place - 1]) if place else 0
        return self.content[begin : int(self.ends[place])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


def compacted(path: Path, settings: Sequence[Any], read: Callable[[], Annotations]) -> Annotations:
    """What read() makes of the file at `path` under `settings`, from the cache if neither has changed since.

    A file counts as changed when its size or its time has. Arrays are mapped, read-only. Raises UserError as read()
    does, or if the cache cannot be written.
    """
    found = path.stat()
    source = _digest([str(path.absolute()), *settings])
    name = f"annotations-{source}-{_digest([VERSION, found.st_size, found.st_mtime_ns])}"
    for _ in range(2):
        folder = _built(name, read)
        _drop_others(source, name)
        try:
            return _read(folder)
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            # a disk has damaged it, or another process dropped it
            shutil.rmtree(folder, ignore_errors=True)
    raise UserError(f"the cache folder {cache_folder()} loses what is written to it; NAS_CACHE moves it")


def _built(name: str, read: Callable[[], Annotations]) -> Path:
    try:
        return build_once(name, lambda folder: _write(folder, read()))
    except OSError as error:
        raise UserError(
            f"the cache folder {cache_folder()} cannot be written ({error.strerror}); NAS_CACHE moves it"
        ) from error


def _drop_others(source: str, name: str) -> None:
    """What the file was before; who has mapped it keeps it."""
    for old in cache_folder().glob(f"annotations-{source}-*"):
        if old.is_dir() and old.suffix != ".partial" and old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _write(folder: Path, found: Annotations) -> None:
    for key in ARRAYS:
        np.save(folder / f"{key}.npy", getattr(found, key))
    names = Names.of(found.file_names)
    np.save(folder / "names.npy", names.content)
    np.save(folder / "ends.npy", names.ends)
    (folder / "plain.json").write_text(json.dumps({key: getattr(found, key) for key in PLAIN}), encoding="utf-8")


def _read(folder: Path) -> Annotations:
    mapped = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
    plain = json.loads((folder / "plain.json").read_text(encoding="utf-8"))
    plain |= {key: tuple(plain[key]) for key in ("category_ids", "category_names")}
    names = Names(mapped.pop("names"), mapped.pop("ends"))
    return Annotations(**mapped, **plain, file_names=names)
