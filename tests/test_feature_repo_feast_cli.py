"""Which errors the `feast` program shows as one line, and which it leaves alone."""

import sys
from pathlib import Path

import pytest
from dateutil import parser
from feast.errors import FeatureViewNotFoundException
from feast.repo_config import load_repo_config
from yaml import YAMLError

from liber_feast import feast_cli
from tests import feature_repo_kit as kit


def raised_by_loading(folder: Path, text: str) -> BaseException:
    path = folder / "feature_store.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Exception) as caught:  # noqa: PT011  # what Feast raises is what is looked at
        load_repo_config(folder, path)
    return caught.value


def test_a_value_that_feast_refuses_is_named_with_its_key(tmp_path: Path) -> None:
    error = raised_by_loading(tmp_path, "project: not-valid!\nprovider: local\nregistry: data/registry.db\n")
    message = feast_cli.user_message(error)
    assert message is not None
    assert message.startswith("feature_store.yaml: project: Value error, Project name")
    assert "\n" not in message


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    error = raised_by_loading(tmp_path, "project: [\n")
    assert isinstance(error, YAMLError)
    assert str(feast_cli.user_message(error)).startswith("feature_store.yaml is no valid YAML: ")


def test_a_time_that_cannot_be_read_says_how_to_write_it() -> None:
    with pytest.raises(parser.ParserError) as caught:
        parser.parse("yesterday")
    assert feast_cli.user_message(caught.value) == (
        "Unknown string format: yesterday. Write START and END as ISO 8601, for example 2024-01-31T00:00:00."
    )


def test_errors_of_feast_are_shown_and_those_of_programs_are_not() -> None:
    assert feast_cli.user_message(FeatureViewNotFoundException("views", "liber"))
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    assert feast_cli.user_message(caught.value) is None
    assert feast_cli.user_message(KeyError("x")) is None


def test_a_refusal_of_feast_itself_is_shown(tmp_path: Path) -> None:
    store = kit.open_store(kit.loaded_repo(tmp_path / "repo"))
    with pytest.raises(ValueError, match="greater") as caught:
        store.materialize(kit.END, kit.START)
    assert str(feast_cli.user_message(caught.value)).startswith("The given start_date 2024-01-01")


@pytest.mark.parametrize("program", ["/usr/bin/python", "/opt/bin/liber", "-c", ""])
def test_other_programs_keep_their_excepthook(program: str) -> None:
    before = sys.excepthook
    assert not feast_cli.install(program)
    assert sys.excepthook is before


def test_the_feast_program_shows_user_errors_as_one_line_and_others_as_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: seen.append(error))
    assert feast_cli.install("/opt/bin/feast")
    missing, other = FeatureViewNotFoundException("views", "liber"), KeyError("x")
    sys.excepthook(type(missing), missing, None)
    sys.excepthook(type(other), other, None)
    assert capsys.readouterr().err == "Error: Feature view views does not exist in project liber\n"
    assert seen == [other]
