"""Configurations as people write them: presets, YAML files that state what differs from another, and --set."""

import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from detector.errors import UserError
from detector.presets import preset_folder, presets

BASE = "base"  # the key that names what a file states differences to
MOST_CHARACTERS = 200_000

Config = TypeVar("Config", bound=BaseModel)


def load_config(name: str, model: type[Config], changes: Sequence[str] = ()) -> Config:
    """Read a preset (`shapes`) or a YAML file (`my.yaml`) as `model`; changes are `section.key=value`, as --set takes
    them. Raises UserError in one line.
    """
    return parse_config(_with_bases(name), model, name, changes)


def parse_config(content: Mapping[str, Any], model: type[Config], where: str, changes: Sequence[str] = ()) -> Config:
    """Validate sections that are already plain values. Raises UserError naming the key and the nearest valid one."""
    for change in changes:
        sections = _as_sections(change)
        content = _merged(content, sections) if isinstance(content, Mapping) else content
        where = f"{where} with --set {change}"
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error, model)}") from error


def as_yaml(config: BaseModel) -> str:
    """The whole configuration, as a file that load_config reads."""
    sections = {name: section for name, section in config.model_dump(mode="json").items() if section is not None}
    return yaml.safe_dump(sections, sort_keys=False, width=110)


def _with_bases(name: str) -> Mapping[str, Any]:
    """What a file says, over what its base says, and so on."""
    contents: list[Mapping[str, Any]] = []
    names = [name]
    while True:
        try:
            content = dict(_read_yaml(names[-1]))
        except UserError as error:
            asked = f" (the {BASE} of {names[-2]})" if len(names) > 1 else ""
            raise UserError(f"{error}{asked}") from error
        base = content.pop(BASE, None)
        contents.append(content)
        if base is None:
            break
        if not isinstance(base, str) or not base:
            raise UserError(f"config {names[-1]}: {BASE} must be the name of a preset or a file (given: {base!r})")
        if base not in presets():
            base = os.path.normpath(Path(names[-1]).parent / base)
        if base in names:
            raise UserError(f"config {name}: {' is based on '.join([*names, base])}, which goes round in a circle")
        names.append(base)
    return functools.reduce(lambda below, above: _merged(below, above), reversed(contents))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sections key by key; whatever else is given above counts as it is."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _as_sections(change: str) -> Mapping[str, Any]:
    """`proxy.trial.steps=200` -> {proxy: {trial: {steps: 200}}}. Values are YAML. Raises UserError."""
    key, equals, text = change.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {change}: must be section.key=value, such as training.steps=200")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {change}: the value is not valid YAML ({' '.join(str(error).split())})") from error
    return functools.reduce(lambda inner, part: {part: inner}, reversed(parts), value)


def _read_yaml(name: str) -> Mapping[str, Any]:
    is_preset = name in presets()
    try:
        text = (preset_folder() / f"{name}.yaml" if is_preset else Path(name)).read_text(encoding="utf-8")
        if len(text) > MOST_CHARACTERS:  # a megabyte takes the parser seconds
            raise UserError(f"config {name}: has {len(text)} characters, that is no configuration")
        content = yaml.load(text, _EveryKeyOnce)  # a loader that knows plain values only, as safe_load
    except OSError as error:
        near = difflib.get_close_matches(name, presets(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"config {name}: cannot be read ({error.strerror}); give a file or one of: {', '.join(presets())}{hint}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"config {name}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"config {name}: must hold sections such as `data:` and `detector:`")
    return content


class _EveryKeyOnce(yaml.SafeLoader):
    """Of a key that stands twice in a section YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            line, key = key_node.start_mark.line + 1, key_node.value
            if isinstance(key, str) and key != "<<" and key in lines:
                problem = f"{key!r} stands twice, in lines {lines[key]} and {line}"
                raise yaml.constructor.ConstructorError(None, None, problem)
            if isinstance(key, str):
                lines[key] = line
        return super().construct_mapping(node, deep)


def _first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    problem = _most_specific(error.errors(), model)
    path = _keys_of(problem, model)
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        valid = _valid_keys(model, path[:-1])
        hints = difflib.get_close_matches(path[-1], valid, n=1)
        hints = hints or _places_of(path[-1], model)[:3] or difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.0)
        hint = f"; did you mean {' or '.join(map(repr, hints))}?" if hints else ""
        return f"unknown key {key!r}{hint}"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    given = problem["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return f"{key}: {message}{shown}" if key else message


def _most_specific(problems: Sequence[ErrorDetails], model: type[BaseModel]) -> ErrorDetails:
    """The first problem. Where a value may be of several kinds, the one of the kind that fits it furthest."""
    place = _keys_of(problems[0], model)
    same = [problem for problem in problems if _keys_of(problem, model)[: len(place)] == place]
    return max(same, key=lambda problem: (len(problem["loc"]), problem["type"] == "extra_forbidden"))


def _keys_of(problem: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Where a problem is, without the names of types that pydantic puts where a value may be of several kinds."""
    keys: list[str] = []
    for part in problem["loc"]:
        is_unknown_key = problem["type"] == "extra_forbidden" and part == problem["loc"][-1]
        if isinstance(part, int) or is_unknown_key or part in _valid_keys(model, keys):
            keys.append(str(part))
    return keys


def _places_of(name: str, model: type[BaseModel], path: tuple[str, ...] = ()) -> list[str]:
    """Every key of that name, whole."""
    found = []
    for key in _valid_keys(model, list(path)):
        found += [".".join((*path, key))] if key == name else []
        found += _places_of(name, model, (*path, key))
    return found


def _valid_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *get_args(annotation)]  # a section, or one of a union
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)
