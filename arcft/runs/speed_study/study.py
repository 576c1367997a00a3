"""Measure every setting, each model and precision in a process of its own, and go on where one fails."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arcft.config.duration import parse_duration
from arcft.config.speed import Setting, SpeedConfig
from arcft.processes import ChildDied, ChildProcess
from arcft.reporting.speed.rows import Loaded, Row, Run
from arcft.reporting.speed.table import format_rate
from arcft.reporting.speed.words import in_words
from arcft.reporting.words import duration
from arcft.runs.common.progress import progress_bar
from arcft.runs.speed_study import worker
from arcft.runs.speed_study.worker import Subject

Record = Callable[[Row], None]

_LOAD_SECONDS = 1800.0
"""A process that has not loaded its model after this time, and max_time, hangs."""


def run_study(
    config: SpeedConfig,
    subjects: Mapping[str, Subject],
    done: Mapping[Setting, Row],
    record: Record,
    check_machine: Callable[[Mapping[str, Any]], None],
) -> None:
    """Measure the settings that `done` lacks, and pass a row for each to `record` as soon as it is known.

    `check_machine` is called with the machine's description before anything is measured, and may raise.
    """
    settings = config.settings()
    missing = [setting for setting in settings if setting not in done]
    with progress_bar("settings", len(settings), len(settings) - len(missing), beats=True) as advance:
        numbers = itertools.count(len(settings) - len(missing) + 1)

        def recorded(row: Row) -> None:
            record(row)
            advance(next(numbers), _words(row))

        for _, own in itertools.groupby(missing, operator.attrgetter("model_and_precision")):
            group = _Group(config, subjects, list(own), list(done.values()), recorded, check_machine)
            group.measure()


def _words(row: Row) -> str:
    """What the progress bar says about a row."""
    setting = row.setting
    name = f"{row.name}, {setting.batch} x {setting.input} + {setting.output}"
    if not row.is_measured:
        return f"{name}: {row.outcome}"
    return f"{name}: {format_rate(row.read_per_second)} read, {format_rate(row.written_per_second)} written tok/s"


class _Group:
    """The settings of one model in one precision."""

    def __init__(
        self,
        config: SpeedConfig,
        subjects: Mapping[str, Subject],
        settings: Sequence[Setting],
        done: Sequence[Row],
        record: Record,
        check_machine: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._config = config
        self._subject = subjects[settings[0].model]
        self._settings = sorted(settings, key=lambda setting: setting.batch * (setting.input + setting.output))
        self._record = record
        self._check_machine = check_machine
        self._max_seconds = parse_duration(config.max_time)
        self._child: ChildProcess | None = None
        self._loaded: Loaded | None = None
        loaded = settings[0].model_and_precision
        self._beyond = [row for row in done if row.outcome in _LIMITS and row.setting.model_and_precision == loaded]

    def measure(self) -> None:
        """Record a row for each setting, the small ones first."""
        try:
            for number, setting in enumerate(self._settings):
                smaller = next((row for row in self._beyond if _is_at_least(setting, row.setting)), None)
                if smaller is not None:
                    self._record(self._failed(setting, worker.Failure("left out", _left_out(smaller))))
                    continue
                if self._child is None and (failure := self._load(setting)):
                    for rest in self._settings[number:]:
                        self._record(self._failed(rest, failure))
                    return
                self._one(setting)
        finally:
            self._end()

    def _load(self, setting: Setting) -> worker.Failure | None:
        """Start the process; return why it could not load the model."""
        self._child = worker.start(self._subject, setting, self._config.clock)
        seconds = max(_LOAD_SECONDS, self._max_seconds)
        answer = self._answer(seconds, f"loading the model took more than {duration(seconds)}")
        if isinstance(answer, worker.Ready):
            self._check_machine(answer.machine)
            self._loaded = answer.loaded
            return None
        return answer

    def _one(self, setting: Setting) -> None:
        assert self._child is not None
        self._child.send(worker.Request(setting, self._config.repeats, self._max_seconds))
        ends = time.monotonic() + self._max_seconds
        runs: list[Run] = []
        peak_bytes = 0
        while isinstance(answer := self._until(ends), worker.Measured):
            runs.append(answer.run)
            peak_bytes = answer.peak_bytes
        # A run that is cut off takes nothing from those before it.
        if runs and (isinstance(answer, worker.Done) or answer.outcome == "too slow"):
            row = Row(setting=setting, outcome="measured", runs=tuple(runs), peak_bytes=peak_bytes, loaded=self._loaded)
        else:
            row = self._failed(setting, answer)
        self._record(row)
        if row.outcome in _LIMITS:
            self._beyond.append(row)
        if isinstance(answer, worker.Failure):
            # It may be at work still, and what an error leaves behind must not be measured.
            self._end()

    def _until(self, ends: float) -> Any:
        seconds = max(0.0, ends - time.monotonic())
        return self._answer(seconds, f"it took more than max_time={self._config.max_time}")

    def _answer(self, seconds: float, too_slow: str) -> Any:
        """What the process sends; a Failure also where it takes longer than `seconds`, or dies."""
        assert self._child is not None
        try:
            return self._child.receive(seconds)
        except TimeoutError:
            return worker.Failure("too slow", too_slow)
        except ChildDied as death:
            # Without a message of its own, a process is mostly ended because the memory of the machine ran out.
            is_killed = str(death).startswith("SIGKILL")
            return worker.Failure("out of memory" if is_killed else "failed", f"the process ended: {death}")

    def _failed(self, setting: Setting, failure: worker.Failure) -> Row:
        return Row(setting=setting, outcome=failure.outcome, reason=failure.reason, loaded=self._loaded)

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


_LIMITS = ("too slow", "out of memory")
"""Outcomes that larger settings would share."""


def _is_at_least(setting: Setting, other: Setting) -> bool:
    """Whether a setting asks for no less than another one of the same model and precision."""
    return all(getattr(setting, axis) >= getattr(other, axis) for axis in ("batch", "input", "output"))


def _left_out(row: Row) -> str:
    happened = "ran out of memory" if row.outcome == "out of memory" else "took too long"
    return f"left out: {in_words(row.setting)} already {happened}"
