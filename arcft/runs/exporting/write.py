"""What an export writes: weights in one of three formats, read back and compared; the card and the manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from arcft.config.export import ExportConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.schema import ConfigError
from arcft.console import warn
from arcft.errors import ModelError
from arcft.files import file_sha256, manifest_sha256, write_json
from arcft.memory import available_memory, gib, used_memory
from arcft.models.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from arcft.models.adapter_config import read_adapter_config
from arcft.models.bundled import BUNDLED
from arcft.models.families import choose_attention
from arcft.models.fingerprint import base_fingerprint
from arcft.models.gguf_file import GGUF_TYPES, check_architecture, rounded, tensors_of, write_gguf
from arcft.models.gguf_tokenizer import pretokenizer_of
from arcft.models.load import load_model, load_tokenizer
from arcft.models.merging import (
    adapter_for_original_base,
    apply_saved_adapter,
    changes_base,
    dense_base,
    merged,
    save_plain_adapter,
    without_quantisation,
)
from arcft.models.quantization import no_progress_bar
from arcft.models.source import load_architecture, not_loaded, public_path, resolve_path, trusts_code
from arcft.names import file_name
from arcft.runs.exporting.card import CARD_FILE, Facts, write_card
from arcft.runs.exporting.checks import ExportError, Probe, check, check_weights, probe_of, texts_of
from arcft.runs.setup.checkpoint_config import TrainedRun, check_base
from arcft.runs.setup.restore import base_model, base_not_loaded, restored_builder, restored_tokenizer

MANIFEST_FILE = "manifest.json"
BASE_FOLDER = "base"

_CPU = torch.device("cpu")


def write_export(config: ExportConfig, run: TrainedRun, folder: Path, out: Path) -> str:
    """Fill `folder`, which is to become `out`; return what is in it, in words. Raise ArcftError."""
    job = _Job(config, run, folder, out)
    write: Callable[[], Facts] = {"merged": job.merged, "adapter": job.adapter, "gguf": job.gguf}[config.format]
    facts = write()
    write_card(folder / CARD_FILE, config, run, out, facts)
    _write_manifest(folder, run, config)
    return (
        f"{facts.what}; the logits of {facts.prompts_from} differ by {facts.difference:.1e} standard deviations at most"
    )


class _Job:
    def __init__(self, config: ExportConfig, run: TrainedRun, folder: Path, out: Path) -> None:
        self.config, self.run, self.folder, self.out = config, run, folder, out
        self.base = _model_config(run)
        self.has_adapter = isinstance(run.config.lora, LoraConfig)
        # What can't be written is refused before any weights are loaded.
        architecture = self._architecture()
        if config.format == "gguf":
            check_architecture(architecture, path=str(self.base.path), positions=run.config.model.positions)
        if config.format == "adapter" and config.dtype != "float32" and self._base_is_named():
            raise ConfigError(
                [
                    f"dtype={config.dtype} with format=adapter: an adapter is written in float32, and its base model "
                    f"{self.base.path} is not written again; drop dtype"
                ]
            )
        self._refuse_upload()
        warn_about_memory(architecture, trust_remote_code=self.base.trust_remote_code)
        self.tokenizer: PreTrainedTokenizerBase = restored_tokenizer(run)
        self.builder = restored_builder(run, self.tokenizer, run.config.training.max_seq_length)
        self.probe: Probe = probe_of(run, self.builder, architecture.get_text_config(decoder=True).vocab_size)
        self.texts = texts_of(self.probe, self.builder)
        self.pieces = pretokenizer_of(self.tokenizer, self.texts) if config.format == "gguf" else ""

    def merged(self) -> Facts:
        model, reference = self._merged()
        self._save(model, self.folder)
        found = self._read_back(self.folder, model, reference)
        facts = self._facts(f"merged weights in {self.config.dtype}", found)
        return dataclasses.replace(facts, plain_tokenizer=self._reads_tokenizer(AutoTokenizer))

    def gguf(self) -> Facts:
        model, reference = self._merged()
        file = self.folder / f"{file_name(self.run.config.model.name)}-{GGUF_TYPES[self.config.dtype][0].name}.gguf"
        name, end_id = self.run.config.model.name, self.builder.tokenization.end_id
        write_gguf(model, self.tokenizer, self.pieces, file, self.config.dtype, name, end_id)
        back = self._load_written(file)
        expected = ((name, rounded(weight, self.config.dtype)) for name, weight in tensors_of(model).items())
        check_weights(tensors_of(back), expected, file.name)
        found = check(self.probe.logits(back), reference, file.name, self.config.dtype)
        if not self._cuts_alike(load_tokenizer(ModelConfig(name="exported", path=str(file)))):
            raise ExportError(f"{file.name}: its tokenizer cuts the run's prompts in another way; nothing was written")
        return dataclasses.replace(self._facts(file.name, found), weights=file.name)

    def adapter(self) -> Facts:
        source = self.run.checkpoint.path
        trained, plain = apply_saved_adapter(self._load(), source)
        reference = self.probe.logits(trained)
        if self._base_is_named():
            changed = changes_base(read_adapter_config(source))
            base = dense_base(trained)
            if changed:
                # Freed first: a large model does not fit three times.
                del trained, base
                plain = adapter_for_original_base(self._load(), source)
                base = self._load()
            base_name, what = resolve_path(str(self.base.path)), f"for {public_path(str(self.base.path))}"
        else:
            self._save(dense_base(trained), self.folder / BASE_FOLDER)
            del trained
            base = self._load_written(self.folder / BASE_FOLDER)
            base_name, what = str(self.folder / BASE_FOLDER), f"and its base model in {self.config.dtype}"
        save_plain_adapter(plain.apply_to(base), self.folder, base_name)
        del base
        self.tokenizer.save_pretrained(self.folder)
        found = check(self.probe.logits(self._read_by_peft()), reference, "the adapter", self.config.dtype)
        if not self._base_is_named():
            # Where it will be found.
            path = self.folder / ADAPTER_CONFIG
            content = json.loads(path.read_text(encoding="utf-8"))
            write_json(path, content | {"base_model_name_or_path": str(self.out / BASE_FOLDER)}, indent=2)
        return self._facts(f"a plain adapter {what}", found)

    def _read_by_peft(self) -> peft.PeftModel:
        """As anyone reads it who has PEFT alone: the base model from where adapter_config.json says."""
        options: dict[str, Any] = {
            "dtype": torch.float32,
            "attn_implementation": choose_attention(self.base, torch.float32, _CPU),
            "trust_remote_code": trusts_code(self.base),
        }
        with no_progress_bar():
            return peft.AutoPeftModelForCausalLM.from_pretrained(self.folder, **options).eval()

    def _merged(self) -> tuple[PreTrainedModel, torch.Tensor]:
        """The trained weights, float32, without an adapter, and the logits of the model as trained."""
        if not self.has_adapter:
            model = without_quantisation(self._load())
            return model, self.probe.logits(model)
        trained, plain = apply_saved_adapter(self._load(), self.run.checkpoint.path)
        reference = self.probe.logits(trained)
        model = merged(dense_base(trained), plain)
        check(self.probe.logits(model), reference, "the merged model", "float32")
        return model, reference

    def _load(self) -> PreTrainedModel:
        try:
            with no_progress_bar():
                model = load_model(self.base, dtype=torch.float32, device=_CPU)
        except ModelError as error:
            if not self.has_adapter:
                raise
            raise base_not_loaded(self.run, error) from error
        if self.has_adapter:
            check_base(self.run, base_fingerprint(self.base, model), str(self.base.path))
        return model

    def _architecture(self) -> PretrainedConfig:
        try:
            return load_architecture(self.base)
        except (OSError, ValueError, KeyError, ImportError, ModelError) as error:
            path = str(self.base.path)
            reason = error if isinstance(error, ModelError) else not_loaded("model.path", path, "a config.json", error)
            raise base_not_loaded(self.run, ModelError(str(reason))) from error

    def _save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write weights, config and tokenizer; the weights of `model` are rounded to the export's dtype in place."""
        model.to(getattr(torch, self.config.dtype))
        # Of a base model that was never trained to end an answer, it names another token.
        model.generation_config.eos_token_id = self.builder.tokenization.end_ids
        with no_progress_bar():
            model.save_pretrained(folder, max_shard_size="5GB")
        self.tokenizer.save_pretrained(folder)

    def _read_back(self, folder: Path, model: PreTrainedModel, reference: torch.Tensor) -> float:
        back = self._load_written(folder)
        expected = (
            (name, weight.float() if weight.is_floating_point() else weight)
            for name, weight in model.state_dict().items()
        )
        check_weights(back.state_dict(), expected, "the merged model")
        return check(self.probe.logits(back), reference, "the merged model", self.config.dtype)

    def _cuts_alike(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return all(tokenizer(text)["input_ids"] == self.tokenizer(text)["input_ids"] for text in self.texts)

    def _reads_tokenizer(self, loader: Any) -> bool:
        try:
            return self._cuts_alike(loader.from_pretrained(self.folder, trust_remote_code=self.base.trust_remote_code))
        # The tokenizers library raises plain Exception.
        except Exception:
            return False

    def _load_written(self, path: Path) -> PreTrainedModel:
        written = ModelConfig(
            name="exported",
            path=str(path),
            attn_implementation=self.base.attn_implementation,
            trust_remote_code=self.base.trust_remote_code,
        )
        with no_progress_bar():
            return load_model(written, dtype=torch.float32, device=_CPU)

    def _base_is_named(self) -> bool:
        """Whether PEFT alone can load the base model from where it is."""
        model, path = self.base, str(self.base.path)
        return (
            model.quantization == "none"
            and model.init == "pretrained"
            and not path.startswith(BUNDLED)
            and not path.endswith(".gguf")
        )

    def _refuse_upload(self) -> None:
        if self.config.push_to_hub and self.config.format == "adapter":
            path = resolve_path(str(self.base.path))
            if not self._base_is_named() or Path(path).exists():
                raise ModelError(
                    f"push_to_hub={self.config.push_to_hub} with format=adapter: PEFT looks for the base model under a "
                    "path of this machine, which others don't have; use format=merged, or drop push_to_hub"
                )

    def _facts(self, what: str, difference: float) -> Facts:
        return Facts(what=what, difference=difference, prompts_from=self.probe.prompts_from)


def _model_config(run: TrainedRun) -> ModelConfig:
    """The model to load: on a CPU, with the whole vocabulary."""
    model = base_model(run)
    attention = model.attn_implementation if model.attn_implementation in ("auto", "eager") else "sdpa"
    return dataclasses.replace(model, backend="transformers", attn_implementation=attention)


def warn_about_memory(architecture: PretrainedConfig, *, trust_remote_code: bool) -> None:
    """Warn if the model does not fit twice in float32: as it was trained, and as it is read back."""
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(architecture, trust_remote_code=trust_remote_code)
    needed = used_memory() + 2 * 4 * sum(parameter.numel() for parameter in outline.parameters())
    available = available_memory(_CPU)
    if needed > available:
        warn(f"needs about {gib(needed)}, more than the {gib(available)} available; export where there is more memory")


def _write_manifest(folder: Path, run: TrainedRun, config: ExportConfig) -> None:
    """List every file with its size and sha256, and the checkpoint that they come from."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "format": config.format,
        "dtype": config.dtype,
        "checkpoint": run.checkpoint.digest,
        "step": run.checkpoint.step,
        "base_model": public_path(str(run.checkpoint.manifest["base_model"])),
        "base_fingerprint": run.checkpoint.manifest["base_fingerprint"],
        "data_fingerprint": run.checkpoint.manifest["data_fingerprint"],
        "versions": run.checkpoint.manifest["versions"],
        "files": {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in paths
        },
    }
    write_json(folder / MANIFEST_FILE, content | {"sha256": manifest_sha256(content)}, indent=1)
