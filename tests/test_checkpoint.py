"""A checkpoint is there whole or not at all, and rebuilds its model from itself alone."""

import pytest
import torch
from conftest import random_batch, seeded_model

from lab5 import checkpoint
from lab5.checkpoint import CheckpointError
from lab5.files import write_atomically


def test_a_checkpoint_rebuilds_its_model(config, tmp_path):
    model = seeded_model(config)
    model.set_condition_statistics(torch.arange(7.0), torch.arange(1.0, 8.0))
    checkpoint.save(tmp_path / "best.safetensors", model, epoch=3)
    loaded, facts = checkpoint.load_model(tmp_path / "best.safetensors")
    frames, condition, noise = random_batch(config)
    assert loaded.config == config and facts == {"epoch": 3}
    assert torch.equal(loaded.predict(frames[:2], condition, noise), model.predict(frames[:2], condition, noise))


def test_an_action_free_model_comes_back_action_free(config, tmp_path):
    checkpoint.save(tmp_path / "m.safetensors", seeded_model(config, condition_width=0))
    assert checkpoint.load_model(tmp_path / "m.safetensors")[0].embed_condition is None


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(CheckpointError, match="notebook 04"):
        checkpoint.load_model(tmp_path / "best.safetensors")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device.*untouched"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def saved_twice(config, path):
    """A checkpoint of epoch 2 with that of epoch 1 before it."""
    for epoch in (1, 2):
        checkpoint.save(path, seeded_model(config, seed=epoch), epoch=epoch)
    return path


@pytest.mark.parametrize("place", [3, 12, 300, 0.2, 0.5, 0.999])
def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(place, config, tmp_path):
    path = saved_twice(config, tmp_path / "last.safetensors")
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="last.safetensors.*last.previous.safetensors"):
        model, facts = checkpoint.load_model(path)
    assert facts == {"epoch": 1}
    expected = seeded_model(config, seed=1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_kill_between_the_two_moves_leaves_the_checkpoint_before(config, tmp_path):
    path = saved_twice(config, tmp_path / "last.safetensors")
    path.unlink()
    with pytest.warns(UserWarning, match="no such checkpoint"):
        assert checkpoint.load_model(path)[1] == {"epoch": 1}


def test_where_both_are_damaged_nothing_is_believed(config, tmp_path):
    path = saved_twice(config, tmp_path / "last.safetensors")
    for file in (path, checkpoint.previous(path)):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_model(path)
