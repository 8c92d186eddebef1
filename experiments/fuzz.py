"""What do damaged and hostile files do? python -m experiments.fuzz --inputs 10000

Files that people get from others (a graph, a configuration, annotations, weights, a database) are mutated at random,
seeded, in their bytes and in their values (huge numbers, wrong types, deep nesting, YAML aliases that multiply). Each
must load, or be refused as a mistake in one line, within SECONDS and MEMORY: anything else is a failure, and is printed
with the input's number. Printed: inputs, loaded and refused by kind.
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import math
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from detector.architecture import PRIORS, Architecture
from detector.checkpoint import TrainedModel, make_model
from detector.coco import load_coco
from detector.command import one_line
from detector.config import DetectorSections
from detector.config_files import load_config
from detector.errors import UserError
from nas.budget import Budget
from nas.config import Config
from nas.space import load_prior
from nas.store import Measurement, Outcome, Purpose, Store, Study
from nas.time_limit import OutOfTimeError, time_limit

SECONDS = 10.0
MEMORY = 4 * 2**30  # bytes more than at the start
CPU = torch.device("cpu")

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e308, math.inf, math.nan, "", "nan", "x" * 10_000,
    "../../etc/passwd", "\0", [], {}, [[]], [None], {"": None}, [0] * 1000,
)  # fmt: skip


HOSTILE_BYTES = (b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"\xff\xfe", b"\0" * 50, b"!!python/object")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        failures = run(Path(folder), args.inputs, args.seed, args.kinds)
    sys.exit(bool(failures))


def run(folder: Path, inputs: int, seed: int, kinds: list[str]) -> int:
    """How many inputs failed."""
    ends: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    seeds = {kind: KINDS[kind][0](folder) for kind in kinds}
    with limited_memory():
        for number in range(inputs):
            kind = kinds[number % len(kinds)]
            stream = random.Random(f"{seed} {number}")
            path = folder / "input"
            path.write_bytes(mutated(seeds[kind], stream))
            end = tried(KINDS[kind][1], path)
            ends[kind][end.partition(":")[0]] += 1
            if end not in ("loaded", "refused"):
                print(f"{kind}, input {number}: {end}", flush=True)
    print("| file | inputs | loaded | refused | failed |\n|---|---|---|---|---|")
    total = 0
    for kind, counts in ends.items():
        failed = sum(counts.values()) - counts["loaded"] - counts["refused"]
        total += failed
        print(f"| {kind} | {sum(counts.values())} | {counts['loaded']} | {counts['refused']} | {failed} |")
    return total


@contextlib.contextmanager
def limited_memory() -> Any:
    """An allocation beyond it is a MemoryError, and so a failure."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def tried(load: Callable[[Path], object], path: Path) -> str:
    """loaded, refused, or what went wrong."""
    try:
        with time_limit(SECONDS):
            load(path)
    except UserError as error:
        shown = one_line(error)
        return "refused" if shown.isprintable() else f"a refusal with control characters: {shown!r}"
    except OutOfTimeError:
        return f"took longer than {SECONDS:g} s"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        at = ours[-1] if ours else where
        return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno} ({str(error)[:100]})"
    return "loaded"


def mutated(content: bytes, stream: random.Random) -> bytes:
    """Structured files half of the time in their values, all others in their bytes."""
    if stream.random() < 0.6:
        if content.startswith(b"PK"):
            return _as_weights(mutated_values(torch.load(io.BytesIO(content), weights_only=True), stream))
        with contextlib.suppress(ValueError):
            return json.dumps(mutated_values(json.loads(content), stream), allow_nan=True).encode()
        if not content.startswith(b"SQLite"):
            with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
                return _as_yaml(mutated_values(yaml.safe_load(content), stream), stream)
    return mutated_bytes(content, stream)


def mutated_values(document: Any, stream: random.Random) -> Any:
    """One to four values replaced, dropped or nested, anywhere."""
    document = copy.deepcopy(document)
    for _ in range(stream.randint(1, 4)):
        holder, key = _place(document, stream)
        if holder is None:
            return stream.choice(HOSTILE)
        action = stream.random()
        if action < 0.7:
            holder[key] = copy.deepcopy(stream.choice(HOSTILE))
        elif action < 0.8:
            del holder[key]
        elif action < 0.9 and isinstance(holder, list):
            holder += [copy.deepcopy(holder[key])] * stream.choice([1, 20, 5000])
        else:
            for _ in range(stream.choice([3, 200])):
                holder[key] = [holder[key]]
    return document


def _place(document: Any, stream: random.Random) -> tuple[Any, Any]:
    """A random container of the document, and one of its keys."""
    places = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        places += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return stream.choice(places) if places else (None, None)


def _as_yaml(document: Any, stream: random.Random) -> bytes:
    if not isinstance(document, dict):
        return json.dumps(document).encode()
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in document.items())
    if stream.random() < 0.1:  # a billion laughs
        text += "a: &a [x, x, x, x, x, x, x, x, x]\n"
        for old, new in itertools.pairwise("abcdefghi"):
            text += f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    return text.encode()


def _as_weights(document: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def mutated_bytes(content: bytes, stream: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(stream.randint(1, 8)):
        at = stream.randrange(len(data) + 1)
        action = stream.randrange(6)
        if action == 0:
            data[at : at + 1] = bytes([stream.randrange(256)])
        elif action == 1:
            del data[at : at + stream.choice([1, 10, 1000])]
        elif action == 2:
            data[at:at] = data[at : at + 100] * stream.choice([1, 50])
        elif action == 3:
            data[at:at] = stream.choice(HOSTILE_BYTES)
        elif action == 4:
            del data[at:]
        else:
            data[at:at] = stream.randbytes(20)
    return bytes(data)


def _graph(_folder: Path) -> bytes:
    prior = PRIORS["nas-fpn"]
    config = load_config("smoke", Config).model_dump(mode="json", include={"data", "detector", "training"})
    found = {"study": "x", "config": config}
    return json.dumps(Architecture(prior.cells, 1, prior.attention, found).to_dict()).encode()


def _load_graph(path: Path) -> object:
    return load_prior(str(path)), Architecture.load(path).hash


def _configuration(_folder: Path) -> bytes:
    return Path(__file__).with_name("shapes.yaml").read_bytes()


def _load_configuration(path: Path) -> object:
    config = load_config(str(path), Config)
    return Budget.of(config)


def _annotations(folder: Path) -> bytes:
    for image in range(3):
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(folder / f"{image}.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 48} for i in range(3)]
    boxes = [
        {"id": i, "image_id": i % 3, "category_id": 7, "bbox": [2, 3, 10, 12.5], "area": 125, "iscrowd": 0}
        for i in range(6)
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    return json.dumps({"images": images, "annotations": boxes, "categories": categories}).encode()


def _load_annotations(path: Path) -> object:
    return load_coco(path, path.parent)


def _weights(folder: Path) -> bytes:
    config = load_config("smoke", DetectorSections)
    graph = PRIORS["nas-fpn"]
    TrainedModel(make_model(config, graph, 3), graph, config, ("a", "b", "c")).save(folder / "m.pt")
    return (folder / "m.pt").read_bytes()


def _load_weights(path: Path) -> object:
    return TrainedModel.load(path, CPU)


def _database(folder: Path) -> bytes:
    path = folder / "seed.db"
    store = Store(str(path))
    study_id = store.open_study(Study("default", {"search": {"algorithm": "random", "prior": None}}, 0, "x"))
    measurement = Measurement(Purpose.SEARCH, 0, 1)
    from detector.cost import Cost

    episode = store.start_episode(study_id, 0, PRIORS["nas-fpn"], [1, 2], -1.0, 0, measurement, Cost(1.0, 1))
    store.finish_evaluation(episode.evaluation_id, Outcome(0.3))
    store.close()
    return path.read_bytes()


def _load_database(path: Path) -> object:
    """As nas-export does, whose one line for a database that fails underway is that of with_store_errors."""
    try:
        store = Store(str(path), read_only=True)
        study_id, study = store.find_study("default")
        episodes = store.episodes(study_id)
        graphs = [store.architecture(episode.architecture_hash) for episode in episodes]
        store.close()
    except SQLAlchemyError as error:
        raise UserError("failed underway") from error
    return study, graphs


KINDS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], object]]] = {
    "graph": (_graph, _load_graph),
    "configuration": (_configuration, _load_configuration),
    "annotations": (_annotations, _load_annotations),
    "weights": (_weights, _load_weights),
    "database": (_database, _load_database),
}


if __name__ == "__main__":
    main()
