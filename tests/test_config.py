"""A configuration refuses what it cannot mean, and comes back from its file unchanged."""

import pytest

from lab5.config import PRESETS, Config, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_trip_through_their_file(name, tmp_path):
    (tmp_path / "config.json").write_text(PRESETS[name].to_json())
    assert Config.load(tmp_path / "config.json") == PRESETS[name]
    assert PRESETS[name].preset == name


@pytest.mark.parametrize("change, complaint", [
    ({"learning_rate": 1}, "unknown setting learning_rate"),
    ({"batchsize": 1}, "did you mean batch_size"),
    ({"batch_size": 0}, "batch_size is 0, but must be above 0"),
    ({"batch_size": 2.5}, "batch_size is 2.5, but must be of type int"),
    ({"lr": "fast"}, "lr is 'fast', but must be of type float"),
    ({"lr": float("nan")}, "lr is nan, but must be above 0"),
    ({"tf_min": 1.5}, "tf_min is 1.5, but must be between 0 and 1"),
    ({"kl_schedule": "cyclic"}, "kl_schedule is 'cyclic', but must be one of 'monotonic', 'cyclical'"),
    ({"epochs": True}, "epochs is True"),
    ({"beta": -1}, "beta is -1.0, but must be 0 or more"),
])
def test_bad_settings_are_named_with_their_value(change, complaint):
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        preset("smoke", **change)


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(ValueError, match="(?s)lr is -1.0.*epochs is 0|epochs is 0.*lr is -1.0"):
        preset("smoke", lr=-1.0, epochs=0)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="smoke, quick, standard, full"):
        preset("fast")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"lr": 1', '{"nonsense": 1}'])
def test_a_torn_file_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json"):
        Config.load(tmp_path / "config.json")


def test_the_hash_tells_configurations_apart():
    assert preset("quick").hash == preset("quick").hash != preset("quick", seed=2).hash
