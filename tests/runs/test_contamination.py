"""`arcft contamination` prints what two sets share, and the module of version 0.1 says that it moved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arcft.runs.contamination import main


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"input": [[1, 2]], "output": [[3]]}
    (tmp_path / "a.json").write_text(json.dumps({"mine": {"train": [pair], "test": [pair]}}))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "theirs.json").write_text(json.dumps({"train": [pair], "test": [{"input": [[1, 2]]}]}))
    names = [str(tmp_path / "a.json"), str(folder)]
    assert main(names) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"a: {names[0]} (1 tasks)",
        f"b: {names[1]} (1 tasks)",
        "                                                    in a  in b",
        "whole tasks, equal                                     1     1",
        "    mine=theirs",
        "whole tasks, up to symmetry and colours                1     1",
        "tasks sharing a pair, equal                            1     1",
        "tasks sharing a pair, up to symmetry and colours       1     1",
    ]
    assert main([*names, "--fail", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["tasks_exact"] == [["mine", "theirs"]]
    assert main([names[0], str(tmp_path / "gone.json")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'gone.json'}: no such file\n"
    assert main([names[0], "arcagi:test"]) == 1
    assert capsys.readouterr().err == "split=test: one of training, evaluation, all\n"


def test_ids_are_listed_and_shared_sets_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kind=arc", "arcagi:training", "arcagi:evaluation", "--fail"]) == 1
    assert "    40853293=070dd51e\n" in capsys.readouterr().out


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("kind=chess", "arc"):
        with pytest.raises(SystemExit) as caught:
            main(["arcagi:training", "arcagi:evaluation", word])
        assert caught.value.code == 2
        assert f"{word}: write kind=NAME with one of arc" in capsys.readouterr().err


def test_help_says_how_sets_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "arc: a set is a bundled set such as arcagi:evaluation" in " ".join(capsys.readouterr().out.split())


def test_the_module_of_version_0_1_says_where_it_went() -> None:
    command = [sys.executable, "-m", "arcft.arc.contamination", "a", "b"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moved: use `arcft contamination A B [--fail] [--json]`\n"
