"""A byte-level BPE tokenizer of a few merges, which cuts text as one of the models' that GGUF files name."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from arcft.models.gguf_tokenizer import _pre_tokenizer

TEXTS = ["### Input\n\n01 23\n### Output\n\n", "don't stop the grid puzzle", "123 456 000 0000"] * 4


def byte_level_tokenizer(pieces: str = "smollm") -> PreTrainedTokenizerFast:
    """`pieces`: the name of the pre-tokenizer in llama.cpp."""
    core = Tokenizer(models.BPE(ignore_merges=pieces == "llama-bpe"))
    core.pre_tokenizer = _pre_tokenizer(pieces)
    core.decoder = decoders.ByteLevel()
    if pieces == "qwen2":
        from tokenizers import normalizers

        core.normalizer = normalizers.NFC()
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    core.add_tokens([AddedToken("<grid>", normalized=False, special=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    )
    return tokenizer
