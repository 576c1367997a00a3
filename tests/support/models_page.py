"""docs/models.md: what works with each architecture, as measured.

python -m tests.support.models_page   # measure everything again and write the page, in about two minutes
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from arcft.models.families import MEASURED_WITH
from tests.support.families import NOT_BUILT, VARIANTS, families
from tests.support.model_table import Cells, measured, names, refusal
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "models.md"
COLUMNS = ("decoder", "packing", "int8", "nf4", "ranks", "merged", "adapter", "GGUF")
Row = dict[str, str]

_RELEASE = ".".join(map(str, MEASURED_WITH))

_BEGINNING = f"""# What works with each architecture

Any causal language model of transformers can be trained, adapted and evaluated, or is refused in words. This table says
what else works. It is measured, with transformers {_RELEASE} on a CPU, on a small random model of each architecture, by
[tests/models/test_models_page.py](../tests/models/test_models_page.py), which fails where the table is not what it
finds. `python -m tests.support.models_page` measures again and writes this page. With another release of transformers,
decoder and packing are measured when a model is loaded; so they are for architectures that are not listed, and for
models that bring their own code.
"""

_LEGEND = """## What the columns mean

- **decoder**: `arcft` is arcft's own decoder, and `inference=search` works; `generate` is transformers' generate, one
  prompt length at a time, for architectures that work out masks, positions or states by themselves.
- **packing** (`training.packing`): three examples in a row have the logits that each has alone, and changing one leaves
  the others as they were. Elsewhere a run pads its examples and says so.
  - `no: eager`: transformers has only eager attention for it, which knows no packed rows.
  - `no: mixed`: examples would see each other, in a recurrent state, a convolution, or a mask of the model's own.
  - `no: positions`: an example has other logits than alone, since positions are counted over the whole row.
  - `no: fails`: the model can't compute a packed row.
- **int8**, **nf4** (`model.quantization`; fp4 is nf4 with other values): the model loads, an adapter takes a step that
  lowers the loss, with gradients wherever the dense model has them, and the logits are those of the dequantised
  weights. So it is on a CPU; on a GPU, int8 multiplies columns with outliers apart, and finds them over the whole
  batch, so that an answer can depend on the prompts beside it. A run says so.
  - `yes, not experts`: the weights of experts are fused in one tensor, which bitsandbytes leaves as it is; a run says
    what share that is.
  - `no: refused`: it has no plain linear layers to quantise (Falcon's are a class of its own).
- **ranks** (`torchrun`, without FSDP): on two CPU processes that share out four examples, the loss and the gradient of
  every weight are those of one process, without dropout and other random numbers. That is all that data parallelism
  needs here: gradients are added up after the backward pass, and no wrapper is put around the model. FSDP is not
  measured by architecture.
- **merged**, **adapter** (`arcft export`): read back by transformers, and by PEFT alone, the export has the logits of
  the trained model, within a thousandth of their standard deviation.
  - `no: refused`: the export's own check refuses it. PEFT leaves out the shared experts of laguna, so its adapter
    computes something else without arcft; `format=merged` is right.
- **GGUF**: the file has the logits of the model when transformers reads it; mistral and qwen2 without attention
  windows, qwen3 with heads of 128. What a file can't hold is refused before any weights are loaded.
"""


def page(rows: Mapping[str, Row]) -> str:
    """The whole page."""
    head = ["| architecture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    table = [row_text(name, row) for name, row in rows.items()]
    works = sum(not any(cell.startswith("no: ") for cell in row.values()) for row in rows.values())
    summary = f"{len(rows)} architectures, {works} of them without a `no` other than GGUF's."
    return "\n".join([_BEGINNING, summary, "", *head, *table, "", _LEGEND, *_left_out()]) + "\n"


def row_text(name: str, row: Row) -> str:
    return f"| {name} | " + " | ".join(row[column] for column in COLUMNS) + " |"


def rows_of(text: str) -> dict[str, Row]:
    """The rows of a page by architecture."""
    found = {}
    for line in text.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(COLUMNS) and name not in ("architecture", "---"):
            found[name] = dict(zip(COLUMNS, cells, strict=True))
    return found


def row(cells: Cells, ranks: str) -> Row:
    values = dataclasses.asdict(cells)
    return {column: ranks if column == "ranks" else values[column.lower()] for column in COLUMNS}


def on_two_ranks(of: Sequence[str]) -> dict[str, str]:
    """The cells of the column `ranks`, by tests/support/rank_gradients.py."""
    program = ROOT / "tests" / "support" / "rank_gradients.py"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run(
            [*launcher, str(program), str(file), *of], env=environment, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        cells: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        return cells


def _left_out() -> Iterator[str]:
    yield "## What is refused\n"
    refused = {name: refusal(name) for name in (*families(), *VARIANTS)}
    for reason, words in (("both directions", "Read in both directions"), ("other probabilities", "")):
        own = [name for name, why in refused.items() if why is not None and reason in why]
        words = words or "Computed otherwise token by token than as a whole text in this release of transformers"
        yield f"- {words}: {', '.join(own)}."
    yield ""
    yield "bert, bert-generation, electra, ernie and roc_bert are decoders where their config says so.\n"
    yield "## What is not measured\n"
    for why in dict.fromkeys(NOT_BUILT.values()):
        own = [name for name, reason in NOT_BUILT.items() if reason == why]
        yield f"- {', '.join(own)}: {why}."


def main() -> None:
    import torch
    import transformers
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    disable_progress_bar()
    ranks, rows = on_two_ranks(names()), {}
    for name in names():
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row(measured(name, Path(folder)), ranks[name])
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
