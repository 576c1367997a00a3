"""Pruning the vocabulary: a model keeps the rows of its embedding and of its head for the tokens that a run can use.

Checkpoints hold the full vocabulary all the same: what was trained by token (whole embeddings, adapters on the head) is
written with all rows, and read without those that are pruned. The logits of kept tokens are unchanged; probabilities
are normalised over fewer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from arcft.errors import ArcftError, ModelError

_WAY_OUT = "use model.prune_vocabulary=false"
_TRIED = 8
"""Tokens whose logits are compared before and after pruning."""
_FRESH = (True, "gaussian")
"""Initial weights of LoRA that leave the base weights as they are, and give no token a change."""


class PrunedVocabulary(nn.Module):
    """The rows that a pruned model lacks. A submodule of the model, without parameters, so that it goes where the model
    goes."""

    def __init__(self, kept: Sequence[int], rows: int, places: Sequence[str]) -> None:
        super().__init__()
        self.kept = torch.tensor(kept)
        """int64 [K], ascending: the rows of the full vocabulary that are left."""
        self.rows = rows
        """Of the full vocabulary."""
        self._places = tuple(places)
        """Names of the embedding and the head in the base model."""
        self._full: dict[str, torch.Tensor] = {}
        """Full weights by name, on the CPU, where their pruned rows will be saved again."""

    def full_shape(self, name: str, shape: torch.Size) -> torch.Size:
        """The shape with all rows of the weight `name`, which has `shape` in the pruned model."""
        dimension = self.token_dimension(name)
        if dimension is None:
            return shape
        return torch.Size(self.rows if place == dimension else size for place, size in enumerate(shape))

    def widen(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of `state`, by the names of the model or of PEFT's files, with all rows, on the CPU if they lack
        any. Pruned rows are as they were loaded, and of a fresh LoRA adapter zero."""
        wide: dict[str, torch.Tensor] = {}
        shared: dict[tuple[int, torch.Size], torch.Tensor] = {}
        for name, weight in state.items():
            dimension = self.token_dimension(name)
            if dimension is None:
                wide[name] = weight
                continue
            # Tied weights stay one tensor, which is saved once.
            key = weight.data_ptr(), weight.shape
            if key not in shared:
                shared[key] = self._widened(name, weight.detach().cpu(), dimension)
            wide[name] = shared[key]
        return wide

    def narrow(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of `state`, which have all rows, without the pruned ones; those are kept for `widen`."""
        narrow = dict(state)
        for name, weight in state.items():
            dimension = self.token_dimension(name)
            if dimension is not None:
                self._full[_plain(name)] = weight.cpu()
                narrow[name] = weight.index_select(dimension, self.kept.to(weight.device))
        return narrow

    def _widened(self, name: str, weight: torch.Tensor, dimension: int) -> torch.Tensor:
        full = self._full.get(_plain(name))
        if full is None and "lora_" in name:
            full = weight.new_zeros(self.full_shape(name, weight.shape))
        if full is None:
            raise ModelError(f"{name}: its pruned rows were not kept; {_WAY_OUT}")
        return full.to(weight.dtype, copy=True).index_copy_(dimension, self.kept, weight)

    def token_dimension(self, name: str) -> int | None:
        """The dimension of the weight `name` that counts tokens."""
        plain = _plain(name)
        place = next((place for place in self._places if plain.startswith(f"{place}.")), None)
        if place is None or any(part in plain for part in ("lora_A", "lora_embedding_B")):
            return None
        return 1 if "lora_embedding_A" in plain else 0


def prune_vocabulary(model: PreTrainedModel, kept: Sequence[int], *, trains_rows: bool) -> None:
    """Reduce embedding and head of a loaded base model to the rows `kept`, ascending, in place.

    Args:
        model: Without an adapter, in evaluation mode.
        kept: Ids of the full vocabulary. From now on the model's token i is `kept[i]`.
        trains_rows: Whether embedding or head will be trained as a whole: the pruned rows are then kept on the CPU, to
            be saved with the others.

    Raise ModelError for a model that keeps anything else by token, as seen by its logits before and after.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module, kind, what in ((embedding, nn.Embedding, "embedding"), (head, nn.Linear, "head")):
        if not isinstance(module, kind) or not module.weight.is_floating_point():
            raise _refused(model, f"its {what} is {type(module).__name__}, which can't be pruned")
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    text_config = model.config.get_text_config(decoder=True)
    rows = text_config.vocab_size
    if embedding.num_embeddings != rows or head.weight.shape[0] != rows:
        sizes = f"{embedding.num_embeddings} and {head.weight.shape[0]}"
        raise _refused(model, f"its embedding and head have {sizes} rows, and its vocabulary {rows}")
    # Descending, unlike positions.
    tried = [*kept[:_TRIED], *kept[-_TRIED:]][::-1]
    with _Lookups(tried) as lookups:
        before = _logits(model, tried)[..., list(kept)]
    used = [name for name, weight in model.named_parameters() if any(weight is one for one in lookups.weights)]
    if others := [name for name in used if name != f"{_name_of(model, embedding)}.weight"]:
        raise _refused(model, f"it also looks up tokens in {others[0]}")
    names = [_name_of(model, embedding), _name_of(model, head)]
    vocabulary = PrunedVocabulary(kept, rows, names)
    if trains_rows:
        own = {name: weight.detach() for name, weight in model.state_dict().items()}
        vocabulary.narrow({name: weight for name, weight in own.items() if name.rpartition(".")[0] in names})
    is_tied = head.weight is embedding.weight
    places = vocabulary.kept.to(embedding.weight.device)
    _keep_rows(embedding, places, is_tied=False)
    if is_tied:
        head.weight = embedding.weight
    _keep_rows(head, places.to(head.weight.device), is_tied=is_tied)
    if embedding.padding_idx is not None:
        embedding.padding_idx = kept.index(embedding.padding_idx) if embedding.padding_idx in kept else None
    embedding.num_embeddings = head.out_features = text_config.vocab_size = len(kept)
    model.add_module("pruned_vocabulary", vocabulary)
    _compare(model, before, [kept.index(token) for token in tried])


def pruned_vocabulary(model: nn.Module) -> PrunedVocabulary | None:
    """What `model`, with or without an adapter, lacks; None if it is not pruned."""
    return next((module for module in model.modules() if isinstance(module, PrunedVocabulary)), None)


def num_pruned_parameters(model: nn.Module) -> int:
    """Number of parameters that `model` lacks of those with all rows."""
    vocabulary = pruned_vocabulary(model)
    if vocabulary is None:
        return 0
    named = model.named_parameters()
    return sum(vocabulary.full_shape(name, weight.shape).numel() - weight.numel() for name, weight in named)


@contextmanager
def full_vocabulary_size(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the model's config says how many tokens the full vocabulary has, as a checkpoint should."""
    vocabulary, config = pruned_vocabulary(model), model.config.get_text_config(decoder=True)
    own = config.vocab_size
    config.vocab_size = own if vocabulary is None else vocabulary.rows
    try:
        yield
    finally:
        config.vocab_size = own


def refuse_unsavable(adapted: nn.Module, config: Any) -> None:
    """Raise ArcftError where an adapter on embedding or head depends on rows that were pruned."""
    vocabulary = pruned_vocabulary(adapted)
    if vocabulary is None or (config.init_lora_weights in _FRESH and not config.use_dora):
        return
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and vocabulary.token_dimension(f"{name}.weight") is not None:
            raise ArcftError(
                f"lora.target_modules: an adapter on {_plain(name)} with lora.use_dora={bool(config.use_dora)} and "
                f"lora.init_lora_weights={config.init_lora_weights} depends on all tokens; leave that module out, or "
                f"{_WAY_OUT}"
            )


def _keep_rows(module: nn.Module, places: torch.Tensor, *, is_tied: bool) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not (is_tied and name == "weight"):
            rows = parameter.detach().index_select(0, places)
            setattr(module, name, nn.Parameter(rows, requires_grad=parameter.requires_grad))


def _compare(model: PreTrainedModel, before: torch.Tensor, tokens: Sequence[int]) -> None:
    # Other rows would give other logits altogether; no more than rounding may differ.
    tolerance = 0.05 if before.dtype in (torch.bfloat16, torch.float16) else 1e-5
    try:
        after = _logits(model, tokens)
    except (IndexError, RuntimeError) as error:
        raise _refused(model, f"it fails with fewer tokens ({str(error).splitlines()[0]})") from error
    scale = max(1.0, before.abs().max().item())
    if before.shape != after.shape or not torch.allclose(before, after, rtol=0.0, atol=tolerance * scale):
        raise _refused(model, "it keeps more by token than an embedding and a head")


class _Lookups(TorchFunctionMode):
    """Within this context, collects the weights in which `tokens` are looked up."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []
        self._tokens = torch.tensor(list(tokens))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding and torch.equal(args[0].flatten().cpu(), self._tokens):
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, own in model.named_modules() if own is module)


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False).logits


def _refused(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(f"model.prune_vocabulary=true: a model of type {model.config.model_type}: {reason}; {_WAY_OUT}")


def _plain(name: str) -> str:
    """The name of a weight in the base model, and in PEFT's files, whatever wraps it."""
    plain = name.removeprefix("base_model.model.")
    for part in (".modules_to_save.default", ".original_module", ".base_layer", ".default"):
        plain = plain.replace(part, "")
    return plain
