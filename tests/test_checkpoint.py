"""A checkpoint is there whole or not at all, and rebuilds its model from itself alone."""

import pytest
import torch
from conftest import random_batch, seeded_model

from lab5 import checkpoint
from lab5.files import write_atomically


def test_a_checkpoint_rebuilds_its_model(config, tmp_path):
    model = seeded_model(config)
    model.set_condition_statistics(torch.arange(7.0), torch.arange(1.0, 8.0))
    checkpoint.save(tmp_path / "best.safetensors", model, epoch=3)
    loaded, facts = checkpoint.load_model(tmp_path / "best.safetensors")
    frames, condition, noise = random_batch(config)
    assert loaded.config == config and facts == {"epoch": 3}
    assert torch.equal(loaded.predict(frames[:2], condition, noise), model.predict(frames[:2], condition, noise))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device.*untouched"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
