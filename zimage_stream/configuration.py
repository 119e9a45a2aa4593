"""``zimage config``: the settings in force, and where each came from."""

from __future__ import annotations

import json as json_module
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from zimage_stream.masking import MASK, is_secret, masked
from zimage_stream.printing import print_table, say_json, table
from zimage_stream.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings, load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The settings in force.")


@app.callback()
def _config() -> None:
    """The settings in force."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting: its name as in a TOML file, its value for people, and who set it."""

    name: str
    value: Any
    source: str


@app.command()
def show(
    context: typer.Context,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print every setting with its value and where that came from; secrets are masked.

    Example: zimage config show --changed
    """
    given = (context.obj or {}).get("config")
    settings = load_settings(given)
    path = given or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    shown = [
        each
        for each in explain(settings, os.environ, _read(path), str(path))
        if not changed or each.source != "default"
    ]
    if json:
        for each in shown:
            say_json(asdict(each))
        return
    rows = table("SETTING", "VALUE", "FROM")
    for each in shown:
        # The variable follows from the setting's name, and would not fit beside it.
        source = "environment" if each.source.startswith(ENV_PREFIX) else each.source
        rows.add_row(each.name, _text(each.value), source)
    print_table(rows)


def explain(
    settings: Settings, environment: Mapping[str, str], file: Mapping[str, Any], path: str
) -> Iterator[Shown]:
    """Every setting, in the order they are declared. Pure.

    Args:
        file: what the TOML file at ``path`` says; empty where there is none.
    """
    variables = {name.upper() for name, value in environment.items() if value}
    for group in type(settings).model_fields:
        values = getattr(settings, group)
        for name in type(values).model_fields:
            value = getattr(values, name)
            # A map can be given whole or by its keys, a group too.
            variable = f"{ENV_PREFIX}{group}__{name}".upper()
            whole = f"{ENV_PREFIX}{group}".upper()
            by_key = sorted(given for given in variables if given.startswith(f"{variable}__"))
            in_file = name in file.get(group, {})
            if variable in variables or by_key:
                source = variable if variable in variables else by_key[0]
            elif whole in variables and name in _group_of(environment, whole):
                source = whole
            else:
                source = path if in_file else "default"
            yield Shown(f"{group}.{name}", _plain(value), source)


def _group_of(environment: Mapping[str, str], variable: str) -> Any:
    text = next(value for name, value in environment.items() if name.upper() == variable)
    return json_module.loads(text)


def _read(path: Path | None) -> dict[str, Any]:
    return {} if path is None else tomllib.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, dict):
        return {name: MASK if is_secret(name) else _plain(each) for name, each in value.items()}
    if isinstance(value, Path | str):
        return masked(str(value))
    return value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return json_module.dumps(value, ensure_ascii=False) if isinstance(value, dict | bool) else str(value)
