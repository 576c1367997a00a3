"""What a training run needs before its model: tokenizer, text format, task sets and the stream of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.config.run import TrainConfig
from arcft.models.families import stored_decoder
from arcft.models.load import load_tokenizer
from arcft.protocols import DealViews, Problem, QuestionSampler
from arcft.runs.setup.build import check_answers, example_builder, view_dealer
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.tasks import CountTokens, TaskSets, task_sets
from arcft.runs.setup.vocabulary import run_tokenizer
from arcft.runs.training.step_plan import StepPlan, plan_steps
from arcft.text.builder import ExampleBuilder
from arcft.text.item_sampler import ItemSampler
from arcft.text.stream import ExampleStream, Trial
from arcft.text.tokens import Example


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that a run needs except the model."""

    tokenizer: PreTrainedTokenizerBase
    builder: ExampleBuilder
    deal_views: DealViews
    sets: TaskSets
    adapts: bool
    """With data.view=leave_one_out: tasks are learned from their demonstrations only."""

    stream: ExampleStream
    held_out_examples: list[Example]
    held_out_skipped: int
    """Held-out tests that do not fit the context, and so have no loss."""

    trial: Trial

    @property
    def tasks(self) -> dict[str, Any]:
        """Task ids by use, and the sets that share nothing with them, as run.yaml stores them."""
        return {
            "train": self.sets.train_ids,
            "held_out": [task.id for task in self.sets.held_out],
            "adapted_to": self.sets.train_ids if self.adapts else None,
            "disjoint_from": self.sets.disjoint_from,
        }


def prepare(config: TrainConfig, plan: StepPlan | None = None) -> Prepared:
    """Tokenizer, text format, task sets and the stream of examples; raises ArcftError if training is impossible.

    `plan` says how many examples a step takes; None for those of a new run.
    """
    training = config.training
    kind = kind_of(config.data)
    tokenizer = run_tokenizer(
        kind,
        config.model,
        load_tokenizer(config.model),
        encoder=config.encoder,
        prompt=config.prompt,
        data=config.data,
        augmentation=config.augmentation,
    )
    builder = example_builder(
        kind,
        config.encoder,
        config.prompt,
        tokenizer,
        positions=config.model.positions,
        max_seq_length=training.max_seq_length,
        drop_demonstrations=training.drop_demonstrations,
        loss_on=training.loss_on,
    )
    questions = kind.sampler(config.augmentation, builder.format, view=config.data.view)
    sets = task_sets(config.data, _count_tokens(builder, questions, config.data.view), max_tokens(config))
    stream = ExampleStream(
        ItemSampler(sets.train, seed=training.seed),
        questions,
        builder,
        length=training.max_steps * (plan or plan_steps(training, None)).examples,
        seed=training.seed,
        curriculum=config.training.curriculum,
    )
    if training.generation_tasks and sets.held_out:
        check_answers(builder, config.inference, config.model)
    else:
        # A model that reads both ways is refused all the same: it would learn to copy.
        stored_decoder(config.model)
    trial = stream.check()
    held_out = _held_out_examples(builder, sets.held_out)
    fitting = [example for example in held_out if example is not None]
    return Prepared(
        tokenizer=tokenizer,
        builder=builder,
        deal_views=view_dealer(kind, config.inference),
        sets=sets,
        adapts=config.data.view == "leave_one_out",
        stream=stream,
        held_out_examples=fitting,
        held_out_skipped=len(held_out) - len(fitting),
        trial=trial,
    )


def max_tokens(config: TrainConfig) -> int | None:
    """The limit on a task's length, in tokens."""
    limits = [config.data.max_tokens, None if config.training.drop_demonstrations else config.training.max_seq_length]
    return min((limit for limit in limits if limit is not None), default=None)


def _count_tokens(builder: ExampleBuilder, questions: QuestionSampler, view: str) -> CountTokens:
    """Length of a task in training, in tokens: its longest test, or its shortest leave-one-out question."""
    if view == "test":
        return builder.num_tokens

    def count(problem: Problem) -> int:
        return min(map(builder.num_tokens, questions.problems(problem, np.random.default_rng(0))))

    return count


def _held_out_examples(builder: ExampleBuilder, problems: Sequence[Problem]) -> list[Example | None]:
    questions = [
        builder.format.question(problem, index)
        for problem in problems
        for index, answer in enumerate(problem.answers)
        if answer is not None
    ]
    return [builder.example(question) for question in questions]
