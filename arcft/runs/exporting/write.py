"""What an export writes: weights in one of three formats, read back and compared; the card and the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from arcft.checkpoints import CheckpointError
from arcft.config.export import ExportConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.files import file_sha256, manifest_sha256, write_json
from arcft.models.bundled import BUNDLED
from arcft.models.fingerprint import base_fingerprint
from arcft.models.gguf_file import GGUF_TYPES, check_architecture, rounded, tensors_of, write_gguf
from arcft.models.gguf_tokenizer import pretokenizer_of
from arcft.models.load import load_model, load_tokenizer
from arcft.models.lora import load_adapter
from arcft.models.merging import (
    adapter_for_original_base,
    apply_saved_adapter,
    dense_base,
    merged,
    save_plain_adapter,
    without_quantisation,
)
from arcft.models.quantization import no_progress_bar
from arcft.models.source import load_architecture, resolve_path
from arcft.names import file_name
from arcft.runs.exporting.card import CARD_FILE, Facts, write_card
from arcft.runs.exporting.checks import ExportError, Probe, check, check_weights, probe_of, texts_of
from arcft.runs.setup.checkpoint_config import TrainedRun, check_base
from arcft.runs.setup.restore import base_model, restored_builder, restored_tokenizer

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
        if config.format == "gguf":
            # What can't be written is refused before any weights are loaded.
            check_architecture(
                load_architecture(self.base), path=str(self.base.path), positions=run.config.model.positions
            )
        self._refuse_upload()
        self.tokenizer: PreTrainedTokenizerBase = restored_tokenizer(run)
        self.builder = restored_builder(run, self.tokenizer, run.config.training.max_seq_length)
        self.probe: Probe = probe_of(run, self.builder)
        self.texts = texts_of(self.probe, self.builder)
        self.pieces = pretokenizer_of(self.tokenizer, self.texts) if config.format == "gguf" else ""

    def merged(self) -> Facts:
        model, reference = self._merged()
        _save(model, self.tokenizer, self.folder, self.config.dtype)
        found = self._read_back(self.folder, model, reference)
        facts = self._facts(f"merged weights in {self.config.dtype}", found)
        return dataclasses.replace(facts, plain_tokenizer=self._reads_tokenizer(AutoTokenizer))

    def gguf(self) -> Facts:
        model, reference = self._merged()
        file = self.folder / f"{file_name(self.run.config.model.name)}-{GGUF_TYPES[self.config.dtype][0].name}.gguf"
        write_gguf(model, self.tokenizer, self.pieces, file, self.config.dtype, self.run.config.model.name)
        back = self._load_written(file)
        expected = {name: rounded(weight, self.config.dtype) for name, weight in tensors_of(model).items()}
        check_weights(tensors_of(back), expected, file.name)
        found = check(self.probe.logits(back), reference, file.name, self.config.dtype)
        if not self._cuts_alike(load_tokenizer(ModelConfig(name="exported", path=str(file)))):
            raise ExportError(f"{file.name}: its tokenizer cuts the run's prompts in another way; nothing was written")
        return dataclasses.replace(self._facts(file.name, found), weights=file.name)

    def adapter(self) -> Facts:
        model, reference = self._trained()
        source = self.run.checkpoint.path
        if self._base_is_named():
            plain = adapter_for_original_base(self._load(), source)
            base, base_name, what = self._load(), resolve_path(str(self.base.path)), f"for {self.base.path}"
        else:
            del model
            trained, plain = apply_saved_adapter(self._load(), source)
            dense = dense_base(trained)
            _save(dense, self.tokenizer, self.folder / BASE_FOLDER, self.config.dtype)
            base = self._load_written(self.folder / BASE_FOLDER)
            base_name, what = str(self.out / BASE_FOLDER), f"and its base model in {self.config.dtype}"
        adapted = plain.apply_to(base)
        save_plain_adapter(adapted, self.folder, base_name)
        self.tokenizer.save_pretrained(self.folder)
        # As anyone reads it who has PEFT alone.
        back = peft.PeftModel.from_pretrained(dense_base(adapted), self.folder)
        dtype = "float32" if self._base_is_named() else self.config.dtype
        found = check(self.probe.logits(back.eval()), reference, "the adapter", dtype)
        return self._facts(f"a plain adapter {what}", found)

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

    def _trained(self) -> tuple[peft.PeftModel, torch.Tensor]:
        """The base model with the adapter, as evaluations load it, and its logits."""
        model = load_adapter(self._load(), self.run.checkpoint.path, trainable=False)
        return model, self.probe.logits(model)

    def _load(self) -> PreTrainedModel:
        try:
            with no_progress_bar():
                model = load_model(self.base, dtype=torch.float32, device=_CPU)
        except ModelError as error:
            if not self.has_adapter:
                raise
            raise CheckpointError(
                f"{self.run.checkpoint.path}: its base model can't be loaded: {error}. If it lies elsewhere now: "
                "base_model=DIR"
            ) from error
        if self.has_adapter:
            check_base(self.run, base_fingerprint(self.base, model), str(self.base.path))
        return model

    def _read_back(self, folder: Path, model: PreTrainedModel, reference: torch.Tensor) -> float:
        back = self._load_written(folder)
        expected = {
            name: weight.float() if weight.is_floating_point() else weight
            for name, weight in model.state_dict().items()
        }
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


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str) -> None:
    """Write weights, config and tokenizer; the weights of `model` are rounded to `dtype` in place."""
    model.to(getattr(torch, dtype))
    with no_progress_bar():
        model.save_pretrained(folder, max_shard_size="5GB")
    tokenizer.save_pretrained(folder)


def _write_manifest(folder: Path, run: TrainedRun, config: ExportConfig) -> None:
    """List every file with its size and sha256, and the checkpoint that they come from."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "format": config.format,
        "dtype": config.dtype,
        "checkpoint": run.checkpoint.digest,
        "step": run.checkpoint.step,
        "base_model": run.checkpoint.manifest["base_model"],
        "base_fingerprint": run.checkpoint.manifest["base_fingerprint"],
        "data_fingerprint": run.checkpoint.manifest["data_fingerprint"],
        "versions": run.checkpoint.manifest["versions"],
        "files": {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in paths
        },
    }
    write_json(folder / MANIFEST_FILE, content | {"sha256": manifest_sha256(content)}, indent=1)
