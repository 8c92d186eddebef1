"""Makes the pages of reference that follow from the code: python docs/reference.py

docs/commands.md from the commands' help, docs/configuration.md from the configuration's sections. A test fails when
they are older than the code.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from detector import commands as of_detector
from nas import commands as of_service
from nas.config import Config

MADE = "<!-- Made by docs/reference.py; a change here is lost. -->\n"
COMMANDS = """# Commands

Every command says this with `--help`. Exit codes: 0 done or nothing to do, 1 the run failed, 2 a mistake in the command
or its input (one line says what, where, and what would be right), 130 and 143 interrupted.
"""
WIDTH = 100  # of help
CONFIGURATION = """# Configuration

A configuration is a preset's name or a YAML file of these sections. A file states what differs from the defaults below
or, with `base: NAME` at its top, from a preset or another file (`base: coco`; `base: ours.yaml` for a file beside it).
`--set training.steps=200` changes a key for one command, `--print-config` prints the whole of it. An unknown key is an
error that names the nearest one.

| preset | what it is for | what 400 episodes take |
|---|---|---|
| `shapes` | the built-in procedural set, everything at small scale | minutes on two cores |
| `benchmark` | `shapes`, with rewards from the [tabular benchmark](tabular.md) | a minute on two cores |
| `bccd` | 364 real images of 3 classes; to be copied for small sets | hours on two cores |
| `coco` | COCO-sized sets, ResNet-10 detectors of 512 px as trials | 34,000 steps of 32 images a trial: a cluster |
| `objects365` | Objects365 in the manner of its winner of 2019 | the same |
| `smoke` | tests: rewards mean nothing | a minute on two cores |
"""
EXPLAINED = {("proxy", "detector"), ("data", "train"), ("data", "val")}  # a table's row says enough of them
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "null": "`null`",
}
LIMITS = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below"}


def commands() -> str:
    """Every command's help."""
    os.environ["COLUMNS"] = str(WIDTH)
    parts = [MADE, COMMANDS]
    for name, parser in {**of_service.PARSERS, **of_detector.PARSERS}.items():
        parts.append(f"## {name}\n\n```text\n{parser().format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def configuration() -> str:
    """Every section's keys: values, default, and what they are."""
    parts = [MADE, CONFIGURATION]
    for path, section in sections(Config):
        if path:
            parts += [f"## {path}\n\n{_line(section.__doc__)}\n", table(path, section)]
    return "\n".join(parts)


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those in it, with their paths."""
    yield path, model
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and (path, name) not in EXPLAINED:
                yield from sections(kind, f"{path}.{name}".lstrip("."))


def table(path: str, section: type[BaseModel]) -> str:
    """A row for each key."""
    properties = section.model_json_schema()["properties"]
    rows = ["| key | value | default | what |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        default = field.get_default()
        if isinstance(default, BaseModel):
            anchor = f"{path}{name}".replace(".", "")
            rows.append(f"| `{name}` | section | [below](#{anchor}) | {_line(field.description)} |")
            continue
        shown = "required" if field.is_required() else "`null`" if default is None else f"`{as_yaml(default)}`"
        rows.append(f"| `{name}` | {value(properties[name])} | {shown} | {_line(field.description)} |")
    return "\n".join(rows) + "\n"


def as_yaml(default: object) -> str:
    if isinstance(default, tuple):
        return "[" + ", ".join(as_yaml(entry) for entry in default) + "]"
    if isinstance(default, float):
        return f"{default:.4g}"
    return default if isinstance(default, str) else json.dumps(default)


def value(schema: Mapping[str, Any]) -> str:
    """What a key may be, in words."""
    if "anyOf" in schema:
        return " or ".join(value(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{option}`" for option in schema["enum"])
    if "$ref" in schema:
        return "`{annotations: FILE, images: DIR}`" if "SplitFiles" in schema["$ref"] else "section, as `detector`"
    if schema["type"] == "array":
        entries = schema.get("prefixItems") or [schema["items"]]
        words = ", ".join(dict.fromkeys(value(entry) for entry in entries))
        return f"{len(entries)} of {words}" if "prefixItems" in schema else f"list of {words}"
    limits = [f"{word} {schema[key]:g}" for key, word in LIMITS.items() if key in schema]
    return " ".join([KINDS[schema["type"]], *limits])


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


PAGES = {"commands.md": commands, "configuration.md": configuration}

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for page, make in PAGES.items():
        Path(__file__).with_name(page).write_text(make(), encoding="utf-8")
