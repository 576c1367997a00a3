"""Every causal architecture of the installed transformers: decoded as it computes, or refused; adapted, saved, read."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import LoraLayer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from arcft.config.lora import LoraConfig
from arcft.decoding.decode import decode
from arcft.decoding.hf_generate import generate
from arcft.decoding.likelihood import score
from arcft.decoding.options import DecodingOptions
from arcft.decoding.probe import decoder_for, measure
from arcft.decoding.search import search
from arcft.errors import DecodingError, ModelError
from arcft.models.adapter_config import LoraError
from arcft.models.families import MEASURED_WITH, Decoder, known_decoder
from arcft.models.lora import apply_lora, load_adapter, save_adapter
from arcft.models.stacked_lora import StackedLora
from tests.support.families import NOT_BUILT, VARIANTS, VOCABULARY, families, family_config, family_model

END = 2
OPTIONS = DecodingOptions(end_ids=[END], pad_id=0)
STEPS = 6
REFUSED = r"reads text in both directions|computes other probabilities"
CLOSE = 2e-3
LORA = LoraConfig(
    r=4, alpha=8.0, dropout=0.0, target_modules="all-linear", use_rslora=False, use_dora=False, init_lora_weights=True
)
# Wrong at a few places only, such as the end of a block, which a median does not show.
NOT_MEASURED = ("doge", "reformer")


def numbers(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


# Two of them longer than every local window.
PROMPTS = [numbers(1, 150), numbers(2, 90), numbers(3, 61)]


@functools.cache
def model_of(name: str) -> PreTrainedModel:
    kind, changes = VARIANTS.get(name, (name, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return family_model(kind, **changes)


def expected_decoder(name: str) -> Decoder | None:
    """None for architectures that are refused."""
    try:
        return known_decoder(model_of(name).config)
    except ModelError:
        return None


def decoded() -> list[str]:
    """Architectures that are not refused; their configs are enough to tell."""
    names = []
    for name in [*families(), *VARIANTS]:
        kind, changes = VARIANTS.get(name, (name, {}))
        try:
            known_decoder(family_config(kind, **changes))
        except ModelError:
            continue
        names.append(name)
    return names


def logits_of(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].float()


def written_by_whole_passes(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], float]:
    """The likeliest tokens, each by a plain forward pass over the whole text, and their log-probability."""
    tokens, logprob = list(prompt), 0.0
    for _ in range(STEPS):
        last = logits_of(model, tokens)[-1].log_softmax(dim=-1)
        token = int(last.argmax())
        logprob += float(last[token])
        if token == END:
            break
        tokens.append(token)
    return tokens[len(prompt) :], logprob


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) != MEASURED_WITH, reason="measured with another release"
)
@pytest.mark.parametrize("name", [*families(), *VARIANTS])
def test_it_is_decoded_as_it_computes_or_refused(name: str) -> None:
    model, decoder = model_of(name), expected_decoder(name)
    if decoder is None:
        with pytest.raises(ModelError, match=REFUSED):
            decoder_for(model)
        if name not in NOT_MEASURED:
            with pytest.raises(ModelError, match=REFUSED):
                measure(model)
        return
    expected = [written_by_whole_passes(model, prompt) for prompt in PROMPTS]
    ways = {
        "alone": [decode(model, [prompt], OPTIONS, max_new_tokens=STEPS)[0] for prompt in PROMPTS],
        "together": decode(model, PROMPTS, OPTIONS, max_new_tokens=STEPS),
        "two at a time": decode(model, PROMPTS, dataclasses.replace(OPTIONS, batch_size=2), max_new_tokens=STEPS),
        "generate": generate(model, PROMPTS, OPTIONS, max_new_tokens=[STEPS] * len(PROMPTS)),
    }
    for way, found in ways.items():
        assert [one.token_ids for one in found] == [tokens for tokens, _ in expected], way
        assert [one.logprob for one in found] == pytest.approx([logprob for _, logprob in expected], abs=CLOSE), way
    given = [[one.token_ids + [END] * one.finished] for one in ways["together"]]
    scored = [logprob for (logprob,) in score(model, PROMPTS, given, OPTIONS)]
    assert scored == pytest.approx([logprob for _, logprob in expected], abs=CLOSE)
    assert measure(model) is decoder
    assert decoder_for(model) is decoder
    if decoder is Decoder.GENERATE:
        with pytest.raises(DecodingError, match="inference=search needs"):
            search(model, PROMPTS, OPTIONS, threshold=0.5, max_nodes=5, max_new_tokens=STEPS)


def test_every_architecture_is_built_or_left_out_with_a_reason() -> None:
    assert len(families()) > 140
    assert not set(families()) & NOT_BUILT.keys()


@pytest.mark.parametrize("name", decoded())
def test_padded_examples_have_the_logits_of_each_alone(name: str) -> None:
    model = model_of(name)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in PROMPTS])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in PROMPTS])
    with torch.inference_mode():
        together = model(input_ids=ids, attention_mask=mask).logits.float()
    for row, prompt in enumerate(PROMPTS):
        alone = logits_of(model, prompt)
        assert torch.allclose(together[row, : len(prompt)], alone, atol=1e-3 * float(alone.std())), row


@pytest.mark.parametrize("name", decoded())
def test_an_adapter_is_trained_saved_and_read_by_every_loader(name: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS.get(name, (name, {}))
    ids = torch.tensor([numbers(4, 40), numbers(5, 40)])

    def fresh() -> PreTrainedModel:
        return family_model(kind, **changes)

    adapted = apply_lora(fresh(), LORA, [], seed=0)
    untrained = logits_of(adapted, ids[0].tolist())
    optimizer = torch.optim.AdamW([one for one in adapted.parameters() if one.requires_grad], lr=0.05)
    adapted.train()
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(adapted(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
    adapted.eval()
    expected = logits_of(adapted, ids[0].tolist())
    assert not torch.allclose(expected, untrained, atol=0.01)
    save_adapter(adapted, tmp_path)

    def check(found: torch.Tensor) -> None:
        assert torch.allclose(found, expected, atol=1e-3 * float(expected.std()))

    check(logits_of(load_adapter(fresh(), tmp_path, trainable=False), ids[0].tolist()))
    stacked = StackedLora(load_adapter(fresh(), tmp_path, trainable=True), 1)
    with torch.no_grad():
        for context in (stacked.training(0, 1), stacked.merged(0), stacked.routed()):
            with context as route:
                if route is not None:
                    route([0, 0])
                check(stacked.model(input_ids=ids).logits[0].float())
    stacked.save(0, tmp_path / "again")
    if name != "laguna":  # PEFT itself leaves out its shared experts
        check(logits_of(peft.PeftModel.from_pretrained(fresh(), str(tmp_path / "again")).eval(), ids[0].tolist()))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "laguna"])
def test_stacked_experts_have_the_gradients_of_peft(kind: str, tmp_path: Path) -> None:
    ids = torch.tensor([numbers(4, 40), numbers(5, 40)])
    plain = apply_lora(family_model(kind), dataclasses.replace(LORA, init_lora_weights=False), [], seed=0)
    save_adapter(plain, tmp_path)
    stacked = StackedLora(load_adapter(family_model(kind), tmp_path, trainable=True), 1)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    loss(plain(input_ids=ids).logits).backward()
    with stacked.training(0, 1):
        loss(stacked.model(input_ids=ids).logits).backward()
    found = stacked.named(stacked.gradient(0))
    checked = 0
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            own = found[name.replace(".default", "")]
            assert torch.allclose(own, parameter.grad, atol=1e-5 * float(parameter.grad.abs().max()) + 1e-8), name
            checked += bool(parameter.grad.any())
    assert checked > 10


def test_several_adapters_on_fused_experts_are_an_error(tmp_path: Path) -> None:
    save_adapter(apply_lora(family_model("mixtral"), LORA, [], seed=0), tmp_path)
    stacked = StackedLora(load_adapter(family_model("mixtral"), tmp_path, trainable=True), 2)
    assert stacked.adapts_parameters
    with (
        stacked.training(0, 2),
        pytest.raises(LoraError, match=r"serve all rows of a batch at once.*use ttft\.slots=1"),
    ):
        stacked.model(input_ids=torch.tensor([numbers(4, 10), numbers(5, 10)]))


def test_a_router_is_left_out_and_refused_by_name() -> None:
    adapted = apply_lora(family_model("phimoe"), LORA, [], seed=0)
    changed = [name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    assert changed
    assert not any("router" in name for name in changed)
    with pytest.raises(LoraError, match=r"lora\.target_modules: .*router computes more than a product"):
        apply_lora(family_model("phimoe"), dataclasses.replace(LORA, target_modules=["router"]), [], seed=0)


class OwnPositions(LlamaForCausalLM):
    """A model with code of its own, which counts positions from the longest row of the cache."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        cache = options.get("past_key_values")
        start = 0 if cache is None else cache.get_seq_length()
        options["position_ids"] = torch.arange(start, start + input_ids.shape[1])[None]
        options.pop("attention_mask", None)
        return super().forward(input_ids, **options)


class OwnFuture(LlamaForCausalLM):
    """A model with code of its own, which lets each token see the last one."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        output = super().forward(input_ids, **options)
        output.logits = output.logits + output.logits[:, -1:]
        return output


class OwnCache(LlamaForCausalLM):
    """A model with code of its own, which forgets its cache."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        options["past_key_values"] = None
        options.pop("position_ids", None)
        return super().forward(input_ids, **options)


@pytest.mark.parametrize("context", [None, 40])
def test_a_model_with_code_of_its_own_is_measured(context: int | None) -> None:
    def own(code: type[LlamaForCausalLM]) -> LlamaForCausalLM:
        model = code(LlamaConfig(**{**family_config("llama").to_dict(), "architectures": None})).eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
        return model

    assert decoder_for(own(LlamaForCausalLM), context=context) is Decoder.OWN
    positions = own(OwnPositions)
    assert decoder_for(positions, context=context) is Decoder.GENERATE
    found = decode(positions, PROMPTS, OPTIONS, max_new_tokens=STEPS)
    assert [one.token_ids for one in found] == [written_by_whole_passes(positions, one)[0] for one in PROMPTS]
    with pytest.raises(ModelError, match="reads text in both directions"):
        decoder_for(own(OwnFuture), context=context)
    with pytest.raises(ModelError, match="computes other probabilities"):
        decoder_for(own(OwnCache), context=context)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt_neo", "mamba"])
def test_rounding_is_not_taken_for_an_error(kind: str, dtype: torch.dtype) -> None:
    model = family_model(kind).to(dtype)
    assert measure(model) is known_decoder(model.config)


@pytest.mark.parametrize("kind", ["gpt_neo", "mamba"])
def test_generate_samples_and_follows_a_grammar(kind: str) -> None:
    model = family_model(kind)
    options = dataclasses.replace(OPTIONS, grammar=TwoOrThree)
    greedy = decode(model, PROMPTS, options, max_new_tokens=STEPS)
    for prompt, one in zip(PROMPTS, greedy, strict=True):
        assert len(one.token_ids) == 2
        assert one.finished
        logits = [logits_of(model, [*prompt, *one.token_ids[:place]])[-1] for place in range(2)]
        allowed = [logits[place][TwoOrThree.NEXT[place]].log_softmax(dim=-1) for place in range(2)]
        assert one.logprob == pytest.approx(sum(float(one.max()) for one in allowed), abs=CLOSE)
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    drawn = decode(model, PROMPTS, OPTIONS, max_new_tokens=STEPS, temperature=2.0, generator=generators)
    alone = decode(
        model,
        PROMPTS[1:2],
        OPTIONS,
        max_new_tokens=STEPS,
        temperature=2.0,
        generator=[torch.Generator().manual_seed(1)],
    )
    assert drawn[1] == alone[0]
    assert drawn != decode(model, PROMPTS, OPTIONS, max_new_tokens=STEPS)
    assert all(math.isfinite(one.logprob) for one in drawn)


class TwoOrThree:
    """A grammar of two tokens, each from a small set, and the end."""

    NEXT = ([10, 11, 12], [20, 21], [END])
    longest = 3

    def __init__(self, place: int = 0) -> None:
        self.place = place

    @property
    def choices(self) -> Sequence[int]:
        return self.NEXT[self.place] if self.place < 3 else []

    def advance(self, token: int) -> None:
        assert token in self.choices
        self.place += 1

    def copy(self) -> TwoOrThree:
        return TwoOrThree(self.place)
