"""What `arcft speed` is asked: its YAML, every combination of its lists, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from arcft.cli.hydra_app import let_unknown_keys_in
from arcft.config.schema import ConfigError
from arcft.config.speed import Setting, SpeedConfig
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.kinds import read_config


def speed_config(*overrides: str) -> SpeedConfig:
    with initialize_config_dir(str(config_folder() / "speed"), version_base="1.3"):
        composed = compose("speed", let_unknown_keys_in(list(overrides), SpeedConfig))
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return read_config(SpeedConfig, values)


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        speed_config(*overrides)
    return caught.value.problems


def test_every_combination_is_a_setting() -> None:
    config = speed_config("model=[tiny,b.gguf]", "quantization=[none,nf4]", "batch=8", "input=[128,1024]", "output=32")
    assert config.settings() == [
        Setting(model=model, dtype="auto", quantization=quantization, batch=8, input=size, output=32)
        for model in ("tiny", "b.gguf")
        for quantization in ("none", "nf4")
        for size in (128, 1024)
    ]


def test_the_command_of_the_yaml_is_valid() -> None:
    first = (config_folder() / "speed" / "speed.yaml").read_text(encoding="utf-8").splitlines()[0]
    words = [word.strip("'") for word in first.removeprefix("# arcft speed ").split()]
    assert len(speed_config(*words).settings()) == 2 * 2 * 2 * 2 * 2


def test_a_model_may_be_given_another_path() -> None:
    config = speed_config("model=smollm2_135m", "paths={smollm2_135m: /models/s.gguf}")
    assert config.paths == {"smollm2_135m": "/models/s.gguf"}


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        ([], ["model is not set: name options of conf/model, folders or .gguf files, e.g. model=[tiny,smollm2_135m]"]),
        (["model=[tiny,tiny]"], ["model: tiny is named twice; each value is measured once"]),
        (["model=tiny", "batch=[]"], ["batch=[]: give at least one value"]),
        (["model=tiny", "input=[8,0]", "repeats=0"], ["input=0: at least 1", "repeats=0: at least 1"]),
        (["model=tiny", "quantization=int4"], ["quantization=int4: one of none, int8, nf4, fp4"]),
        (["model=tiny", "dtype=[float32,half]"], ["dtype[1]=half: one of auto, float32, bfloat16, float16"]),
        (["model=tiny", "samples=3"], ["samples=3 needs budget=, the time there is for them, e.g. budget=9h"]),
        (
            ["model=tiny", "budget=9h"],
            ["budget=9h needs samples=, how many have to be completed within that time"],
        ),
        (
            ["model=tiny", "budget=9", "samples=3"],
            [
                "budget=9: expected text or null, not int; write hours, minutes and seconds with their letters, e.g. "
                "90s, 45m, 11h30m"
            ],
        ),
        (
            ["model=tiny", "max_time=1d"],
            ["max_time=1d: write hours, minutes and seconds with their letters, e.g. 90s, 45m, 11h30m"],
        ),
        (
            ["model=tiny", "predictions=2"],
            ["predictions=2 has no effect without budget= and samples=; drop it"],
        ),
        (
            ["model=tiny", "paths={other: x}"],
            ["paths.other: other is not among model=['tiny']; add it there, or drop the path"],
        ),
        (["model=tiny", "quantisation=nf4"], ["quantisation: there is no such key; did you mean quantization?"]),
    ],
)
def test_what_is_refused(overrides: list[str], problems: list[str]) -> None:
    assert refusal(*overrides) == problems
