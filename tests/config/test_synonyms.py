"""Words of other libraries: each leads to a key that exists."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import known_keys
from arcft.config.synonyms import OPTIONS, SYNONYMS, synonyms
from tests.support.paths import ROOT

TRAIN, EVALUATE = known_keys(TrainConfig), known_keys(EvaluateConfig)


@pytest.mark.parametrize("word", SYNONYMS)
def test_every_word_leads_to_keys_that_exist(word: str) -> None:
    found = {*synonyms(word, TRAIN), *synonyms(word, EVALUATE)}
    assert found == set(SYNONYMS[word])


@pytest.mark.parametrize("word", SYNONYMS)
def test_no_word_is_a_key_of_the_group_it_leads_to(word: str) -> None:
    keys = {words.partition("=")[0].partition(" (")[0] for words in SYNONYMS[word]}
    groups = {key.rpartition(".")[0] for key in keys if key.rpartition(".")[2] != word}
    assert not {f"{group}.{word}" for group in groups} & TRAIN.keys()


def test_the_group_that_was_typed_goes_first() -> None:
    assert synonyms("inference.bf16", TRAIN) == ["inference.dtype=bfloat16"]
    assert synonyms("bf16", TRAIN) == ["training.dtype=bfloat16", "inference.dtype=bfloat16"]
    assert synonyms("training.bf16", EVALUATE) == ["inference.dtype=bfloat16"]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_options_of_others_lead_to_options_that_exist(group: str, name: str) -> None:
    assert not (ROOT / "conf" / group / f"{name}.yaml").exists()
    first = OverridesParser.create().parse_override(OPTIONS[group, name].split()[0])
    assert (ROOT / "conf" / first.key_or_group / f"{first.value()}.yaml").is_file()
