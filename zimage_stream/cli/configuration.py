"""``zimage config``: the effective settings, and the source of each."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from zimage_stream.cli.context import config_of
from zimage_stream.cli.printing import print_json, print_table, table
from zimage_stream.masking import MASK, is_secret, masked
from zimage_stream.settings import CONFIG_VARIABLE, ENV_PREFIX, Settings, load_settings, read_toml

DEFAULT = "default"
_OF_URL = {("registry", "username"), ("registry", "password")}
"""Settings that may be part of the URL."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Show the effective settings.")


@app.callback()
def _config() -> None:
    """Show the effective settings."""


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """A setting: its name as in a TOML file, its value for display, and its source."""

    name: str
    value: Any
    source: str


@app.command()
def show(
    context: typer.Context,
    changed: Annotated[bool, typer.Option("--changed", help="Omit settings with default values.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print every setting with its value and source; secrets are masked.

    Example: zimage config show --changed
    """
    given = config_of(context)
    settings = load_settings(given)
    path = given or (Path(named) if (named := os.environ.get(CONFIG_VARIABLE)) else None)
    shown = [
        each
        for each in explain(settings, os.environ, {} if path is None else read_toml(path), str(path))
        if not changed or each.source != DEFAULT
    ]
    if json:
        for each in shown:
            print_json(asdict(each))
        return
    rows = table("SETTING", "VALUE", "FROM")
    for each in shown:
        # The variable can be derived from the setting's name, and would not fit into the line.
        source = "environment" if each.source.startswith(ENV_PREFIX) else each.source
        rows.add_row(each.name, _text(each.value), source)
    print_table(rows)


def explain(
    settings: Settings, environment: Mapping[str, str], file: Mapping[str, Any], path: str
) -> Iterator[EffectiveSetting]:
    """Yield all settings in the order of their declaration. Pure.

    Args:
        file: contents of the TOML file at ``path``; empty if there is none.
    """
    for group in type(settings).model_fields:
        values = getattr(settings, group)
        for name in type(values).model_fields:
            value = getattr(values, name)
            source = _source(group, name, environment, file, path)
            if source == DEFAULT and (group, name) in _OF_URL and value is not None:
                source = _source(group, "url", environment, file, path)
            yield EffectiveSetting(f"{group}.{name}", _plain(value), source)


def _source(group: str, name: str, environment: Mapping[str, str], file: Mapping[str, Any], path: str) -> str:
    """Return the source of a setting."""
    variables = {name.upper() for name, value in environment.items() if value}
    # A mapping or a group can be set as a whole, or key by key.
    variable = f"{ENV_PREFIX}{group}__{name}".upper()
    whole = f"{ENV_PREFIX}{group}".upper()
    if variable in variables:
        return variable
    by_key = sorted(given for given in variables if given.startswith(f"{variable}__"))
    if by_key:
        return by_key[0]
    if whole in variables and name in _group_of(environment, whole):
        return whole
    return path if name in file.get(group, {}) else DEFAULT


def _group_of(environment: Mapping[str, str], variable: str) -> Any:
    text = next(value for name, value in environment.items() if name.upper() == variable)
    return json_module.loads(text)


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
