"""A run's configuration from a file: YAML, TOML or JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a file that ends in .yaml, .yml, .toml or .json.

    Raises:
        ValueError: another suffix, text that is not what the suffix says or no mapping, or a reader not installed.
        OSError: it cannot be read.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        values = _parsed(path.suffix.lower(), text)
    except ImportError as error:
        raise ValueError(f"{path}: {error.name} is needed to read it: pip install 'bert-fast[train]'") from error
    except _Unknown as error:
        raise ValueError(f"{path} must end in .yaml, .yml, .toml or .json") from error
    except Exception as error:  # each reader has its own
        raise ValueError(f"{path} is not {path.suffix[1:].upper()}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping of names to values, not a {type(values).__name__}")
    return values


class _Unknown(ValueError):
    pass


def _parsed(suffix: str, text: str) -> Any:
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        try:
            import tomllib
        except ImportError:  # Python 3.10
            import tomli as tomllib  # type: ignore[no-redef]
        return tomllib.loads(text)
    if suffix in (".yaml", ".yml"):
        return _yaml(text)
    raise _Unknown


def _yaml(text: str) -> Any:
    """YAML 1.2's numbers and booleans: to YAML 1.1, which PyYAML reads, ``1e-5`` is a string and ``no`` is false."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    boolean, number = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(boolean, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    Loader.add_implicit_resolver(number, re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))
    return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
