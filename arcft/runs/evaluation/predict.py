"""Write predictions to a file, one test at a time, so that a stopped evaluation can be resumed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig, SearchConfig, VllmConfig
from arcft.config.selection import SelectionConfig
from arcft.console import note
from arcft.prediction.predict_vllm import VllmJob, VllmModel
from arcft.prediction.score_candidates import predict_and_score
from arcft.protocols import AnswerCodec, DealViews, Kind, Problem, TestKey
from arcft.runs.common.command import stopped
from arcft.runs.common.progress import progress_bar
from arcft.runs.common.signals import Stopped, end_on_signals, resumable, stop_on_signals
from arcft.runs.evaluation.live_submission import LiveSubmission
from arcft.runs.evaluation.results import write_predictions
from arcft.runs.evaluation.vllm import predict_with_vllm
from arcft.scoring.predictions import Prediction, append_prediction, open_for_append, read_predictions
from arcft.scoring.selection import Selector, make_selector
from arcft.text.builder import ExampleBuilder


@dataclasses.dataclass(frozen=True)
class ModelAssignment:
    """A model and the tasks that it answers."""

    tasks: Sequence[Problem]
    model: Callable[[], PreTrainedModel | PeftModel]
    """Loads the model; called only when its tasks are due, so that several assignments can share a base model."""

    builder: ExampleBuilder
    deal_views: DealViews
    identity: str
    """A checkpoint's digest, or the digest of a base model's config."""

    served: VllmModel | None = None
    """With inference=vllm, where the engine finds the model."""


def count_prompts(tasks: Sequence[Problem], config: InferenceConfig) -> int:
    """The number of prompts in an evaluation of `tasks`."""
    return sum(len(task.answers) for task in tasks) * config.predictions_per_test


def predict_shares(
    shares: Sequence[ModelAssignment],
    config: InferenceConfig,
    selection: SelectionConfig,
    path: Path,
    *,
    kind: Kind,
    title: str,
    resume: Path,
    submission: LiveSubmission,
) -> list[Prediction]:
    """Predict the tests that `path` lacks, append them there one by one, and return all predictions.

    With selection=score, answers are scored as they are predicted, while their model is loaded. The `submission` is
    written at the start, from time to time, and when the evaluation is stopped.

    Raises Stopped after SIGTERM or SIGINT, with the current test finished; its message names `resume`, the
    evaluation's folder.
    """
    predictions = _kept(path, config, kind)
    done = {(prediction.task_id, prediction.test_index) for prediction in predictions}
    tally = Tally([task for share in shares for task in share.tasks], make_selector(selection, kind), kind)
    tally.add(predictions)
    total = count_prompts([task for share in shares for task in share.tasks], config)
    with (
        open_for_append(path) as file,
        progress_bar(title, total, tally.tests * config.predictions_per_test) as advance,
        resumable(stopped("evaluate", resume)),
        stop_on_signals(lambda reason: None) as received,
    ):
        submission.write(predictions)
        for group in _groups(shares, config, selection, done):
            for prediction in group:
                append_prediction(file, prediction, kind)
            predictions += group
            tally.add(group)
            advance(tally.tests * config.predictions_per_test, tally.words())
            if received or submission.is_due:
                submission.write(predictions)
            if received:
                raise Stopped(received[0], stopped("evaluate", resume))
    return predictions


def _groups(
    shares: Sequence[ModelAssignment], config: InferenceConfig, selection: SelectionConfig, done: Collection[TestKey]
) -> Iterator[list[Prediction]]:
    """The predictions of one test after another, except those of the tests in `done`."""
    if isinstance(config, VllmConfig):
        jobs = [
            VllmJob(share.served, share.builder, share.deal_views, share.tasks)
            for share in shares
            if share.served is not None
        ]
        yield from predict_with_vllm(jobs, config, done=done, say=note)
        return
    for share in shares:
        if any((task.id, index) not in done for task in share.tasks for index in range(len(task.answers))):
            with end_on_signals():
                model = share.model()
            yield from predict_and_score(
                model,
                share.builder,
                share.deal_views,
                share.tasks,
                config,
                num_views=selection.scoring_augmentations,
                done=done,
            )


class Tally:
    """The text beside the progress bar: tests solved so far, if answers are known, and the share of valid answers."""

    def __init__(self, tasks: Sequence[Problem], selector: Selector, kind: Kind) -> None:
        self._selector = selector
        self._kind = kind
        self._tasks = {task.id: task for task in tasks}
        self._truths = {
            (task.id, index): answer.key
            for task in tasks
            for index, answer in enumerate(task.answers)
            if answer is not None
        }
        self._known = self._solved = self._predictions = self._valid = 0
        self.tests = 0
        """Tests with predictions."""

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Count the predictions of whole tests."""
        groups: dict[TestKey, list[Prediction]] = {}
        for prediction in predictions:
            groups.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)
            self._predictions += 1
            self._valid += prediction.answer is not None
        self.tests += len(groups)
        for key, group in groups.items():
            if key in self._truths:
                self._known += 1
                candidates = self._selector.order(self._tasks[key[0]], key[1], group)
                attempts = candidates[: self._kind.metrics.attempts]
                self._solved += any(candidate.answer.key == self._truths[key] for candidate in attempts)

    def words(self) -> str:
        """For example `3/12 solved, 88% grids`; a test is solved by any of its attempts."""
        valid = f"{self._valid / max(self._predictions, 1):.0%} {self._kind.card.noun}s"
        return f"{self._solved}/{self._known} solved, {valid}" if self._known else valid


def _kept(path: Path, config: InferenceConfig, answers: AnswerCodec) -> list[Prediction]:
    """The finished tests of an earlier, stopped evaluation; half-finished ones are removed from the file."""
    if not path.exists():
        return []
    found = read_predictions(path, answers, allow_torn=True)
    counts: Counter[TestKey] = Counter((prediction.task_id, prediction.test_index) for prediction in found)
    whole = {test for test, count in counts.items() if count >= config.predictions_per_test}
    if found and isinstance(config, SearchConfig):
        # A search yields any number of predictions, so the last test may lack some.
        whole.discard((found[-1].task_id, found[-1].test_index))
    kept = [prediction for prediction in found if (prediction.task_id, prediction.test_index) in whole]
    write_predictions(path, kept, answers)
    return kept
