"""A configuration refuses what it cannot mean, and comes back from its file unchanged."""

import pytest

from lab5.config import PRESETS, Config, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_the_trip_through_their_file(name, tmp_path):
    (tmp_path / "config.json").write_text(PRESETS[name].to_json())
    assert Config.load(tmp_path / "config.json") == PRESETS[name]
    assert PRESETS[name].preset == name


def test_the_hash_identifies_what_decides_the_result_and_not_the_machine():
    quick = preset("quick")
    assert quick.hash == preset("quick").hash != preset("quick", seed=2).hash
    other = quick.replace(best_of=7, preset="mine", precision="float32")
    assert other.hash == quick.hash and quick.differences(other) == []
    assert quick.differences(preset("quick", lr=0.5)) == ["lr: 0.003 here, 0.5 there"]
