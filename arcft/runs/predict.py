"""Predictions into a file, a test at a time, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from arcft.arc.task import Task
from arcft.config.inference import InferenceConfig
from arcft.inference.predict import predict_tasks
from arcft.runs.build import TextFormat
from arcft.runs.edge import Stopped, stop_on_signals
from arcft.runs.progress import progress_bar
from arcft.scoring.predictions import Prediction, TestKey, append_prediction, open_for_append, read_predictions


@dataclasses.dataclass(frozen=True)
class Share:
    """Tasks that one model answers."""

    tasks: Sequence[Task]
    model: Callable[[], PreTrainedModel | PeftModel]
    """Called when its turn has come, so that one base model can serve several shares."""

    format: TextFormat


def count_prompts(tasks: Sequence[Task], config: InferenceConfig) -> int:
    """Prompts that an evaluation of `tasks` takes."""
    return sum(len(task.test) for task in tasks) * config.predictions_per_test


def predict_shares(
    shares: Sequence[Share], config: InferenceConfig, path: Path, *, title: str, resume: Path
) -> list[Prediction]:
    """Predict what `path` does not hold yet, append it there test by test, and return everything.

    Raises Stopped after SIGTERM or SIGINT, with the current test finished; its message
    names `resume`, the evaluation's folder.
    """
    predictions = _kept(path, config.predictions_per_test)
    done = {(prediction.task_id, prediction.test_index) for prediction in predictions}
    total = count_prompts([task for share in shares for task in share.tasks], config)
    with (
        open_for_append(path) as file,
        progress_bar(title, total, len(predictions)) as advance,
        stop_on_signals(lambda reason: None) as received,
    ):
        for share in shares:
            if all((task.id, index) in done for task in share.tasks for index in range(len(task.test))):
                continue
            model = share.model()
            for group in predict_tasks(
                model,
                share.format.builder,
                share.format.prompts,
                share.format.tokenization,
                share.tasks,
                config,
                done=done,
            ):
                for prediction in group:
                    append_prediction(file, prediction)
                predictions += group
                advance(len(predictions), _answered(predictions))
                if received:
                    raise Stopped(received[0], f"stopped; go on with: python evaluate.py resume={resume}")
    return predictions


def _kept(path: Path, per_test: int) -> list[Prediction]:
    """What an earlier, stopped evaluation finished; tests that it left half-done are taken out of the file."""
    if not path.exists():
        return []
    found = read_predictions(path, allow_torn=True)
    counts: Counter[TestKey] = Counter((prediction.task_id, prediction.test_index) for prediction in found)
    kept = [prediction for prediction in found if counts[prediction.task_id, prediction.test_index] >= per_test]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for prediction in kept:
            append_prediction(file, prediction)
    os.replace(partial, path)
    return kept


def _answered(predictions: Sequence[Prediction]) -> str:
    valid = sum(prediction.grid is not None for prediction in predictions)
    tokens = sum(prediction.num_tokens or 0 for prediction in predictions)
    seconds = sum(prediction.seconds or 0.0 for prediction in predictions)
    return f"{valid} grids, {tokens / max(seconds, 1e-9):.0f} tokens/s"
