"""Adapt to and predict a single task: `python one_task.py WORKLOAD.json TASK_ID OUT.json`, as in a shell loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adaptation.today import answer_one
from adaptation.workload import load_workload

if __name__ == "__main__":
    figures = answer_one(load_workload(Path(sys.argv[1])), sys.argv[2])
    Path(sys.argv[3]).write_text(json.dumps(figures.to_json()), encoding="utf-8")
