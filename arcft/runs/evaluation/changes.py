"""What an evaluation does otherwise than asked: told once, with a count, and kept for each task in metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arcft.config.inference import InferenceConfig
from arcft.console import note
from arcft.prediction.prompts import demonstrations_left_out
from arcft.reporting.words import count
from arcft.runs.evaluation.targets import EvaluationTarget
from arcft.text.builder import ExampleBuilder

Changes = Mapping[str, Sequence[str]]
"""By task id, what was changed, in words."""

SHOWN = 5


def changed_prompts(targets: Sequence[EvaluationTarget], config: InferenceConfig) -> list[Changes]:
    """For each of `targets`, its tasks whose prompts lack demonstrations to fit the context.

    A note says how many there are; targets with one format and the same tasks are looked at once.
    """
    known: dict[tuple[ExampleBuilder, str], str] = {}
    limits = set()
    changes: list[Changes] = []
    for target in targets:
        changed: dict[str, list[str]] = {}
        for share in target.shares:
            limit = config.max_seq_length or share.builder.max_seq_length
            for task in share.tasks:
                key = (share.builder, task.id)
                if key not in known:
                    left_out = demonstrations_left_out(share.builder, share.deal_views, task, config)
                    known[key] = _in_words(left_out, limit)
                if known[key]:
                    changed[task.id] = [known[key]]
                    limits.add(limit)
        changes.append(changed)
    if limits:
        ids = list(dict.fromkeys(task_id for changed in changes for task_id in changed))
        number = len({task.id for target in targets for task in target.tasks})
        note(
            f"{len(ids)} of {count(number, 'task')} ({', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''}) "
            f"do not fit the context of {' or '.join(f'{limit:,}' for limit in sorted(limits))} tokens: their prompts "
            "leave out demonstrations; inference.max_seq_length= sets another context"
        )
    return changes


def _in_words(left_out: int | None, limit: int) -> str:
    if left_out is None:
        return f"a prompt does not fit {limit:,} tokens, not even with one demonstration"
    return f"prompts leave out {count(left_out, 'demonstration')}, to fit {limit:,} tokens" if left_out else ""
