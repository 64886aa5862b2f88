"""The configuration files of a MONAI bundle: literal values and references are read, expressions are refused or trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slice3d.errors import MissingExtraError, ModelError
from slice3d.models.bundle_steps import ARGUMENTS, kind

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_NETS = "monai.networks.nets"


def read(path: Path) -> dict[str, Any]:
    """An object from a JSON or YAML file of the bundle. Raises `ModelError`."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path.name} of the bundle cannot be read; expected a MONAI bundle's configuration"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path.name} of the bundle holds {type(found).__name__}; expected an object")
    return found


def _yaml(text: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingExtraError("the bundle is written in YAML; run `pip install pyyaml`") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError("not YAML") from error


def inference_file(folder: Path) -> dict[str, Any]:
    """The bundle's inference configuration. Raises `ModelError` when there is none."""
    for name in _CONFIGS:
        if (folder / "configs" / name).is_file():
            return read(folder / "configs" / name)
    raise ModelError("the bundle has no configs/inference.json; expected a bundle that can be used for inference")


class Config:
    """The inference configuration with references resolved and expressions refused (or, when trusted, evaluated)."""

    def __init__(self, raw: dict[str, Any], folder: Path, trust: bool) -> None:
        self.raw, self.folder, self.trust = raw, folder, trust
        self._parser: Any = None

    def value(self, item: Any, *, depth: int = 0) -> Any:
        """A literal copy of `item`: references followed, expressions evaluated only when trusted."""
        if depth > 32:
            raise ModelError("the bundle's references lead in a circle; its configuration is damaged")
        if isinstance(item, Mapping):
            return {key: self.value(entry, depth=depth + 1) for key, entry in item.items()}
        if isinstance(item, list):
            return [self.value(entry, depth=depth + 1) for entry in item]
        if isinstance(item, str) and item.startswith("@"):
            return self.value(self._lookup(item[1:]), depth=depth + 1)
        if isinstance(item, str) and item.startswith("$"):
            return self._evaluate(item)
        return item

    def _lookup(self, reference: str) -> Any:
        found: Any = self.raw
        for part in re.split(r"::|#", reference):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ModelError(f"the bundle refers to {reference!r}, which it does not define") from error
        return found

    def _evaluate(self, expression: str) -> Any:
        if not self.trust:
            raise ModelError(
                f"the bundle computes a value it needs ({expression[:60]!r}); expressions are code and are not run; "
                "pass --trust if you trust its publisher"
            )
        from monai.bundle.config_parser import ConfigParser

        parser = ConfigParser({**self.raw, "bundle_root": str(self.folder), "slice3d_value": expression})
        try:
            return parser.get_parsed_content("slice3d_value")
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, ImportError, NameError) as error:
            text = " ".join(str(error).split())[:120]
            raise ModelError(f"the bundle's expression {expression[:60]!r} fails: {text}") from error

    def network(self) -> dict[str, Any]:
        """Class and literal arguments of the network."""
        raw = self.raw.get("network_def") or self.raw.get("network") or self.raw.get("net")
        if isinstance(raw, str) and raw.startswith("@"):
            raw = self._lookup(raw[1:])
        if isinstance(raw, str) or not isinstance(raw, Mapping) or "_target_" not in raw:
            raise ModelError(
                "the bundle does not define its network under `network_def`; expected `_target_` and arguments"
            )
        target = str(raw["_target_"])
        arguments = {k: self.value(v) for k, v in raw.items() if not (k.startswith("_") and k.endswith("_"))}
        return {"class": target if "." in target else f"{_NETS}.{target}", "arguments": _plain(arguments)}

    def transforms(self, section: str) -> Iterator[dict[str, Any]]:
        """The transforms of a section with literal arguments; those that stay expressions are left out of the dict."""
        raw = self.raw.get(section, {})
        if isinstance(raw, str) and raw.startswith("@"):
            raw = self._lookup(raw[1:])
        entries = raw.get("transforms", []) if isinstance(raw, Mapping) else raw
        if isinstance(entries, str) and entries.startswith("@"):
            entries = self._lookup(entries[1:])
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, str) and entry.startswith("@"):
                entry = self._lookup(entry[1:])
            if not isinstance(entry, Mapping) or self._off(entry):
                continue
            wanted = ARGUMENTS.get(kind(entry), ())
            yield {k: self.value(v) for k, v in entry.items() if k in (*wanted, "_target_")}

    def _off(self, entry: Mapping[str, Any]) -> bool:
        disabled = entry.get("_disabled_", False)
        return disabled is True or (isinstance(disabled, str) and disabled.lower() == "true")

    def _inferer(self) -> dict[str, Any]:
        raw = self.raw.get("inferer", {})
        if isinstance(raw, str) and raw.startswith("@"):
            raw = self._lookup(raw[1:])
        return {k: raw[k] for k in ("roi_size", "overlap", "mode") if isinstance(raw, Mapping) and k in raw}

    def patch_size(self, inputs: Mapping[str, Any]) -> list[int]:
        """The sliding window's size."""
        size = self.value(self._inferer().get("roi_size", inputs.get("spatial_shape")))
        if not isinstance(size, (list, tuple)) or len(size) != 3 or not all(isinstance(n, int) and n > 0 for n in size):
            raise ModelError("the bundle does not say its window size; expected `inferer.roi_size` with three numbers")
        return list(size)

    def overlap(self) -> float:
        """The sliding window's overlap (MONAI's own default is a quarter)."""
        overlap = self.value(self._inferer().get("overlap", 0.25))
        return float(overlap) if isinstance(overlap, (int, float)) and 0 <= overlap < 1 else 0.5

    def blend(self) -> str:
        """How windows that overlap are weighted (MONAI's own default is equally)."""
        return "gaussian" if str(self.value(self._inferer().get("mode", "constant"))) == "gaussian" else "constant"


def _plain(value: Any) -> Any:
    """Only what JSON can hold: an argument that is an object cannot be stored; the bundle would need its own code."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            raise ModelError(
                f"the bundle's network is built from {value['_target_']!r} objects, which is not supported"
            )
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ModelError(f"the bundle's network takes a {type(value).__name__} argument, which is not supported")
