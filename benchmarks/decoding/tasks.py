"""Real tasks end to end, from prompts to grids; and the time of scoring and searching."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from arcft.decoding.core.completion import Completion
from arcft.decoding.decode import decode
from arcft.decoding.likelihood import score
from arcft.decoding.options import DecodingOptions
from arcft.decoding.search import search
from arcft.prediction.drafts import DraftSource, before_drafting
from arcft.prediction.predict import read_answer
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts, completions_for
from arcft.problems.arc.task import Task, as_task
from decoding.reference import generate
from decoding.steps import ratios
from decoding.subjects import OneShape, Subject, seconds_now

WAYS = ("generate", "read", "ours", "grammar", "guesses", "greedy", "search", "greedy_any", "search_any")
TITLES = {
    "generate": "generate",
    "read": "our loop, prefill only",
    "ours": "our loop, no grammar",
    "grammar": "+ grammar, forced skipped",
    "guesses": "+ drafts",
    "score": "scoring all its grids",
    "greedy": "greedy, any grid",
    "search": "search, any grid",
    "greedy_any": "greedy, any text",
    "search_any": "search, any text",
}
SLACK = 1.1
"""Limit on answers of any shape, as a multiple of the true one's tokens, so that an answer that never ends does not
dominate the time."""


class Asked:
    """The prompts of one test, and the variants that decode them."""

    def __init__(self, subject: Subject, model: PreTrainedModel, task: Task, test_index: int) -> None:
        self.subject = subject
        self.model = model
        self.prompts = augmented_prompts(subject.builder, subject.deal_views, task, test_index, subject.inference)
        outputs = [as_task(prompt.view.apply(task)).test[test_index].output for prompt in self.prompts]
        self.truth: Any = task.answers[test_index]
        self.shapes = [OneShape(subject.builder, output.shape) for output in outputs if output is not None]
        self.ids = [prompt.token_ids for prompt in self.prompts]
        self.limits = [shape.longest for shape in self.shapes]
        self.more = [int(SLACK * limit) for limit in self.limits]
        self.common = DecodingOptions(**subject.ends, positions=subject.builder.tokenization.positions)

    def generate(self) -> list[list[int]]:
        written = generate(
            self.model,
            self.ids,
            max(self.limits),
            pad_id=self.common.pad_id,
            positions=self.common.positions,
        )
        return [own[:limit] for own, limit in zip(written, self.limits, strict=True)]

    def read(self) -> list[list[int]]:
        return self._tokens(max_new_tokens=1, end_ids=[])

    def ours(self) -> list[list[int]]:
        return self._tokens(max_new_tokens=self.limits, end_ids=[])

    def grammar(self) -> list[list[int]]:
        return self._tokens(max_new_tokens=self.limits, grammar=self.shapes)

    def guesses(self) -> list[list[int]]:
        """Speculative decoding as in arcft.prediction.predict with inference.speculate."""
        places = range(len(self.prompts))
        size = self.subject.inference.batch_size
        first = before_drafting(self.subject.builder, self.prompts, places, size)
        rest = sorted((place for place in places if place not in first), key=lambda place: len(self.ids[place]))
        drafts = DraftSource(self.subject.builder)
        written: dict[int, list[int]] = {}
        for wave in [first, *(rest[start : start + size] for start in range(0, len(rest), size))]:
            completions = decode(
                self.model,
                [self.ids[place] for place in wave],
                dataclasses.replace(self.common, grammar=[self.shapes[place] for place in wave]),
                max_new_tokens=[self.limits[place] for place in wave],
                draft_tokens=[drafts.draft(self.prompts[place]) for place in wave],
            )
            for place, completion in zip(wave, completions, strict=True):
                written[place] = completion.token_ids
                drafts.add([self._read(self.prompts[place], completion)])
        return [written[place] for place in places]

    def greedy(self) -> list[list[int]]:
        return self._tokens(max_new_tokens=self.more, grammar=self.subject.builder.grammar)

    def greedy_any(self) -> list[list[int]]:
        return self._tokens(max_new_tokens=self.more)

    def search(self) -> list[Any]:
        return self._search(grammar=self.subject.builder.grammar)

    def search_any(self) -> list[Any]:
        return self._search()

    def score(self, answers: Sequence[Any]) -> None:
        """Score each of `answers` under each prompt."""
        builder = self.subject.builder
        completions = [completions_for(builder, prompt, answers) for prompt in self.prompts]
        options = dataclasses.replace(
            self.common, grammar=builder.grammar, batch_size=self.subject.inference.batch_size
        )
        score(self.model, self.ids, completions, options)

    def answers_of(self, written: Sequence[list[int]]) -> list[Any]:
        """The decoded answers, mapped back to the test's own orientation and colours."""
        read = [
            self._read(prompt, Completion(tokens, 0.0, len(tokens), True))
            for prompt, tokens in zip(self.prompts, written, strict=True)
        ]
        return [prediction.answer for prediction in read if prediction.answer is not None]

    def _read(self, prompt: AugmentedPrompt, completion: Completion) -> Any:
        return read_answer(self.subject.builder, prompt, completion, 0.0, self.subject.inference)

    def _tokens(self, *, max_new_tokens: int | list[int], **changes: Any) -> list[list[int]]:
        options = dataclasses.replace(self.common, **changes)
        return [one.token_ids for one in decode(self.model, self.ids, options, max_new_tokens=max_new_tokens)]

    def _search(self, **changes: Any) -> list[Any]:
        return search(
            self.model,
            self.ids,
            dataclasses.replace(self.common, batch_size=2 * self.subject.inference.batch_size, **changes),
            threshold=0.1,
            max_nodes=4096,
            max_new_tokens=self.more,
        )


def measure_tasks(subject: Subject, tasks: Sequence[Task], adapters: Mapping[str, Path] | None) -> dict[str, Any]:
    """Seconds per test of each variant, its speedup over `generate`, and the number of differing answers.

    Up to `guesses`, every answer has the shape of the true one, and so the same number of tokens in every variant; in
    the last four the model decides where it ends. `adapters` maps task ids to adapter folders.
    """
    times: dict[str, list[float]] = {way: [] for way in [*WAYS, "score"]}
    counts = dict.fromkeys(("tests", "predictions", "right", "scored", "ours_differ", "guesses_differ"), 0)
    counts |= dict.fromkeys(("found", "found_any", "nodes", "nodes_any", "cut_short", "cut_short_any"), 0)
    device = subject.model.device

    def timed(way: str, call: Callable[[], Any]) -> Any:
        begun = seconds_now(device)
        result = call()
        times[way].append(seconds_now(device) - begun)
        return result

    subject.builder.grammar()  # built once, then cached
    for task in tasks:
        model = subject.adapted(None if adapters is None else adapters[task.id])
        for test_index in range(len(task.test)):
            asked = Asked(subject, model, task, test_index)
            first = counts["tests"] % len(WAYS)
            found = {way: timed(way, getattr(asked, way)) for way in [*WAYS[first:], *WAYS[:first]]}
            answers = asked.answers_of(found["grammar"])
            different = list({answer.key: answer for answer in answers}.values())
            timed("score", functools.partial(asked.score, different))
            counts["tests"] += 1
            counts["predictions"] += len(asked.prompts)
            counts["right"] += sum(answer.key == asked.truth.key for answer in answers)
            counts["scored"] += len(different)
            counts["ours_differ"] += _differing(found["generate"], found["ours"])
            counts["guesses_differ"] += _differing(found["grammar"], found["guesses"])
            for kind in ("", "_any"):
                counts[f"found{kind}"] += sum(len(one.completions) for one in found[f"search{kind}"])
                counts[f"nodes{kind}"] += sum(one.nodes for one in found[f"search{kind}"])
                counts[f"cut_short{kind}"] += sum(not one.is_complete for one in found[f"search{kind}"])
            taken = sum(own[-1] for own in times.values())
            print(f"{subject.name}, test {counts['tests']}, of {task.id}: {taken:.1f} s", flush=True)
    return {
        **counts,
        "tasks": len(tasks),
        "adapted": adapters is not None,
        "seconds_per_test": {way: statistics.fmean(own) for way, own in times.items()},
        "ratios": ratios(times, "generate"),
        "total_ratios": {way: sum(times["generate"]) / sum(own) for way, own in times.items()},
        "search_to_greedy": sum(times["search"]) / sum(times["greedy"]),
        "search_to_greedy_any": sum(times["search_any"]) / sum(times["greedy_any"]),
    }


def _differing(some: Sequence[list[int]], others: Sequence[list[int]]) -> int:
    return sum(x != y for x, y in zip(some, others, strict=True))
