"""A configuration refuses what it cannot mean, and comes back from its file unchanged."""

import pytest

from lab5.config import PRESETS, Config, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_trip_through_their_file(name, tmp_path):
    (tmp_path / "config.json").write_text(PRESETS[name].to_json())
    assert Config.load(tmp_path / "config.json") == PRESETS[name]
    assert PRESETS[name].preset == name


def test_all_bad_settings_are_named_at_once():
    with pytest.raises(ValueError, match="(?s)2 validation errors.*epochs.*lr"):
        preset("smoke", lr=-1.0, epochs=0)


def test_the_hash_identifies_what_decides_the_result_and_not_the_machine():
    quick = preset("quick")
    assert quick.hash == preset("quick").hash != preset("quick", seed=2).hash
    other = quick.replace(best_of=7, preset="mine", precision="float32")
    assert other.hash == quick.hash and quick.differences(other) == []
    assert quick.differences(preset("quick", lr=0.5)) == ["lr: 0.003 here, 0.5 there"]
