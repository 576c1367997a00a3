"""Chat turns as token ids and labels, whatever the text is about."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Sequence
from typing import Any, Literal

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.config.recommended import LossOn
from arcft.errors import ArcftError
from arcft.protocols import Positions

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label of an unsupervised token: ignore_index of PyTorch's cross entropy."""

# Placeholder for the answer while rendering a chat template, because templates may strip white space.
_ANSWER = "arcft-answer"
# Some templates write today's date; a prompt must be the same in training and at inference.
_TODAY = datetime.datetime(2024, 7, 26)
_BORDERS_CHECKED = 16
# The replacement character, which decoders write for incomplete or invalid bytes.
_UNFINISHED = "\ufffd"


class TokenizationError(ArcftError):
    """A tokenizer or chat template that lacks something that the config needs."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A training example."""

    input_ids: list[int]
    """The ids of the prompt, the completion and the end of the turn."""

    labels: list[int]
    """As long as `input_ids`, not shifted: the id where supervised, else IGNORED."""

    prompt_length: int
    """The number of `input_ids` that are the prompt: everything that the model is given at inference."""


class Tokenization:
    """Turns text into token ids, for training and inference alike.

    Prompt (with the opener of the answer) and completion are tokenised separately and concatenated, so the inference
    prompt is the beginning of the training example, even if the tokenizer would merge tokens across the border. In that
    case a warning is logged once.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: Literal["auto", "never"] = "auto",
        loss_on: LossOn = "completion",
        positions: Positions | None = None,
        num_kept: int | None = None,
    ) -> None:
        """Wrap the tokenizer without modifying it.

        `chat_template`: `auto` uses the tokenizer's template if it has one; without a template the turns are plain
        text, with a blank line after the system turn. `loss_on`: completion, all or from_second_output, as in
        TrainingConfig. `positions`: the rule of position ids, if they are not consecutive. `num_kept`: ids from this
        on belong to tokens that are pruned from the model (model.prune_vocabulary); a text that needs one raises
        TokenizationError. Raise it also if the template can't leave the last turn open, or if the tokenizer has no end
        token or, for from_second_output, no character offsets.
        """
        self.tokenizer = tokenizer
        self.positions = positions
        self.loss_on = loss_on
        self._num_kept = num_kept
        self.has_template = chat_template == "auto" and tokenizer.chat_template is not None
        if loss_on == "from_second_output" and not tokenizer.is_fast:
            raise TokenizationError(
                "training.loss_on=from_second_output needs a tokenizer that reports character offsets (one with a "
                "tokenizer.json); use training.loss_on=completion"
            )
        self._template_has_system = self.has_template and self._finds_system()
        self._begin_ids = [] if self.has_template else self._plain_begin()
        self.end_id = self._find_end()
        end_of_text = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.end_ids: list[int] = list(dict.fromkeys([self.end_id, *end_of_text]))
        """The ids that stop generation: end of turn and end of text."""
        self._borders_to_check = _BORDERS_CHECKED

    def prompt_text(self, system: str, user: str, opener: str) -> str:
        """The text that `prompt_ids` tokenises, without special tokens at the beginning."""
        if self.has_template:
            return self._render(system, user, open_turn=True).removesuffix(_ANSWER) + opener
        return (f"{system}\n\n" if system else "") + user + opener

    def prompt_ids(self, system: str, user: str, opener: str) -> list[int]:
        """The model's input: all turns, the last one left open after `opener`."""
        return self._begin_ids + self._encode(self.prompt_text(system, user, opener))

    def example(
        self,
        system: str,
        user: str,
        opener: str,
        completion: str,
        output_spans: Sequence[tuple[int, int]] = (),
    ) -> Example:
        """`prompt_ids`, `completion` and the end of the turn, labelled according to `loss_on`.

        `output_spans` are the first and last + 1 character in `user` of each output; `from_second_output` supervises
        all but the first. Raise TokenizationError for an empty completion, which has nothing to learn.
        """
        if not completion:
            raise TokenizationError("an example without a completion has no supervised token; its answer is not known")
        prompt = self.prompt_text(system, user, opener)
        if self.loss_on == "from_second_output":
            ids, supervised = self._encode_and_find(prompt, user, output_spans[1:])
        else:
            ids, supervised = self._encode(prompt), []
        prompt_ids = self._begin_ids + ids
        completion_ids = self.completion_ids(completion)
        self._report_merge(prompt, completion, prompt_ids + completion_ids[:-1])
        if self.loss_on == "all":
            prompt_labels = prompt_ids
        else:
            prompt_labels = [IGNORED] * len(prompt_ids)
            for position in supervised:
                prompt_labels[len(self._begin_ids) + position] = ids[position]
        return Example(prompt_ids + completion_ids, prompt_labels + completion_ids, len(prompt_ids))

    def completion_ids(self, completion: str) -> list[int]:
        """The ids that a model should generate for `completion`, including the end of the turn."""
        return [*self._encode(completion), self.end_id]

    def completion_length(self, completion: str) -> int:
        """Number of tokens of `completion`, including the end of the turn."""
        return len(self.completion_ids(completion))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The exact text of generated ids up to the first end token: no cleanup, and other special tokens stay visible,
        because a correct answer contains none."""
        end = next((position for position, token in enumerate(token_ids) if token in self.end_ids), len(token_ids))
        return self.tokenizer.decode(  # type: ignore[return-value]
            list(token_ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _encode(self, text: str) -> list[int]:
        return self._checked(self._token_ids(text))

    def _token_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, verbose=False)

    def _checked(self, ids: list[int]) -> list[int]:
        if self._num_kept is not None and max(ids, default=0) >= self._num_kept:
            place = next(place for place, token in enumerate(ids) if token >= self._num_kept)
            around = self.tokenizer.decode(ids[max(place - 4, 0) : place + 1], clean_up_tokenization_spaces=False)
            pruned = self.tokenizer.decode(ids[place : place + 1], clean_up_tokenization_spaces=False)
            raise TokenizationError(
                f"model.prune_vocabulary=true: the token {pruned!r} in {around!r} is not among the {self._num_kept} "
                "that were kept; use model.prune_vocabulary=false"
            )
        return ids

    def _render(self, system: str, user: str, *, open_turn: bool) -> str:
        if system and not self._template_has_system:
            system, user = "", f"{system}\n\n{user}"
        turns = [("system", system)] if system else []
        turns += [("user", user), ("assistant", _ANSWER)]
        return self._apply(turns, open_turn=open_turn)

    def _apply(self, turns: list[tuple[str, str]], *, open_turn: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(  # type: ignore[return-value]
                [{"role": role, "content": content} for role, content in turns],
                tokenize=False,
                continue_final_message=open_turn,
                strftime_now=_TODAY.strftime,
            )
        except (jinja2.TemplateError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise TokenizationError(
                f"the tokenizer's chat template can't be used: {reason}; use prompt.chat_template=never"
            ) from error

    def _finds_system(self) -> bool:
        """Whether the template writes a system turn; some refuse it (Gemma 2), some drop it."""
        try:
            text = self._apply([("system", "arcft-system"), ("user", "user"), ("assistant", _ANSWER)], open_turn=True)
        except TokenizationError:
            return False
        return "arcft-system" in text

    def _plain_begin(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text: usually none, or a BOS token."""
        with_special: list[int] = self.tokenizer.encode("0")
        without = self._token_ids("0")
        for start in range(len(with_special) - len(without) + 1):
            if with_special[start : start + len(without)] == without:
                return with_special[:start]
        return []

    def _find_end(self) -> int:
        """The token that ends the assistant's turn: the template's, or else the end of text."""
        if self.has_template:
            open_turn = self._render("", "user", open_turn=True)
            if not open_turn.endswith(_ANSWER):
                raise TokenizationError(
                    f"the tokenizer's chat template adds {open_turn.rpartition(_ANSWER)[2]!r} to an open answer; "
                    "use prompt.chat_template=never"
                )
            closing = self._render("", "user", open_turn=False).rpartition(_ANSWER)[2]
            special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
            for token in self._token_ids(closing):
                if token in special:
                    return token
        if self.tokenizer.eos_token_id is None:
            raise TokenizationError(
                "the tokenizer has no end token, so a model could not learn to stop; set eos_token in its "
                "tokenizer_config.json"
            )
        return self.tokenizer.eos_token_id

    def _report_merge(self, prompt: str, completion: str, token_ids: list[int]) -> None:
        if self._borders_to_check == 0:
            return
        self._borders_to_check -= 1
        if self._begin_ids + self._token_ids(prompt + completion) != token_ids:
            self._borders_to_check = 0
            logger.warning(
                "this tokenizer would merge the end of the prompt, %r, with the beginning of the answer, %r; "
                "they are kept apart, in training as at inference",
                prompt[-12:],
                completion[:12],
            )

    def _encode_and_find(self, prompt: str, user: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """The prompt's ids, and the indices of the tokens that overlap with `spans` of `user`."""
        if not spans:
            return self._encode(prompt), []
        words = user.strip()  # templates strip turns
        start = prompt.rfind(words)
        if start < 0:
            raise TokenizationError(
                "training.loss_on=from_second_output: the tokenizer's chat template rewrites the user's text; use "
                "training.loss_on=completion or prompt.chat_template=never"
            )
        shift = start - (len(user) - len(user.lstrip()))
        encoding: Any = self.tokenizer(
            prompt, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        firsts, lasts = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        found = np.zeros(len(firsts), dtype=bool)
        for begin, end in spans:
            found |= (firsts < end + shift) & (lasts > begin + shift)
        return self._checked(encoding["input_ids"]), np.flatnonzero(found).tolist()


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds to the previous ones; joined, they are the text of `ids`.

    If a character's bytes are spread over several tokens, the last one gets the character and the others "".
    """
    texts = []
    begun = known = 0
    for end in range(1, len(ids) + 1):
        # Decode together with the preceding tokens: at the beginning of a text many decoders drop a space.
        before, text = (
            str(tokenizer.decode(ids[begun:until], clean_up_tokenization_spaces=False)) for until in (known, end)
        )
        if text.endswith(_UNFINISHED) and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        begun, known = known, end
    return texts
