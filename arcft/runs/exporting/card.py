"""The model card of an export: what it is, how to use it, how it was trained, what it scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from arcft.config.export import ExportConfig
from arcft.config.lora import LoraConfig
from arcft.config.schema import ConfigError, from_dict, to_dict
from arcft.files import write_text
from arcft.models.source import is_hub_id, license_of, public_path
from arcft.reporting.words import count
from arcft.runs.common.config_folder import config_folder
from arcft.runs.common.paths import override
from arcft.runs.evaluation.results import METRICS_FILE, recorded_evaluations
from arcft.runs.setup.checkpoint_config import OWN_FORMAT, TrainedRun
from arcft.runs.setup.kinds import kind_of

CARD_FILE = "README.md"


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
    model, licence = run.config.model, license_of(str(run.config.model.path))
    sections = [
        f"# {model.name}, trained by arcft",
        f"{facts.what[0].upper()}{facts.what[1:]}, exported from step {run.checkpoint.step} of a run of arcft "
        f"{run.checkpoint.run_config['arcft']}. On {facts.prompts_from} its logits differ from those of the trained "
        f"model by at most {facts.difference:.1e} standard deviations.",
        "## Use",
        *_use(config, run, out, facts),
        "## Training",
        _table(_training(run, licence)),
        "## Scores",
        *_scores(run),
        "## Files",
        "`manifest.json` lists every file with its size and sha256, the digest of the checkpoint, the fingerprints of "
        "base model and data, and the versions of the libraries that trained it.",
    ]
    text = "\n\n".join(sections)
    metadata = yaml.safe_dump(_metadata(config, run, licence), sort_keys=False)
    write_text(path, f"---\n{metadata}---\n\n{text}\n")


def _metadata(config: ExportConfig, run: TrainedRun, licence: str | None) -> dict[str, Any]:
    path = str(run.config.model.path)
    return {
        **({"license": licence} if licence else {}),
        **({"base_model": path} if is_hub_id(path) else {}),
        "library_name": {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}[config.format],
        "pipeline_tag": "text-generation",
        "tags": ["arcft", kind_of(run.config.data).name],
    }


def _use(config: ExportConfig, run: TrainedRun, out: Path, facts: Facts) -> Iterator[str]:
    model = run.config.model
    if config.format == "adapter":
        yield f'    AutoPeftModelForCausalLM.from_pretrained("{_where(config, out)}")'
        yield "PEFT takes the base model from where `adapter_config.json` says. arcft itself reads the checkpoint."
    else:
        words = ["model=local", override("model.path", facts.weights or _where(config, out)), *_own_format(run)]
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


def _where(config: ExportConfig, out: Path) -> str:
    """What a reader of the card loads: the repository, or the folder by its name."""
    return config.push_to_hub or out.name


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


def _training(run: TrainedRun, licence: str | None) -> Mapping[str, Any]:
    config, training, manifest = run.config, run.config.training, run.checkpoint.manifest
    ranks = run.checkpoint.run_config.get("ranks", 1)
    tasks = [f"{count(len(ids), 'task')} {name.replace('_', ' ')}" for name, ids in run.tasks.items() if ids]
    rows: dict[str, Any] = {
        "base model": public_path(str(config.model.path)),
        "licence of the base model": licence or "not known; see where it is from",
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
            rows["started from"] = public_path(config.lora.start)
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
    for entry in recorded_evaluations(run.folder):
        folder = Path(entry["folder"])
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
