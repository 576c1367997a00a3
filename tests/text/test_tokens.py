"""Token ids and labels, with the bundled tokenizer and with real ones."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from arcft.text.padding import choose_pad_token
from arcft.text.tokens import IGNORED, Example, Tokenization, TokenizationError, token_texts
from tests.support.paths import ROOT

REAL = ["qwen2_5", "llama3", "gemma3", "smollm2", "gpt2"]
USER = "A\n12\nB\n34\n\nA\n56\nB\n78\n\nA\n90\n"
SPANS = ((7, 9), (18, 20))
OPENER = "### B\n\n```grid shape: "
COMPLETION = "2x3\n1 000\n2 123\n```"
FULL_TURNS = {
    "qwen2_5": "<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n{user}\n<|im_end|>\n<|im_start|>assistant\n",
    "smollm2": "<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n{user}\n<|im_end|>\n<|im_start|>assistant\n",
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSolve.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\n{user}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma3": "<bos><start_of_turn>user\nSolve.\n\n{user}<end_of_turn>\n<start_of_turn>model\n",
    "gpt2": "Solve.\n\n{user}\n",
    "tiny": "<|begin|>Solve.\n\n{user}\n",
}
ENDS = {
    "qwen2_5": ["<|im_end|>"],
    "smollm2": ["<|im_end|>"],
    "llama3": ["<|eot_id|>", "<|end_of_text|>"],
    "gemma3": ["<end_of_turn>"],
    "gpt2": ["<|endoftext|>"],
    "tiny": ["<|end|>"],
}
PADS = {
    "qwen2_5": "<|endoftext|>",
    "smollm2": "<|endoftext|>",
    "llama3": "<|reserved_special_token_0|>",
    "gemma3": "<pad>",
    "gpt2": "Ġgazed",
    "tiny": "<|pad|>",
}

Load = Callable[[str], PreTrainedTokenizerBase]


@functools.cache
def load_folder(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def load(tokenizer_folder: Callable[[str], Path]) -> Load:
    return lambda name: load_folder(ROOT / "arcft" / "assets" / name if name == "tiny" else tokenizer_folder(name))


@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_an_example_to_the_letter(load: Load, name: str) -> None:
    tokenizer = load(name)
    tokenization = Tokenization(tokenizer)
    example = tokenization.example("Solve.", USER, OPENER, COMPLETION, SPANS)
    prompt = FULL_TURNS[name].format(user=USER.strip()) + OPENER
    assert tokenizer.decode(example.input_ids) == prompt + COMPLETION + ENDS[name][0]
    assert tokenizer.decode(example.input_ids[: example.prompt_length]) == prompt
    assert example.labels[: example.prompt_length] == [IGNORED] * example.prompt_length
    assert example.labels[example.prompt_length :] == example.input_ids[example.prompt_length :]
    assert example.input_ids[: example.prompt_length] == tokenization.prompt_ids("Solve.", USER, OPENER)
    assert tokenizer.bos_token_id is None or example.input_ids[1] != tokenizer.bos_token_id


@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_ends_and_decoding(load: Load, name: str) -> None:
    tokenizer = load(name)
    tokenization = Tokenization(tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokenization.end_ids) == ENDS[name]
    example = tokenization.example("", USER, OPENER, COMPLETION)
    completion = example.input_ids[example.prompt_length :]
    assert tokenization.completion_length(COMPLETION) == len(completion)
    for end in tokenization.end_ids:
        assert tokenization.decode([*completion[:-1], end, *completion]) == COMPLETION
    assert tokenization.decode(completion[:-1]) == COMPLETION
    assert tokenization.decode([]) == ""


def test_special_tokens_inside_an_answer_stay_visible(load: Load) -> None:
    tokenization = Tokenization(load("tiny"))
    begin, one = tokenization.tokenizer.encode("1")
    assert tokenization.decode([one, begin, one, tokenization.end_id]) == "1<|begin|>1"


@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_padding_is_never_an_end(load: Load, name: str) -> None:
    tokenizer = load(name)
    size = len(tokenizer)
    pad = choose_pad_token(tokenizer, size)
    assert tokenizer.convert_ids_to_tokens(pad) == PADS[name]
    assert pad not in Tokenization(tokenizer).end_ids
    assert pad not in Tokenization(tokenizer, chat_template="never").end_ids
    assert len(tokenizer) == size


def test_a_base_model_whose_pad_token_is_its_end_token(load: Load) -> None:
    tokenizer = copy.deepcopy(load("qwen2_5"))
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.chat_template = None
    assert Tokenization(tokenizer).end_ids == [tokenizer.pad_token_id]
    assert tokenizer.convert_ids_to_tokens(choose_pad_token(tokenizer, len(tokenizer))) == "<|vision_pad|>"


@pytest.mark.parametrize(("name", "pad"), [("llama3", "<|reserved_special_token_0|>"), ("gpt2", "Ġgazed")])
def test_a_pad_token_beyond_the_embeddings_is_passed_over(load: Load, name: str, pad: str) -> None:
    tokenizer = copy.deepcopy(load(name))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == rows
    assert tokenizer.convert_ids_to_tokens(choose_pad_token(tokenizer, rows)) == pad
    assert choose_pad_token(tokenizer, rows + 1) == rows


def test_named_unknown_and_ordinary_tokens_beyond_the_embeddings_are_passed_over(load: Load) -> None:
    tokenizer = copy.deepcopy(load("gpt2"))
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"unk_token": "<unk>", "additional_special_tokens": ["<reserved>"]})
    tokenizer.add_tokens(["ordinary"])
    assert tokenizer.convert_ids_to_tokens(choose_pad_token(tokenizer, len(tokenizer))) == "<reserved>"
    assert choose_pad_token(tokenizer, rows) < rows


@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_texts_of_tokens_are_their_text_together(load: Load, name: str) -> None:
    tokenizer = load(name)
    # Symbols of three and four bytes, which most tokenizers spread over several tokens; a space at the beginning.
    ids = tokenizer.encode(" Grid\n🟥🟦 ąć÷Ě , 12 ñòĞ\n⬛ é end", add_special_tokens=False)
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(texts)
    assert texts[-1].endswith("d")


def test_bytes_that_are_no_character_stay_so(load: Load) -> None:
    tokenizer = load("tiny")
    symbol = tokenizer.encode("🟥", add_special_tokens=False)
    assert len(symbol) == 4
    (one,) = tokenizer.encode("1", add_special_tokens=False)
    assert token_texts(tokenizer, [*symbol, one]) == ["", "", "", "🟥", "1"]
    assert token_texts(tokenizer, [one, *symbol[:2]]) == ["1", "", "\ufffd"]
    assert token_texts(tokenizer, []) == []


@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_loss_on_all_supervises_every_token(load: Load, name: str) -> None:
    example = Tokenization(load(name), loss_on="all").example("Solve.", USER, OPENER, COMPLETION, SPANS)
    assert example.labels == example.input_ids


@pytest.mark.parametrize("name", ["tiny", *REAL])
def test_loss_from_the_second_output_on(load: Load, name: str) -> None:
    tokenizer = load(name)
    example = Tokenization(tokenizer, loss_on="from_second_output").example("Solve.", USER, OPENER, COMPLETION, SPANS)
    assert supervised_text(tokenizer, example) == f"78{COMPLETION}{ENDS[name][0]}"
    # What is not of the prompt is as it was.
    assert example.input_ids == Tokenization(tokenizer).example("Solve.", USER, OPENER, COMPLETION).input_ids


def test_loss_from_the_second_output_on_with_space_around_the_words(load: Load) -> None:
    tokenizer = load("llama3")  # its template trims
    user = f"\n \n{USER}"
    spans = [(start + 3, end + 3) for start, end in SPANS]
    example = Tokenization(tokenizer, loss_on="from_second_output").example("", user, OPENER, COMPLETION, spans)
    assert supervised_text(tokenizer, example) == f"78{COMPLETION}<|eot_id|>"


def test_loss_from_the_second_output_on_with_one_output_is_the_completion(load: Load) -> None:
    tokenizer = load("tiny")
    example = Tokenization(tokenizer, loss_on="from_second_output").example("", USER, OPENER, COMPLETION, SPANS[:1])
    assert supervised_text(tokenizer, example) == f"{COMPLETION}<|end|>"


def supervised_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    return str(tokenizer.decode([label for label in example.labels if label != IGNORED]))


@pytest.mark.parametrize("name", ["tiny", "qwen2_5"])
def test_nothing_to_learn_is_an_error(load: Load, name: str) -> None:
    for loss_on in ("completion", "all", "from_second_output"):
        with pytest.raises(TokenizationError, match="an example without a completion has no supervised token"):
            Tokenization(load(name), loss_on=loss_on).example("", USER, OPENER, "", SPANS)


@pytest.mark.parametrize("name", REAL)
def test_never_writes_plain_turns(load: Load, name: str) -> None:
    tokenization = Tokenization(load(name), chat_template="never")
    begin = "<bos>" if name == "gemma3" else ""  # this copy of Llama 3's adds nothing
    token_ids = tokenization.prompt_ids("Solve.", USER, OPENER)
    assert tokenization.tokenizer.decode(token_ids) == f"{begin}Solve.\n\n{USER}{OPENER}"


def test_no_system_turn_without_a_system_text(load: Load) -> None:
    tiny = Tokenization(load("tiny"))
    assert tiny.prompt_text("", USER, OPENER) == USER + OPENER
    gemma = Tokenization(load("gemma3"))
    assert gemma.prompt_text("", "words", "") == "<bos><start_of_turn>user\nwords<end_of_turn>\n<start_of_turn>model\n"


TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ '' if loop.last else '\n' }}{% endfor %}"


def with_template(load: Load, template: str) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(load("tiny"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS,
        TURNS.replace("messages %}", "messages if m['role'] != 'system' %}"),
    ],
    ids=["refused as by Gemma 2", "dropped"],
)
def test_the_system_text_goes_to_the_user_where_the_template_has_no_system_turn(load: Load, template: str) -> None:
    tokenization = Tokenization(with_template(load, template))
    assert tokenization.prompt_text("Solve.", "Words.", "Say ") == "[user] Solve.\n\nWords.\n[assistant] Say "


def test_the_opener_is_not_trimmed_by_the_template(load: Load) -> None:
    tokenization = Tokenization(with_template(load, TURNS))
    assert tokenization.prompt_text("", "Words.", "\n### B\n\n") == "[user] Words.\n[assistant] \n### B\n\n"
    assert tokenization.end_ids == [2]  # the template writes no end of turn


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(load: Load) -> None:
    tokenization = Tokenization(with_template(load, "{{ strftime_now('%d %b %Y') + '\n' }}" + TURNS))
    assert tokenization.prompt_text("", "Words.", "") == "26 Jul 2024\n[user] Words.\n[assistant] "


def test_the_end_of_turn_is_the_first_special_token_after_the_answer(load: Load) -> None:
    tokenization = Tokenization(with_template(load, TURNS + "\n<|pad|><|begin|>"))
    assert tokenization.end_ids == [0, 2]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}", "the tokenizer's chat template can't be used: .*prompt.chat_template=never"),
        ("{% for", "the tokenizer's chat template can't be used: .*prompt.chat_template=never"),
    ],
)
def test_templates_that_cannot_be_used(load: Load, template: str, message: str) -> None:
    with pytest.raises(TokenizationError, match=message):
        Tokenization(with_template(load, template))
    assert Tokenization(with_template(load, template), chat_template="never").prompt_ids("", "1", "")
    assert choose_pad_token(with_template(load, template), 448) == 0


def test_a_template_that_rewrites_the_user_cannot_supervise_outputs(load: Load) -> None:
    template = "{% for m in messages %}{{ m['content'] | replace('B', 'b') }}{% endfor %}"
    tokenization = Tokenization(with_template(load, template), loss_on="from_second_output")
    with pytest.raises(TokenizationError, match="rewrites the user's text; use training"):
        tokenization.example("", USER, OPENER, COMPLETION, SPANS)


def test_a_tokenizer_without_an_end_token(load: Load) -> None:
    tokenizer = copy.deepcopy(load("tiny"))
    tokenizer.eos_token = None
    with pytest.raises(TokenizationError, match="has no end token"):
        Tokenization(tokenizer)


@pytest.mark.parametrize(
    ("name", "opener", "completion", "border"),
    [("gpt2", "shape: ", "2x3", (" ", "2")), ("smollm2", "### B\n", "\n12", ("\n", "\n"))],
)
def test_a_merge_across_the_border_is_reported_once(
    load: Load, name: str, opener: str, completion: str, border: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load(name)
    tokenization = Tokenization(tokenizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            example = tokenization.example("", USER, opener, completion)
    (record,) = caplog.records
    assert "would merge the end of the prompt, " in record.getMessage()
    assert repr(completion) in record.getMessage()
    around = example.input_ids[example.prompt_length - 1 : example.prompt_length + 1]
    assert (tokenizer.decode(around[:1]), tokenizer.decode(around[1:])) == border


@pytest.mark.parametrize("name", ["tiny", "qwen2_5"])
def test_no_report_where_nothing_merges(load: Load, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Tokenization(load(name)).example("", USER, OPENER, COMPLETION)
    assert not caplog.records


def test_the_tokenizer_is_left_as_it_is(load: Load) -> None:
    tokenizer = load("llama3")
    before = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template, len(tokenizer))
    Tokenization(tokenizer, loss_on="all").example("Solve.", USER, OPENER, COMPLETION)
    choose_pad_token(tokenizer, len(tokenizer))
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template, len(tokenizer)) == before


def test_every_template_word_of_the_config_is_kept(load: Load) -> None:
    # Qwen2.5 with the longest prompt: every word reaches the model in the order of the YAML.
    prompt = yaml.safe_load((ROOT / "conf" / "prompt" / "priors.yaml").read_text(encoding="utf-8"))
    tokenization = Tokenization(load("qwen2_5"))
    text = tokenization.tokenizer.decode(tokenization.prompt_ids(prompt["system"], prompt["intro"], prompt["answer"]))
    assert text == (
        f"<|im_start|>system\n{prompt['system']}<|im_end|>\n<|im_start|>user\n{prompt['intro']}<|im_end|>\n"
        f"<|im_start|>assistant\n{prompt['answer']}"
    )
