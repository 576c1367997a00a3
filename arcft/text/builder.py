"""Questions as training examples and as prompts, fitted to the context."""

from __future__ import annotations

import functools

from arcft.protocols import Grammar, Problem, ProblemError, ProblemFormat, Question
from arcft.text.tokens import Example, Tokenization


class ExampleBuilder:
    """Turns questions into training examples and prompts of at most `max_seq_length` tokens."""

    def __init__(
        self, format: ProblemFormat, tokenization: Tokenization, *, max_seq_length: int, drop_demonstrations: bool
    ) -> None:
        """`drop_demonstrations`: shorten an example that is too long by its last demonstrations instead of giving it
        up."""
        self.format = format
        self.tokenization = tokenization
        self.max_seq_length = max_seq_length
        self.drop_demonstrations = drop_demonstrations

    def example(self, question: Question, max_seq_length: int | None = None) -> Example | None:
        """The training example, or None if it does not fit; raise TokenizationError if the answer is not known.

        `max_seq_length` is a tighter limit than the builder's.
        """
        fitting = self._fitting(question, self.max_seq_length if max_seq_length is None else max_seq_length)
        return None if fitting is None else fitting[1]

    def left_out_of_example(self, question: Question) -> int | None:
        """How many demonstrations `example(question)` lacks, to fit the context; None where there is no example."""
        fitting = self._fitting(question, self.max_seq_length)
        return None if fitting is None else self.left_out(question, fitting[0])

    def prompt(self, question: Question) -> list[int]:
        """The prompt's token ids, however many: the beginning of `example(question)`."""
        text = self.format.render(question)
        return self.tokenization.prompt_ids(text.system, text.user, text.opener)

    def fit(self, question: Question, room: int | None) -> Question | None:
        """The question with as many of its first demonstrations as fit; None if not even one does.

        `room` is the number of tokens kept free for the answer; None keeps what the longest answer takes.
        """
        if room is None:
            room = self.longest_answer or 0
        shortened: Question | None = question
        while shortened is not None and len(self.prompt(shortened)) + room > self.max_seq_length:
            shortened = self.format.shorten(shortened)
        return shortened

    def left_out(self, question: Question, shortened: Question) -> int:
        """How many demonstrations of `question` are not in `shortened`, which `fit` made of it."""
        return self._shortenings(question) - self._shortenings(shortened)

    def num_tokens(self, problem: Problem) -> int:
        """Tokens of prompt and answer of the problem's longest test, without augmentation.

        An unknown answer is assumed to be as long as the longest one shown; where none is shown, it counts nothing.
        """
        lengths = []
        for index, answer in enumerate(problem.answers):
            question = self.format.question(problem, index)
            answers = self.format.shown_answers(question) if answer is None else [answer]
            completions = map(self.format.completion, answers)
            longest = max(map(self.tokenization.completion_length, completions), default=0)
            lengths.append(len(self.prompt(question)) + longest)
        return max(lengths)

    @functools.cached_property
    def longest_answer(self) -> int | None:
        """Tokens of the longest answer, the end of the turn included; None where there is no bound."""
        return max(map(self.tokenization.completion_length, self.format.longest_completions()), default=None)

    @functools.cached_property
    def grammar(self) -> Grammar:
        """The valid answers, token by token; raise ArcftError where kind or tokenizer allow no grammar."""
        grammar = self.format.grammar(self.tokenization)
        if grammar is None:
            raise ProblemError("inference.grammar=true: problems of this kind have no grammar; set it to false")
        return grammar

    def _fitting(self, question: Question, limit: int) -> tuple[Question, Example] | None:
        """The question, with fewer demonstrations if allowed and necessary, and its example of at most `limit`."""
        shortened: Question | None = question
        while shortened is not None:
            if self.format.min_tokens(shortened) <= limit:
                example = self._example(shortened)
                if len(example.input_ids) <= limit:
                    return shortened, example
            shortened = self.format.shorten(shortened) if self.drop_demonstrations else None
        return None

    def _shortenings(self, question: Question) -> int:
        """How often `question` can be shortened."""
        shortened = self.format.shorten(question)
        return 0 if shortened is None else 1 + self._shortenings(shortened)

    def _example(self, question: Question) -> Example:
        text = self.format.render(question)
        return self.tokenization.example(text.system, text.user, text.opener, text.completion, text.output_spans)
