"""What works with models of an architecture, measured on a small random one: the cells of docs/models.md."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.decoding.probe import decoder_for
from arcft.errors import ArcftError, ModelError
from arcft.models.families import Decoder, known_decoder
from arcft.models.gguf_file import check_architecture, write_gguf
from arcft.models.load import load_model
from arcft.models.lora import apply_lora, save_adapter
from arcft.models.merging import (
    adapter_for_original_base,
    apply_saved_adapter,
    dense_base,
    merged,
    save_plain_adapter,
)
from arcft.models.packed_attention import can_pack, measure_packing, packed, packs, use_packed_attention
from arcft.models.quantization import prepare_quantised, quantise
from tests.support.byte_level import byte_level_tokenizer
from tests.support.families import VARIANTS, VOCABULARY, families, family_config, family_model

YES = "yes"
DENSE_EXPERTS = "yes, not experts"
LORA = LoraConfig(
    r=4, alpha=8.0, dropout=0.0, target_modules="all-linear", use_rslora=False, use_dora=False, init_lora_weights=True
)
CPU = torch.device("cpu")
CLOSE = 1e-3
"""The largest difference of logits from those expected, in standard deviations of the logits."""

ROUNDING = {"int8": 0.02, "nf4": 0.2}
"""The largest relative error of a quantised weight matrix, in the Frobenius norm: nf4 has 0.09, and rwkv, which scales
its weights before it decodes, quantises twice."""

# What GGUF can hold of architectures whose small model has more than that.
_WRITABLE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 128},
}


def random_tokens(seed: int, length: int) -> list[int]:
    """Tokens above the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


PROMPTS = [random_tokens(1, 150), random_tokens(2, 90), random_tokens(3, 61)]
"""Two of them longer than every local window."""

IDS = torch.tensor([random_tokens(4, 40), random_tokens(5, 40)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
    """What was measured in one process. A cell starts with "yes" or "no"."""

    decoder: str
    packing: str
    int8: str
    nf4: str
    merged: str
    adapter: str
    gguf: str


def names() -> list[str]:
    """All architectures and variants that the tests build and that are not refused."""
    return [name for name in (*families(), *VARIANTS) if refusal(name) is None]


def refusal(name: str) -> str | None:
    """Why models of this architecture are refused; None if they are not. Their configs are enough to tell."""
    kind, changes = VARIANTS.get(name, (name, {}))
    try:
        known_decoder(family_config(kind, **changes))
    except ModelError as error:
        return str(error)
    return None


def small_model(name: str, **changes: Any) -> PreTrainedModel:
    """A small random model, without dropout, and without the noise that some routers add."""
    kind, own = VARIANTS.get(name, (name, {}))
    values = family_config(kind).to_dict()
    no_dropout = {
        key: 0.0 for key, value in values.items() if ("drop" in key or "jitter" in key) and type(value) is float
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return family_model(kind, **no_dropout, **own, **changes)


def measured(name: str, folder: Path) -> Cells:
    """All cells but those that take several processes; files are written to `folder`."""
    model = small_model(name)
    decoder = decoder_for(model)
    merged_cell, adapter_cell = exported(name, folder)
    return Cells(
        decoder="arcft" if decoder is Decoder.OWN else "generate",
        packing=packing(model),
        int8=quantised(name, "int8"),
        nf4=quantised(name, "nf4"),
        merged=merged_cell,
        adapter=adapter_cell,
        gguf=as_gguf(name, folder),
    )


def packing(model: PreTrainedModel) -> str:
    """Pack three examples, and compare each with itself alone; then change the second, and watch the others."""
    cell = _packing(model)
    # What a run goes by.
    assert packs(model) == measure_packing(model) == (cell == YES), cell
    return cell


def _packing(model: PreTrainedModel) -> str:
    before = model.config._attn_implementation
    if not can_pack(model):
        return "no: eager"
    changed = [PROMPTS[0], random_tokens(9, len(PROMPTS[1])), PROMPTS[2]]
    try:
        use_packed_attention(model)
        first, second = packed_logits(model, PROMPTS), packed_logits(model, changed)
    # Each architecture fails in its own way where it is fed what it does not expect.
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        return "no: fails"
    finally:
        model.set_attn_implementation(before)
    assert not is_close(second[1], first[1])
    if not all(is_close(second[place], first[place]) for place in (0, 2)):
        return "no: mixed"
    alone = (logits_of(model, prompt) for prompt in PROMPTS)
    return YES if all(map(is_close, first, alone)) else "no: positions"


def packed_logits(model: PreTrainedModel, examples: Sequence[Sequence[int]]) -> Sequence[torch.Tensor]:
    lengths = [len(example) for example in examples]
    inputs = {
        "input_ids": torch.tensor([[token for example in examples for token in example]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "use_cache": False,
    }
    with torch.inference_mode(), packed(model, lengths) as more:
        return model(**inputs, **more).logits[0].float().split(lengths)


def quantised(name: str, quantization: Any) -> str:
    """Quantise, train an adapter for a step, and compare with a model of the dequantised weights."""
    model = small_model(name)
    original = {key: weight.clone() for key, weight in model.state_dict().items()}
    dense = apply_lora(copy.deepcopy(model), LORA, [], seed=0)
    trained = names_with_gradient(dense.train())
    attention = model.config._attn_implementation
    config = ModelConfig(name=name, path="random", quantization=quantization, attn_implementation=attention)
    try:
        model = quantise(model, config, torch.float32, CPU)
        prepare_quantised(model, config)
    except ArcftError:
        return "no: refused"
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([PROMPTS[1]]), use_cache=False).logits[0]
    adapted = apply_lora(model, LORA, [], seed=0)
    adapted.train()
    assert names_with_gradient(adapted) == trained
    before = loss_of(adapted).item()
    step_down(adapted)
    assert loss_of(adapted).item() < before
    dense = dense_base(adapted.eval())
    assert is_close(logits_of(dense, PROMPTS[1]), logits)
    changed = False
    for key, weight in dense.state_dict().items():
        if weight.ndim < 2 or not weight.is_floating_point():
            continue
        # Loading may set an embedding's first row, of the padding token, to zero.
        error = float((weight[1:] - original[key][1:]).norm() / original[key][1:].norm())
        assert not error > ROUNDING[quantization], (key, error)
        changed |= error > 0
    assert changed
    fused = any(one.ndim == 3 and "experts" in key for key, one in dense.named_parameters())
    return DENSE_EXPERTS if fused else YES


def names_with_gradient(model: Any) -> set[str]:
    """Names of the weights that the loss depends on, of those that are trained."""
    loss_of(model).backward()
    found = {name for name, one in model.named_parameters() if one.requires_grad and one.grad is not None}
    assert found
    return found


def step_down(model: Any) -> None:
    """A step against the gradients that there are; by the first order, the loss falls by 1e-4."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    size = sum(float(parameter.grad.square().sum()) for parameter in trained)
    assert size > 0
    with torch.no_grad():
        for parameter in trained:
            parameter -= 1e-4 / size * parameter.grad


def loss_of(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), IDS[:, 1:].flatten())


def exported(name: str, folder: Path) -> tuple[str, str]:
    """A trained adapter, merged and read by transformers; and plain, read by PEFT alone."""
    model = apply_lora(small_model(name), dataclasses.replace(LORA, init_lora_weights=False), [], seed=0)
    expected = logits_of(model.eval(), PROMPTS[1])
    assert not is_close(logits_of(small_model(name), PROMPTS[1]), expected)
    save_adapter(model, folder / "saved")
    trained, plain = apply_saved_adapter(small_model(name), folder / "saved")
    merged(dense_base(trained), plain).save_pretrained(folder / "merged")
    whole = AutoModelForCausalLM.from_pretrained(folder / "merged").eval()
    plain = adapter_for_original_base(small_model(name), folder / "saved")
    save_plain_adapter(plain.apply_to(small_model(name)), folder / "plain", "base")
    alone = peft.PeftModel.from_pretrained(small_model(name), folder / "plain").eval()
    first, second = (
        YES if is_close(logits_of(back, PROMPTS[1]), expected) else "no: refused" for back in (whole, alone)
    )
    return first, second


def as_gguf(name: str, folder: Path) -> str:
    """A file read back by transformers."""
    kind, own = VARIANTS.get(name, (name, {}))
    tokenizer = byte_level_tokenizer()
    config = family_config(kind, **own, **_WRITABLE.get(name, {}))
    try:
        check_architecture(config, path=name, positions="none")
    except ModelError:
        return "no"
    model = small_model(name, vocab_size=len(tokenizer), **_WRITABLE.get(name, {}))
    file = folder / "model.gguf"
    write_gguf(model, tokenizer, "smollm", file, "float32", name)
    back = load_model(ModelConfig(name=name, path=str(file)), dtype=torch.float32, device=CPU)
    assert is_close(logits_of(back, PROMPTS[1]), logits_of(model, PROMPTS[1]))
    return YES


def logits_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """float32 [tokens, vocabulary]"""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=CLOSE * float(expected.std()))
