"""Write arcft/assets/tiny: the tokenizer and the architecture of the bundled model.

    python scripts/make_tiny.py [FOLDER] [--hidden 192] [--layers 6]

The tokenizer can represent any text, byte by byte; the text of our encoders and prompts takes one token per digit,
symbol, colour name or word. The words come from conf/prompt, so run this again after changing a prompt; that changes
the token ids and so invalidates every checkpoint of the model. Another size needs its own folder:

    python train.py model.path=FOLDER model.init=random
"""

from __future__ import annotations

import argparse
import json
import math
import string
from collections.abc import Iterator
from pathlib import Path

import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from arcft.problems.arc.format.encoders import COLOR_NAMES, DIGITS, FENCE, SYMBOLS
from arcft.problems.arc.format.grid_positions import GRID, ROW

ROOT = Path(__file__).resolve().parents[1]
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIALS = (PAD, BEGIN, END)
# A piece is one token if the vocabulary has it, and its bytes otherwise. Nothing merges across pieces.
PIECES = rf"{FENCE}|#+|[{SYMBOLS}]|[0-9]| ?[A-Za-z]+|\s|[^\sA-Za-z0-9{SYMBOLS}]"
FORMAT_PIECES = (*DIGITS, "\n", " ", "|", *SYMBOLS, FENCE, "grid", " shape", ":", "x")
CONTEXT = 4096  # tokens
HIDDEN, LAYERS = 160, 5
HEAD = 32  # width of a head: one rotary pair for each of PERIODS
FEED_FORWARD = 2.8  # times the width, rounded to a multiple of 64
# Positions are grid * 1024 + row * 32 + column (format/grid_positions.py), so these are waves over the columns of a
# row, over the rows of a grid and over the grids; the last one is nearly constant and carries almost no position.
HARMONICS, GRID_HARMONICS = (1, 2, 4, 8, 13), (1, 2, 4, 8, 16)
PERIODS = (
    *(ROW / k for k in HARMONICS),
    *(GRID / k for k in HARMONICS),
    *(ROW * GRID / k for k in GRID_HARMONICS),
    2**22,
)
# Upper bound of the positions in a prompt: 64 grids.
LAST_POSITION = 64 * GRID
ROPE_THETA = 10000.0
# Offsets at which heads are initialised to look back, by layer: a cell, a row, the same cell in the paired grid and its
# neighbours, ...
KERNELS = ((1, 32, 1024, 1023, 31), (1023, 1024, 31, 992, 2047), (1023, 2047))


def main(folder: Path, hidden: int = HIDDEN, layers: int = LAYERS) -> None:
    tokenizer = make_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    _write(folder / "tokenizer_config.json", tokenizer_settings())
    _write(folder / "config.json", architecture(size, hidden, layers))
    print(f"{folder}: {size} tokens")


def make_tokenizer() -> Tokenizer:
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = dict.fromkeys(SPECIALS)
    for piece in (*FORMAT_PIECES, *COLOR_NAMES, *(f" {name}" for name in COLOR_NAMES), *prompt_pieces()):
        ((token, _),) = bytes_of.pre_tokenize_str(piece)
        vocabulary[token] = None
    vocabulary |= dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    ids = {token: number for number, token in enumerate(vocabulary)}

    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, ids[BEGIN])]
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def prompt_pieces() -> Iterator[str]:
    """The words and punctuation of every prompt under conf/prompt, file by file."""
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    for path in sorted((ROOT / "conf" / "prompt").glob("*.yaml")):
        for key, template in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if key == "chat_template":
                continue
            for text, *_ in string.Formatter().parse(template):
                yield from (piece for piece, _ in split.pre_tokenize_str(text))


def tokenizer_settings() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }


def architecture(num_tokens: int, hidden: int = HIDDEN, layers: int = LAYERS) -> dict[str, object]:
    """A Llama with attention biases, which is Qwen2 with one more bias; `hidden` is its width, a multiple of 32.

    Not Qwen2 itself: for a config.json of that type, transformers' AutoTokenizer replaces the pre-tokenizer with
    Qwen2's (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in tokenization_auto.py), and our text would fall back to bytes.
    """
    heads = hidden // HEAD
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": -(-num_tokens // 64) * 64,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": HEAD,
        "intermediate_size": round(FEED_FORWARD * hidden / 64) * 64,
        "hidden_act": "silu",
        "attention_bias": True,
        "max_position_embeddings": LAST_POSITION,
        "rms_norm_eps": 1e-06,
        "rope_parameters": rope_parameters(),
        "tie_word_embeddings": True,
        # A width of 160 needs more than the usual 0.02: with frozen layers near zero an adapter could do little.
        "initializer_range": 0.05,
        "positional_kernels": [
            {"layer": layer, "head": head, "offset": offset}
            for layer, offsets in enumerate(KERNELS[:layers])
            for head, offset in enumerate(offsets[:heads])
        ],
        "positional_kernel_strength": 2.0,
        "pad_token_id": SPECIALS.index(PAD),
        "bos_token_id": SPECIALS.index(BEGIN),
        "eos_token_id": SPECIALS.index(END),
        "dtype": "bfloat16",  # of the stored weights
    }


def rope_parameters() -> dict[str, object]:
    """Rotary frequencies 2 pi / PERIODS. Of transformers' RoPE types, longrope allows any frequencies, as factors of
    the default ones. With equal short and long factors they don't depend on the sequence length."""
    factors = [period / (2 * math.pi * ROPE_THETA ** (2 * pair / HEAD)) for pair, period in enumerate(PERIODS)]
    return {
        "rope_type": "longrope",
        "rope_theta": ROPE_THETA,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": LAST_POSITION,
        "short_factor": factors,
        "long_factor": factors,
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = ROOT / "arcft" / "assets" / "tiny"
    parser.add_argument("folder", type=Path, nargs="?", default=shipped, help="default: the one in the package")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help=f"width, a multiple of {HEAD} (default {HIDDEN})")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"default {LAYERS}")
    arguments = parser.parse_args()
    if arguments.hidden < HEAD or arguments.hidden % HEAD:
        parser.error(f"--hidden {arguments.hidden}: must be a multiple of {HEAD}, the width of a head")
    if arguments.layers < 1:
        parser.error(f"--layers {arguments.layers}: must be at least 1")
    if arguments.folder == shipped and (arguments.hidden, arguments.layers) != (HIDDEN, LAYERS):
        parser.error("another size needs its own FOLDER; the default folder holds the bundled model")
    return arguments


if __name__ == "__main__":
    asked = parse_arguments()
    main(asked.folder, asked.hidden, asked.layers)
