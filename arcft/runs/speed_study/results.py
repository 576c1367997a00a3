"""The files of a speed study: speed.json while it runs, and the table and the chart at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.checkpoints import CheckpointError
from arcft.config.duration import parse_duration
from arcft.config.speed import Setting, SpeedConfig
from arcft.files import write_bytes, write_json, write_text
from arcft.reporting.charts.speed_chart import speed_png
from arcft.reporting.speed.budget import Budget, share_of_budget
from arcft.reporting.speed.rows import Row, row_from_json, row_to_json
from arcft.reporting.speed.table import longest_outputs, speed_csv
from arcft.runs.common.extras import extra

JSON_FILE, CSV_FILE, CHART_FILE = "speed.json", "speed.csv", "speed.png"

SAME_MACHINE = ("device", "gpu", "cpu", "threads", "torch", "transformers")
"""What has to be equal for figures to be put beside each other."""


class Results:
    """The rows of a study, on the disk as soon as they are known."""

    def __init__(self, folder: Path, config: SpeedConfig, budget: Budget | None) -> None:
        """Read what an earlier, stopped study of the same config has left in `folder`, which exists.

        Settings that failed or ran out of memory are to be measured again, and with more `max_time` than then those
        that took too long. Raise CheckpointError for a file that can't be read.
        """
        self._folder = folder
        self._config = config
        self._budget = budget
        self.rows: dict[Setting, Row] = {}
        self.machine: Mapping[str, Any] | None = None
        path = folder / JSON_FILE
        if path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            rows = [row_from_json(row) for row in values["settings"]]
            has_more_time = parse_duration(self._config.max_time) > parse_duration(values["max_time"])
            self.machine = values["machine"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path}: can't be read ({error}); start a new study") from error
        # What was left out follows from the rows that are kept.
        kept = ("measured",) if has_more_time else ("measured", "too slow")
        self.rows = {row.setting: row for row in rows if row.outcome in kept}

    @property
    def ordered(self) -> list[Row]:
        """The rows in the order of the config's lists."""
        return [self.rows[setting] for setting in self._config.settings() if setting in self.rows]

    def record(self, row: Row) -> None:
        """Add a row, and write all."""
        self.rows[row.setting] = row
        self.write()

    def check_machine(self, machine: Mapping[str, Any]) -> None:
        """Raise CheckpointError where the earlier rows are another machine's."""
        if self.machine is None:
            self.machine = machine
        for name in SAME_MACHINE:
            if self.machine.get(name) != machine[name]:
                raise CheckpointError(
                    f"{self._folder}: was measured with {name} {self.machine.get(name)}, and here it is "
                    f"{machine[name]}; figures of both can't be compared, so start a new study"
                )

    def write(self) -> None:
        """Write speed.json: everything that is known."""
        values: dict[str, Any] = {
            "machine": self.machine,
            "clock": self._config.clock,
            "max_time": self._config.max_time,
        }
        if self._budget is not None:
            values["budget"] = budget_to_json(self._budget, self.ordered)
        write_json(self._folder / JSON_FILE, values | {"settings": [row_to_json(row) for row in self.ordered]})

    def write_tables(self) -> bool:
        """Write speed.json, speed.csv and speed.png; return whether there is a chart."""
        self.write()
        write_text(self._folder / CSV_FILE, speed_csv(self.ordered, self._budget))
        if not any(row.is_measured for row in self.ordered):
            return False
        with extra("the chart"):
            write_bytes(self._folder / CHART_FILE, speed_png(self.ordered))
            return True
        return False


def budget_to_json(budget: Budget, rows: Sequence[Row]) -> dict[str, Any]:
    """What fits, as plain data."""
    return {
        "seconds": budget.seconds,
        "samples": budget.samples,
        "predictions": budget.predictions,
        "seconds_per_sample": budget.seconds_per_sample,
        "shares": [share_of_budget(budget, row) if row.is_measured else None for row in rows],
        "longest_outputs": [
            {
                "name": name,
                "batch": batch,
                "input": size,
                "tokens": found.tokens,
                "is_longest_measured": found.is_longest_measured,
            }
            for (name, batch, size), found in longest_outputs(rows, budget).items()
        ],
    }
