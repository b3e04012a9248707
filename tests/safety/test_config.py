"""Every mistake in config.toml is one clear line; every edit keeps the rest of the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer_tui.safety import config, config_edit
from trainer_tui.safety.config import Config
from trainer_tui.safety.errors import ConfigProblem

HERE = Path("config.toml")


def refusal(text: str) -> ConfigProblem:
    with pytest.raises(ConfigProblem) as problem:
        config.parse(text, HERE)
    return problem.value


def test_an_empty_file_means_the_defaults():
    assert config.parse("", HERE) == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_lenght = 5", ["max_lenght", "did you mean max_length"]),
        ("[retention]\ncheckpoint = 5", ["retention.checkpoint", "retention.checkpoints"]),
        ("[nonsense]\na = 1", ["unknown key nonsense"]),
        ("learning_rate = 3", ["learning_rate = 3", "less than 1"]),
        ("save_steps = 0", ["save_steps = 0", "greater than or equal to 1"]),
        ("save_steps = 100000000000000000000", ["save_steps = 1", "less than or equal to 10000"]),
        ("poll_interval = 1e300", ["poll_interval = 1e+300", "less than or equal to 1000000000"]),
        ("min_save_interval_s = 1e10", ["min_save_interval_s", "less than or equal to 1000000000"]),
        ("[supervision]\nbackoff_s = [1e300]", ["backoff_s.0 = 1e+300", "less than or equal"]),
        ("[retention]\ntrash_days = 36501", ["trash_days = 36501", "less than or equal to 36500"]),
        ("[retention]\ncompleted_days = 9999999999", ["completed_days", "equal to 36500"]),
        ("[retention]\ndaily_days = 999999", ["daily_days", "equal to 36500"]),
        ("[disk]\nmin_free_gb = 1e300", ["min_free_gb", "equal to 1000000000"]),
        ("max_grad_norm = 1e300", ["max_grad_norm = 1e+300", "less than or equal to 1000000000"]),
        ('[intake]\nquiet_hours = "25:00-99:00"', ["quiet_hours", "write it as 22:00-06:30"]),
        ('[intake]\nquiet_hours = "06:00-06:00"', ["quiet_hours", "it never holds"]),
        ('[api]\nlisten = "x"', ["api.listen = 'x'", "write it as 127.0.0.1:8000"]),
        ('[api]\nlisten = "127.0.0.1:65536"', ["api.listen", "is no address"]),
        ("epochs = 2.5", ["epochs = 2.5", "integer"]),
        ('max_length = "4096"', ["max_length = '4096'", "number, without quotes"]),
        ("max_length = true", ["max_length = True", "number"]),
        ('[disk]\nmin_free_gb = "5"', ["disk.min_free_gb", "number"]),
        ("[versioning]\non_new_best = 1", ["versioning.on_new_best = 1", "true or false"]),
        ('deterministic = "yes"', ["deterministic", "true or false"]),
        ("[disk]\nmin_free_gb = nan", ["min_free_gb"]),
        ("[disk]\nmin_free_gb = inf", ["min_free_gb", "finite"]),
        ("seed = 99999999999999999999", ["seed"]),
        ('schedule = "cosin"', ["schedule = 'cosin'", "'cosine'"]),
        ("retention = 5", ["retention = 5"]),
        ("pack_tokens = 100", ["pack_tokens 100 must be at least max_length 4096"]),
        ("tokens_per_step = 0", ["tokens_per_step and batch_size"]),
        ("a b c", ["config.toml", "line 1"]),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(text, says):
    problem = refusal(text)
    assert "\n" not in problem.message and problem.message.startswith("config.toml")
    for part in says:
        assert part in f"{problem.message} {problem.hint}"


def _number_schemas(schema: dict, where: str) -> Iterator[tuple[str, dict]]:
    """Every number of a JSON schema, with its path; sections are followed."""
    if schema.get("type") in ("integer", "number"):
        yield where, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _number_schemas(inner, f"{where}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(name), dict):
            yield from _number_schemas(inner, f"{where}.{name}")
    for inner in (*schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        yield from _number_schemas(inner, where)
    for name, inner in schema.get("$defs", {}).items():
        yield from _number_schemas(inner, name)


def test_every_number_has_a_lowest_and_a_highest_value():
    found = dict(_number_schemas(Config.model_json_schema(), "Config"))
    assert {"Config.epochs", "Behaviour.alpha", "Supervision.backoff_s.items"} <= found.keys()
    assert len(found) > 50
    for end in ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}):
        assert not [where for where, schema in found.items() if not end & schema.keys()]


def test_more_than_one_mistake_is_counted():
    assert "1 more problem" in refusal("save_steps = 0\nlog_steps = 0").hint


def test_files_that_cannot_be_read_are_said_to_be_so(tmp_path):
    with pytest.raises(ConfigProblem, match="is not there"):
        config.load(tmp_path / "config.toml")
    (tmp_path / "config.toml").write_bytes(b"model_name = '\xff'")
    with pytest.raises(ConfigProblem, match="not UTF-8 at byte 14"):
        config.load(tmp_path / "config.toml")


def test_model_path_is_another_name_of_base_model():
    assert config.parse("model_path = 'x'", HERE).base_model == "x"


def test_the_base_model_counts_from_the_workspace(tmp_path):
    given = config.parse("base_model = 'models/qwen'", HERE)
    assert config.base_model_folder(given, tmp_path) == tmp_path / "models/qwen"
    given = config.parse("base_model = '/elsewhere/qwen'", HERE)
    assert config.base_model_folder(given, tmp_path) == Path("/elsewhere/qwen")


def test_settings_survive_the_way_to_the_trainer():
    given = config.parse('learning_rate = 1e-5\n[ladder]\noverfitting = ["notify"]', HERE)
    assert Config.model_validate(given.model_dump(mode="json")) == given


def test_the_hash_changes_with_what_shapes_training_only():
    plain = config.config_hash(Config())
    assert config.config_hash(config.parse("[screen]\ntheme = 'x'", HERE)) == plain
    assert config.config_hash(config.parse("[api]\ntoken = 'x'", HERE)) == plain
    assert config.config_hash(config.parse("learning_rate = 1e-5", HERE)) != plain


def test_live_and_approval_keys_are_keys_of_the_schema():
    known = set(config.known_keys())
    assert known >= config.LIVE_KEYS | config.APPROVAL_KEYS
    assert set(Config.model_fields) >= config.LIVE_SECTIONS
    assert not config.LIVE_KEYS & config.APPROVAL_KEYS


TEXT = """# my settings
learning_rate = 1e-4  # gentle

[retention]  # what stays
checkpoints = 7
"""


def test_an_edit_keeps_comments_order_and_the_rest(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    changed = config_edit.set_values(path, {"learning_rate": 2e-5, "retention.versions": 9})
    assert changed.learning_rate == 2e-5 and changed.retention.versions == 9
    text = path.read_text()
    assert "# my settings" in text and "# gentle" in text and "# what stays" in text
    assert "checkpoints = 7" in text
    assert config.load(path) == changed


@pytest.mark.parametrize(
    "values",
    [{"learning_rate": 5}, {"max_lenght": 1}, {"save_steps": 10, "log_steps": 0}, {"seed": True}],
)
def test_a_refused_edit_changes_nothing(tmp_path, values):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    with pytest.raises(ConfigProblem):
        config_edit.set_values(path, values)
    assert path.read_text() == TEXT and list(tmp_path.iterdir()) == [path]


def test_an_edit_of_a_broken_or_missing_file_is_a_sentence(tmp_path):
    path = tmp_path / "config.toml"
    for text in ("a b c", "retention = 5"):
        path.write_text(text)
        with pytest.raises(ConfigProblem):
            config_edit.set_value(path, "retention.versions", 3)
    path.unlink()
    with pytest.raises(ConfigProblem, match="is not there"):
        config_edit.set_value(path, "retention.versions", 3)
    with pytest.raises(ConfigProblem, match="retention is not a section"):
        config_edit.edited("retention = 5", {"retention.versions": 3}, path)


def test_an_edit_does_not_say_the_same_thing_under_two_names(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('model_path = "old"\n')
    assert config_edit.set_value(path, "base_model", "new").base_model == "new"
    assert path.read_text() == 'model_path = "new"\n'


def test_an_edit_keeps_the_mode(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    path.chmod(0o644)
    before = os.umask(0o077)  # the daemon's
    try:
        config_edit.set_value(path, "epochs", 2)
    finally:
        os.umask(before)
    assert "epochs = 2" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_is_neither_read_nor_written_through(tmp_path):
    kept, good, path = (tmp_path / name for name in ("kept.toml", "good.toml", "config.toml"))
    kept.write_text("epochs = 9")
    good.write_text("epochs = 2")
    path.symlink_to(kept)
    with pytest.raises(ConfigProblem, match="is a link"):
        config.load(path)
    with pytest.raises(ConfigProblem, match="is a link"):
        config_edit.set_value(path, "epochs", 3)
    assert kept.read_text() == "epochs = 9"
    settings, problem = config.load_or_last_good(path, good)
    assert settings.epochs == 2 and "is a link" in str(problem)


def test_a_key_of_the_screen_can_be_bound(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("")
    changed = config_edit.set_value(path, "screen.keys.pause", "f5")
    assert changed.screen.keys == {"pause": "f5"}
    assert config.load(path) == changed


def test_typed_values_are_toml_when_they_can_be():
    assert config_edit.parse_value("5") == 5 and config_edit.parse_value("true") is True
    assert config_edit.parse_value('["a", "b"]') == ["a", "b"]
    assert config_edit.parse_value("plain words") == "plain words"
    assert config_edit.parse_value("1e-5") == 1e-5
