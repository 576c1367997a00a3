"""The model card of an export: what it is, how to use it, how it was trained, what it scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache
from omegaconf import OmegaConf

from arcft.config.export import ExportConfig
from arcft.config.lora import LoraConfig
from arcft.config.schema import ConfigError, from_dict, to_dict
from arcft.files import write_text
from arcft.models.bundled import BUNDLED
from arcft.models.source import resolve_path
from arcft.reporting.words import count
from arcft.runs.common.config_folder import config_folder
from arcft.runs.common.paths import override
from arcft.runs.evaluation.results import INDEX_FILE, METRICS_FILE
from arcft.runs.setup.checkpoint_config import OWN_FORMAT, TrainedRun
from arcft.runs.setup.kinds import kind_of

CARD_FILE = "README.md"
_BUNDLED_LICENSE = "apache-2.0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Results of the export that the card reports."""

    what: str
    """What was written, in words."""

    difference: float
    """The largest difference of a logit from the trained model's, in standard deviations."""

    prompts_from: str
    """What the logits were compared on, in words."""

    weights: str = ""
    """The name of the file of weights, where it is one file that programs are given; empty for a folder."""

    plain_tokenizer: bool = True
    """Whether transformers' AutoTokenizer reads the tokenizer as it was written."""


def write_card(path: Path, config: ExportConfig, run: TrainedRun, out: Path, facts: Facts) -> None:
    """Write the model card of an export to `out`."""
    model = run.config.model
    sections = [
        f"# {model.name}, trained by arcft",
        f"{facts.what[0].upper()}{facts.what[1:]}, exported from step {run.checkpoint.step} of a run of arcft "
        f"{run.checkpoint.run_config['arcft']}. On {facts.prompts_from} its logits differ from those of the trained "
        f"model by at most {facts.difference:.1e} standard deviations.",
        "## Use",
        *_use(config, run, out, facts),
        "## Training",
        _table(_training(run)),
        "## Scores",
        *_scores(run),
        "## Files",
        "`manifest.json` lists every file with its size and sha256, the digest of the checkpoint, the fingerprints of "
        "base model and data, and the versions of the libraries that trained it.",
    ]
    text = "\n\n".join(sections)
    write_text(path, f"---\n{yaml.safe_dump(_metadata(config, run), sort_keys=False)}---\n\n{text}\n")


def license_of(path: str) -> str | None:
    """The licence of the base model at `path`, a value of model.path, where its files name one."""
    if path.startswith(BUNDLED):
        return _BUNDLED_LICENSE
    source = resolve_path(path)
    if source.endswith(".gguf"):
        field = gguf.GGUFReader(source).get_field("general.license")
        return None if field is None else str(field.contents())
    readme = Path(source) / CARD_FILE if Path(source).is_dir() else try_to_load_from_cache(source, CARD_FILE)
    try:
        return None if not isinstance(readme, str | Path) else ModelCard.load(readme).data.license
    # No card, or one that can't be read.
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _metadata(config: ExportConfig, run: TrainedRun) -> dict[str, Any]:
    path = str(run.config.model.path)
    known = license_of(path)
    hub_id = path.count("/") == 1 and not Path(path).exists()
    return {
        **({"license": known} if known else {}),
        **({"base_model": path} if hub_id else {}),
        "library_name": {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}[config.format],
        "pipeline_tag": "text-generation",
        "tags": ["arcft", kind_of(run.config.data).name],
    }


def _use(config: ExportConfig, run: TrainedRun, out: Path, facts: Facts) -> Iterator[str]:
    model = run.config.model
    if config.format == "adapter":
        yield f'    AutoPeftModelForCausalLM.from_pretrained("{out}")'
        yield "PEFT takes the base model from where `adapter_config.json` says. arcft itself reads the checkpoint."
    else:
        words = ["model=local", override("model.path", out / facts.weights), *_own_format(run)]
        words.append(f"inference.max_seq_length={run.config.training.max_seq_length}")
        yield f"    arcft evaluate {' '.join(words)}"
    if config.format == "merged":
        yield "transformers loads the folder as it is: `AutoModelForCausalLM.from_pretrained`."
    if config.format == "gguf":
        yield "The file holds the tokenizer too; it is for llama.cpp and what is built on it."
    if model.positions != "none":
        yield (
            f"The model was trained with `model.positions={model.positions}`: position ids are grid, row and column of "
            "each token instead of its number. transformers by itself counts positions and so computes something else, "
            "and its `generate` continues them by one. Outside of arcft, give `forward` the `position_ids` and an "
            "`attention_mask` of ones."
        )
    if not facts.plain_tokenizer:
        yield (
            "Load the tokenizer with `PreTrainedTokenizerFast.from_pretrained`. AutoTokenizer replaces its rules by "
            "those of the model's type, and cuts text in another way."
        )


def _own_format(run: TrainedRun) -> Iterator[str]:
    """The overrides that choose the run's encoder, prompt and positions."""
    if run.config.model.positions != "none":
        yield f"model.positions={run.config.model.positions}"
    configs = kind_of(run.config.data).configs
    for group in OWN_FORMAT:
        if group in configs:
            yield f"{group}={_option_name(group, configs[group], getattr(run.config, group))}"


def _option_name(group: str, config_class: type, config: Any) -> str:
    """The option of `group` whose values are those of `config`; where none is, a word that says so."""
    for path in sorted((config_folder() / group).glob("*.yaml")):
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
        try:
            option: Any = from_dict(config_class, values, path=group)
        except ConfigError:
            continue
        if to_dict(option) == to_dict(config):
            return path.stem
    return "YOURS"


def _training(run: TrainedRun) -> Mapping[str, Any]:
    config, training, manifest = run.config, run.config.training, run.checkpoint.manifest
    ranks = run.checkpoint.run_config.get("ranks", 1)
    tasks = [f"{count(len(ids), 'task')} {name.replace('_', ' ')}" for name, ids in run.tasks.items() if ids]
    rows: dict[str, Any] = {
        "base model": config.model.path,
        "licence of the base model": license_of(str(config.model.path)) or "not known; see where it is from",
        "fingerprint of the base model": manifest["base_fingerprint"],
        "quantisation of the base model": config.model.quantization,
        "data": f"{config.data.kind}, {config.data.name}: {', '.join(tasks)}",
        "fingerprint of the data": manifest["data_fingerprint"],
    }
    if isinstance(config.lora, LoraConfig):
        rows |= {
            "adapter": f"rank {config.lora.r}, alpha {config.lora.alpha:g}, dropout {config.lora.dropout:g}, on "
            f"{config.lora.target_modules}",
            "form": ", ".join(_forms(config.lora)) or "LoRA",
        }
        if config.lora.start is not None:
            rows["started from"] = config.lora.start
    else:
        rows["adapter"] = "none: all weights were trained"
    return rows | {
        "trained whole": ", ".join(config.model.train_modules) or "nothing",
        "steps": f"{run.checkpoint.step} of {training.max_steps}",
        "batch": f"{training.batch_size * training.gradient_accumulation_steps * ranks} examples per optimizer step",
        "context": f"{training.max_seq_length} tokens",
        "optimizer": f"{config.optimizer.name}, learning rate {training.learning_rate:g}, {config.scheduler.name}",
        "arithmetic": training.dtype,
        "seed": training.seed,
    }


def _forms(lora: LoraConfig) -> Iterator[str]:
    if lora.use_rslora:
        yield "rsLoRA"
    if lora.use_dora:
        yield "DoRA"
    if isinstance(lora.init_lora_weights, str):
        yield f"initialised by {lora.init_lora_weights}"


def _scores(run: TrainedRun) -> Iterator[str]:
    """Tables of the metrics that the run, and evaluations of this checkpoint, have left."""
    own = _read(run.folder / METRICS_FILE)
    if own.get("metrics") and own.get("step") == run.checkpoint.step:
        yield "While training, on held-out tasks:"
        yield _table(own["metrics"])
    found = False
    for line in _lines(run.folder / INDEX_FILE):
        folder = Path(str(line.get("folder")))
        evaluation = _read(folder / METRICS_FILE)
        about = evaluation.get("run", {})
        if about.get("digest") != run.checkpoint.digest or not evaluation.get("metrics"):
            continue
        found = True
        adapted = f", adapted by ttft={about['ttft'].get('name')}" if about.get("ttft") else ""
        yield f"Evaluated on {count(len(evaluation.get('tasks', {})), 'task')}{adapted}, {folder.name}:"
        yield _table(evaluation["metrics"])
    if not found:
        yield "No evaluation of this checkpoint was found beside its run."


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    # None yet, or cut off by a crash.
    except (OSError, ValueError):
        pass
    return [line for line in found if isinstance(line, dict)]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
