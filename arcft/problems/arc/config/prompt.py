"""The words around the grids. Options: conf/prompt/*.yaml."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator
from typing import Literal

PLACEHOLDERS: dict[str, set[str]] = {
    "demonstration": {"number", "input", "output"},
    "test": {"input"},
    "input_demonstration": {"number", "input"},
}


@dataclasses.dataclass(kw_only=True)
class PromptConfig:
    """Templates in Python's format syntax. `{number}` counts demonstrations from 1; grids are already encoded."""

    system: str
    """The system turn; empty for none."""

    intro: str
    """Opens the user turn."""

    demonstration: str
    """One solved pair: {number}, {input}, {output}."""

    test: str
    """Closes the user turn: {input} is the test input."""

    answer: str
    """Opens the assistant's turn, before the answer's grid; fixed, so it is given at inference too."""

    input_intro: str
    """`intro` for the second task that may be learned: write another input of the same kind."""

    input_demonstration: str
    """One input: {number}, {input}."""

    input_test: str
    """Closes the user turn of that task."""

    input_answer: str
    """Opens the assistant's turn of that task."""

    chat_template: Literal["auto", "never"] = "auto"
    """`auto` uses the tokenizer's chat template where it has one; `never` writes the plain text."""

    def problems(self) -> Iterator[str]:
        for field in dataclasses.fields(self):
            if field.name == "chat_template":
                continue
            allowed = PLACEHOLDERS.get(field.name, set())
            try:
                parts = list(string.Formatter().parse(getattr(self, field.name)))
            except ValueError as error:
                yield f"prompt.{field.name}: {error}; double a brace that is meant as text"
                continue
            used = {name for _, name, _, _ in parts if name is not None}
            if used - allowed:
                known = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "none"
                yield f"prompt.{field.name}: unknown placeholder {{{min(used - allowed)}}}; known here: {known}"
            required = allowed - {"number"}
            if required - used:
                yield f"prompt.{field.name}: the placeholder {{{min(required - used)}}} is missing"
