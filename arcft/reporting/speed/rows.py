"""What a speed study has measured: plain data, with the figures that follow from it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from arcft.config.speed import Setting

Outcome = Literal["measured", "too slow", "out of memory", "failed", "left out"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One batch of prompts completed: the time from the token ids of the prompts to all tokens of the answers."""

    first_token_seconds: float
    """Until every prompt is read and the first token of each answer is chosen."""

    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in the process that measures it."""

    seconds: float
    """From the start of the process, the import of libraries included, until the model is ready."""

    parameters: int
    """Number of weights, whatever their precision."""

    dtype: str
    """Arithmetic; what `auto` stands for here."""

    decoder: str
    """arcft's decoder, or transformers' generate where that serves the architecture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A setting, with what was measured or the reason why not."""

    setting: Setting
    outcome: Outcome
    reason: str = ""
    """In words, unless measured."""

    runs: tuple[Run, ...] = ()
    peak_bytes: int = 0
    """Most memory during the setting: on a GPU what torch allocated there, otherwise of the whole process."""

    loaded: Loaded | None = None
    """None if the model could not be loaded."""

    @property
    def is_measured(self) -> bool:
        return self.outcome == "measured"

    @property
    def precision(self) -> str:
        """For example `float32` or `float32, nf4`."""
        dtype = self.loaded.dtype if self.loaded else self.setting.dtype
        return dtype if self.setting.quantization == "none" else f"{dtype}, {self.setting.quantization}"

    @property
    def name(self) -> str:
        """Model and precision."""
        return f"{self.setting.model}, {self.precision}"

    @property
    def first_token_seconds(self) -> float:
        return self._median(lambda run: run.first_token_seconds)

    @property
    def seconds(self) -> float:
        """For the whole batch."""
        return self._median(lambda run: run.seconds)

    @property
    def spread(self) -> float:
        """Half the distance of the fastest and the slowest run, as a share of the median."""
        times = [run.seconds for run in self.runs]
        return (max(times) - min(times)) / 2 / self.seconds

    @property
    def seconds_per_sample(self) -> float:
        return self.seconds / self.setting.batch

    @property
    def read_per_second(self) -> float:
        """Tokens of prompts, all of the batch."""
        return self.setting.batch * self.setting.input / self.first_token_seconds

    @property
    def written_per_second(self) -> float | None:
        """Tokens of answers after the first, all of the batch; None where there is only a first."""
        tokens = self.setting.batch * (self.setting.output - 1)
        return tokens / self._median(lambda run: run.seconds - run.first_token_seconds) if tokens else None

    def _median(self, of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, self.runs))


def row_to_json(row: Row) -> dict[str, Any]:
    """Everything measured, and the figures that follow from it."""
    values = dataclasses.asdict(row)
    if row.is_measured:
        names = ("first_token_seconds", "seconds", "spread", "seconds_per_sample", "read_per_second",
                 "written_per_second")  # fmt: skip
        values["figures"] = {name: getattr(row, name) for name in names}
    return values


def row_from_json(values: Mapping[str, Any]) -> Row:
    """The inverse of `row_to_json`. Raise KeyError or TypeError for anything else."""
    rest = {name: value for name, value in values.items() if name != "figures"}
    return Row(
        **rest
        | {
            "setting": Setting(**values["setting"]),
            "runs": tuple(Run(**run) for run in values["runs"]),
            "loaded": Loaded(**values["loaded"]) if values["loaded"] else None,
        }
    )


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by model and precision, in their order."""
    names: dict[tuple[str, str, str], str] = {}
    for row in sorted(rows, key=lambda row: row.loaded is None):
        names.setdefault(row.setting.model_and_precision, row.name)
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(names[row.setting.model_and_precision], []).append(row)
    return found
