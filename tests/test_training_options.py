import json
from dataclasses import fields
from pathlib import Path

import pytest

from liber_feast.errors import ConfigError
from training.backbones import BACKBONES
from training.command import check_used, choose
from training.options import FitOptions, options_from, read_config

CHANGED = FitOptions(
    backbone="mine:Net",
    backbone_config={"hidden": [8, 4], "activation": "relu"},
    seed=3,
    batch_size=1024,
    learning_rate=5e-4,
    user_id=True,
    device="cpu",
    precision="bfloat16",
)


def test_options_are_what_their_json_says() -> None:
    document = json.loads(json.dumps(CHANGED.to_json()))
    assert options_from(document, source="here") == CHANGED
    assert document.keys() == {option.name for option in fields(FitOptions)}
    assert options_from({}, source="here") == FitOptions()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 1, "'batch_size' is 1; it must be at least 2"),
        ("batch_size", 2.5, "'batch_size' is 2.5; it must be an integer"),
        ("epochs", True, "'epochs' is True; it must be an integer"),
        ("seed", -1, "'seed' is -1; it must be at least 0"),
        ("learning_rate", -0.1, "must be 0 or more, and finite"),
        ("learning_rate", float("nan"), "must be 0 or more, and finite"),
        ("learning_rate", "fast", "'learning_rate' is 'fast'; it must be a number"),
        ("weight_decay", float("inf"), "must be 0 or more, and finite"),
        ("device", "tpu", "'device' is 'tpu'; it must be one of auto, cpu, cuda"),
        ("precision", "float16", "must be one of auto, float32, bfloat16"),
        ("id_dropout", 1.0, "'id_dropout' is 1.0; it must be 0 or more, and below 1"),
        ("id_dropout", -0.5, "must be 0 or more, and below 1"),
        ("memory_dropout", 1.0, "'memory_dropout' is 1.0; it must be 0 or more, and below 1"),
        ("user_id", 1, "'user_id' is 1; it must be true or false"),
        ("backbone_config", [1], "must be an object"),
        ("batchsize", 512, "option 'batchsize' is unknown. Known: backbone, backbone_config, seed"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_in_one_line(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        options_from({name: value}, source="run/config.json")
    assert error.value.message.startswith("run/config.json: option")
    assert "\n" not in error.value.message


def test_a_backbone_that_searches_gets_its_long_history_unless_another_was_chosen(tmp_path: Path) -> None:
    def length(*, given: int | None = None, of_config: int | None = None, backbone: str = "sim") -> int:
        path = tmp_path / "config.json"
        options = FitOptions() if of_config is None else FitOptions(sequence_length=of_config)
        path.write_text(json.dumps({"features": "baseline", "options": options.to_json()}))
        chosen = choose(path, backbone=backbone, features=None, sequence_length=given).options
        assert chosen.backbone == BACKBONES[backbone]
        return chosen.sequence_length

    assert (length(), length(backbone="eta"), length(backbone="dien")) == (300, 300, 20)
    assert length(given=40) == 40
    assert length(of_config=50) == length(of_config=50, backbone="din") == 50


def test_a_learning_rate_may_be_an_integer() -> None:
    assert options_from({"learning_rate": 1}, source="here").learning_rate == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[]", "names no `features` and `options`"),
        ('{"features": "liber"}', "names no `features` and `options`"),
        ('{"features": "other", "options": {}}', "names no `features` and `options`"),
        ('{"features": "liber", "options": {"epochs": 0}}', "option 'epochs' is 0; it must be at least 1"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_config(path)
    assert str(path) in error.value.message
    assert "\n" not in error.value.message


def test_ids_that_are_no_field_cannot_be_hidden() -> None:
    with pytest.raises(ConfigError, match=r"'id_dropout' hides user ids, which are no field without 'user_id'"):
        FitOptions(id_dropout=0.9)
    assert FitOptions(id_dropout=0.9, user_id=True).id_dropout == 0.9


def test_a_match_of_evidence_that_no_features_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--match decay .* which features baseline, liber have not"):
        check_used(FitOptions(match="decay"), features=["baseline", "liber"])
    check_used(FitOptions(match="decay"), features=["baseline", "evidence"])
    check_used(FitOptions(), features=["baseline"])
