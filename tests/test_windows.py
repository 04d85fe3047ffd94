"""Every batch is what its index and step say, whatever the size of the set."""

import resource
from collections import Counter

import numpy as np
import pytest
import torch
from test_data import conditions_of, frames_of, write_tree

from lab5 import data
from lab5.config import preset
from lab5.data import Windows, evaluation_loader, training_loader
from lab5.formats.tree import open_or_pack


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A split of 11 sequences, packed: not a multiple of any batch size below."""
    return open_or_pack(write_tree(tmp_path_factory.mktemp("packed"), 11, ["test"]), "test", progress=False)


def batches(pack, *steps, length=3, share=slice(None), **changes):
    """What each batch holds: which sequences, and which frames of them, (T, B)."""
    config = preset("smoke", n_past=2, n_future=length - 2, **{"batch_size": 4, "seed": 1, **changes})
    loader = training_loader(pack, config, range(*steps), share)
    return [(batch.index.tolist(), batch.frames[:, :, 1, 0, 0].tolist()) for batch in loader]


def test_a_batch_holds_what_its_keys_say_without_a_copy(packed):
    windows = Windows(packed, 3, seed=5)
    batch = windows.__getitems__([(4, 0), (9, 2), (4, 7), 0])
    assert batch.index.tolist() == [4, 9, 4, 0] and windows[(10, 3)].frames.shape == (3, 1, 3, 64, 64)
    for b, number in enumerate(batch.index.tolist()):
        span = slice(start := int(batch.frames[0, b, 1, 0, 0]), start + 3)
        np.testing.assert_array_equal(batch.frames[:, b].permute(0, 2, 3, 1), frames_of(number)[span])
        np.testing.assert_array_equal(batch.condition[:, b], conditions_of(number)[span])
    flat = batch.frames.flatten(0, 1)
    assert flat.data_ptr() == batch.frames.data_ptr() and flat.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(IndexError, match="out of bounds"):
        windows[11]


@pytest.mark.parametrize("limit, sizes", [(None, [4, 4, 3]), (5, [4, 1]), (4, [4]), (99, [4, 4, 3])])
def test_evaluation_reads_each_sequence_once_in_order_from_its_first_frame(packed, limit, sizes):
    read = list(evaluation_loader(packed, 3, 4, limit))
    assert [len(batch.index) for batch in read] == sizes
    pixels = torch.cat([batch.frames for batch in read], dim=1)[:, :, :2, 0, 0]                 # (T, N, 2)
    assert pixels.transpose(0, 1).tolist() == [[[n, t] for t in range(3)] for n in range(sum(sizes))]


@pytest.mark.parametrize("batch_size", [3, 11, 25])
def test_each_training_pass_visits_every_sequence_once_in_another_order_and_at_any_start(packed, batch_size):
    read = [item for indices, frames in batches(packed, 44, batch_size=batch_size)
            for item in zip(indices, *frames, strict=True)]
    passes = [tuple(index for index, *_ in read[first:first + 11]) for first in range(0, 44, 11)]
    assert all(sorted(one) == list(range(11)) for one in passes) and len(set(passes)) == 4
    assert all(window == [window[0], window[0] + 1, window[0] + 2] for _, *window in read)
    starts = Counter(start for _, start, *_ in read)
    assert set(starts) == {0, 2} and min(starts.values()) > len(read) / 5       # where actions begin
    anywhere = batches(packed, 44, batch_size=batch_size, even_starts=False)
    assert {frames[0] for _, windows in anywhere for frames in zip(*windows, strict=True)} == {0, 1, 2}


def test_the_training_stream_depends_on_seed_and_step_alone(packed):
    state, whole = torch.get_rng_state(), batches(packed, 12)
    assert batches(packed, 12) == whole != batches(packed, 12, seed=2)
    assert batches(packed, 7, 12) == whole[7:]                  # resumed
    halves = zip(*(batches(packed, 12, share=slice(r, None, 2)) for r in (0, 1)), strict=True)  # of two processes
    assert [sorted(a + b) for (a, _), (b, _) in halves] == [sorted(indices) for indices, _ in whole]
    assert torch.equal(torch.get_rng_state(), state)


def test_frames_lie_in_the_unit_interval_and_condition_statistics_survive_constant_columns(packed):
    video = data.to_video(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert video.dtype == torch.float32 and video.tolist() == pytest.approx([0, 0.2, 1])
    with pytest.raises(TypeError, match="float32, expected torch.uint8"):
        data.to_video(video)
    mean, std = data.condition_statistics(packed)
    rows = np.concatenate([conditions_of(n) for n in range(11)]).astype(np.float64)
    torch.testing.assert_close(mean, torch.from_numpy(rows.mean(0).astype(np.float32)))
    torch.testing.assert_close(std, torch.from_numpy(rows.std(0).clip(data.LEAST_STD).astype(np.float32)))
    assert std[[2, 3, 6]].tolist() == [np.float32(data.LEAST_STD)] * 3


def test_a_set_larger_than_memory_is_read_a_window_at_a_time(tmp_path):
    """A pack of a tebibyte, all of it a hole in the disk: what is read is what is asked for."""
    N, arrays = 2**40 // (30 * 64 * 64 * 3), {}
    for name, kind, shape in (("frames", np.uint8, (64, 64, 3)), ("conditions", np.float32, (7,))):
        try:
            arrays[name] = np.lib.format.open_memmap(tmp_path / name, mode="w+", dtype=kind, shape=(N, 30, *shape))
        except OSError as error:
            pytest.skip(f"no files with holes of this size here: {error}")
    arrays["frames"][-1] = 7
    pack = data.Pack("train", **arrays, names=["hole"] * N, data_sha="", simulated=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert Windows(pack, 12).__getitems__([0, N // 2, N - 1]).frames.amax((0, 2, 3, 4)).tolist() == [0, 0, 7]
    assert len(batches(pack, 10**5, 10**5 + 1)[0][0]) == 4
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"{grown:.0f} MB for a few windows"
