"""Overrides that Hydra can't read: named, and printed as they should be typed."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from arcft.cli.evaluate import main
from arcft.cli.overrides import PATHS, explanation, refuse_empty_paths, refuse_flags, refuse_wrong_groups
from arcft.config.export import ExportConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError, known_keys
from arcft.config.study import StudyConfig
from arcft.runs.common.paths import override, quoted

ODD = [
    "/p/lr=1e-4/checkpoint-4", "a b", " a ", "a,b", "a(b)", "a)", "{a}", "a{b", "[a]", "a[b", "a]", "a:b", "~/x",
    "a~b", "a'b", 'a"b', "a$b", "a${b", "$(b)", "`b`", "/p/é/日本", "-x", "a\\b", "a\\", "a\\\\", "a\\'b", "a#b", "a&b",
    "a;b", "a!b", "a^b", "a<b", "a|b", "a*b", "", "null", "1e5", "'", "a\nb", "a%b", "a@b+c",
]  # fmt: skip

OWN = [field.name for field in dataclasses.fields(TrainConfig)]


def as_read(word: str) -> object:
    """The value that Hydra and OmegaConf make of an override."""
    value = OverridesParser.create().parse_overrides([word])[0].value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[index]


def explained(*words: str) -> str:
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([words[-1]])
    return explanation(caught.value, words)


@pytest.mark.parametrize("value", ODD)
def test_a_quoted_value_is_read_as_it_is(value: str) -> None:
    assert as_read(f"key={quoted(value)}") == value


@pytest.mark.parametrize("value", [value for value in ODD if value not in ("", "null", "1e5")])
def test_hints_can_be_typed_in_a_shell(value: str) -> None:
    (word,) = shlex.split(override("key", value))
    assert as_read(word) == value


@pytest.mark.parametrize("value", ODD)
def test_what_hydra_cannot_read_is_printed_in_quotes(value: str) -> None:
    try:
        OverridesParser.create().parse_overrides([f"checkpoint={value}"])
    except OverrideParseException:
        message = explained(f"checkpoint={value}")
        start = f"checkpoint={value}: the value has signs that Hydra reads as its own; quote it: "
        assert message.startswith(start)
        (word,) = shlex.split(message.removeprefix(start).removesuffix(" (the outer quotes are for the shell)"))
        assert as_read(word) == value


def test_the_message() -> None:
    assert explained("checkpoint=/p/lr=1e-4/checkpoint-4") == (
        "checkpoint=/p/lr=1e-4/checkpoint-4: the value has signs that Hydra reads as its own; quote it: "
        "\"checkpoint='/p/lr=1e-4/checkpoint-4'\" (the outer quotes are for the shell)"
    )


def test_each_value_of_a_list_or_a_sweep_is_quoted() -> None:
    assert "\"data.task_ids=['a b','c=d']\"" in explained("data.task_ids=[a b,c=d]")
    assert "\"checkpoint='/lr=1','/lr=2'\"" in explained("-m", "checkpoint=/lr=1,/lr=2")
    assert explained("data.sources=[{name:a=b}]").startswith("data.sources=[{name:a=b}]: ")


def test_what_is_no_override_is_named() -> None:
    assert explained("dry_run") == (
        "dry_run: is no option; each is typed as key=value, e.g. dry_run=true, and --help lists the keys"
    )


def test_an_interpolation_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/p")
    assert as_read(f"key={quoted('${oc.env:PLACE}/lr=1')}") == "/p/lr=1"


@pytest.mark.parametrize("word", ["checkpoint=", "resume=''", 'data.path=""'])
def test_an_empty_path_is_refused(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}= is empty \(an unset shell variable\?\); give a path, or drop it$"):
        refuse_empty_paths(["model=tiny", word])
    refuse_empty_paths([f"{key}=x", "encoder="])


def test_every_key_of_a_path_exists() -> None:
    known = {key for config in (EvaluateConfig, ExportConfig, StudyConfig, TrainConfig) for key in known_keys(config)}
    assert set(PATHS) - {"data.solutions_path"} <= known


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data.path=a=b", "error: data.path=a=b: the value has signs that Hydra reads as its own; quote it: "),
        ("checkpoint=a,b", "error: checkpoint=a,b: commas separate the values of a sweep, which needs -m. For one "),
        ("checkpoint=5", "error: checkpoint=5: expected text or null, not int; if it is a text, quote it: "),
        ("checkpoint=[a]", "error: checkpoint=['a']: expected text or null, not list; if it is one text, quote it: "),
        ("checkpoint=", "error: checkpoint= is empty (an unset shell variable?); give a path, or drop it"),
        ("selection=2", "error: selection=2: selection takes the name of an option: score, verify, vote\n"),
        ("optimizer=adamw", "error: optimizer=adamw: evaluate has no group optimizer, only augmentation, data, "),
    ],
)
def test_the_command_says_so(
    word: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("value", ["1", "0.5", "null", "true", "[tiny]", "[[1]]", "{a: 1}", "[]", "tiny,2"])
@pytest.mark.parametrize("key", ["model", "+model", "++model", "model@x"])
def test_a_group_takes_the_name_of_an_option(key: str, value: str) -> None:
    word = f"{key}={value}"
    with pytest.raises(ConfigError) as refused:
        refuse_wrong_groups(["lora.r=2", word], "train", OWN)
    assert str(refused.value).startswith(f"{word}: model takes the name of an option: llama3_2_1b, local, ")


@pytest.mark.parametrize(
    "word",
    ["model=tiny", "model='tiny'", "~model", "~model=tiny", "~model=null", "model=tiny,local", "model=glob(*)",
     "data@showcase.data=arc1", "debug=fast", "experiment=none", "model.path=3", "nothing=3",
     "model=f(", "hydra/launcher=joblib"],
)  # fmt: skip
def test_names_of_options_are_left_to_hydra(word: str) -> None:
    refuse_wrong_groups([word], "train", OWN)


@pytest.mark.parametrize("word", ["=10", "='a'", "~=[]", "+=x"])
def test_a_value_needs_a_key(word: str) -> None:
    with pytest.raises(ConfigError, match=r"is no option; each is typed as key=value, e\.g\. dry_run=true") as refused:
        refuse_wrong_groups([word], "train", OWN)
    assert str(refused.value).startswith(word)


def test_only_an_option_is_taken_out() -> None:
    with pytest.raises(ConfigError, match=r"^~model=\[tiny\]: model takes the name of an option: "):
        refuse_wrong_groups(["~model=[tiny]"], "train", OWN)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model=Qwen/Qwen3", "model=Qwen/Qwen3: is no option of model; a hub id, a folder or a .gguf file "
                             "is given as model=local model.path=Qwen/Qwen3"),
        ("model=tiny,model.gguf", "model=model.gguf: is no option of model; a hub id, a folder or a .gguf file "
                                  "is given as model=local model.path=model.gguf"),
        ("lora=qlora", "lora=qlora: is no option of lora; did you mean lora=default model.quantization=nf4?"),
    ],
)  # fmt: skip
def test_options_of_other_libraries_are_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_wrong_groups([word], "train", OWN)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--learning_rate 1e-4", "--learning_rate: settings are typed as key=value; "
                                 "did you mean training.learning_rate=1e-4?"),
        ("--learning-rate=1e-4 model=tiny", "--learning-rate=1e-4: settings are typed as key=value; "
                                            "did you mean training.learning_rate=1e-4?"),
        ("--fp16 model=tiny", "--fp16: settings are typed as key=value; "
                              "did you mean training.dtype=float16 or inference.dtype=float16?"),
        ("--eval_steps 20", "--eval_steps: settings are typed as key=value; did you mean training.eval_steps=20?"),
        ("--whatever", "--whatever: settings are typed as key=value; --help lists the keys"),
    ],
)  # fmt: skip
def test_flags_of_other_programs_are_named(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_flags(words.split(), known_keys(TrainConfig))
    assert str(refused.value) == message


@pytest.mark.parametrize("word", ["--multirun", "-m", "--multi", "--help", "--config-name", "--info", "-h", "key=--x"])
def test_flags_of_hydra_are_left_to_it(word: str) -> None:
    refuse_flags([word, "model=tiny"], known_keys(TrainConfig))


def test_a_group_of_the_other_program_is_told_as_it_was_typed() -> None:
    with pytest.raises(ConfigError, match=r"^ttft=per_task: train has no group ttft, only augmentation, data, encoder"):
        refuse_wrong_groups(["ttft=per_task"], "train", OWN)


def test_a_run_in_a_folder_with_odd_signs_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by what looks for it before Hydra does."""
    folder = tmp_path / "lr=1e-4, it's ${x"
    folder.mkdir()
    (folder / "run.yaml").write_text("job: evaluate\nconfig: {}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *shlex.split(override("resume", folder))])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit):
        main()
    assert f"{folder}/run.yaml: holds no config of this version" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
