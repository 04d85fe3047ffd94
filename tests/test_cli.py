"""The command: what it prints and what it returns. What a user can get wrong is in `test_bad_input`."""

import pytest

from lab5.cli import main
from lab5.config import Config
from lab5.training import read_history


def test_check_counts_sequences_and_problems(tiny_root, tmp_path, capsys):
    assert main(["check", str(tiny_root)]) == 0
    assert "train 8, validate 4, test 4 sequences, 0 problems" in capsys.readouterr().out
    for split in ("train", "validate", "test"):
        (tmp_path / "processed_data" / split).mkdir(parents=True)
        for folder in (tiny_root / "processed_data" / split).iterdir():
            (tmp_path / "processed_data" / split / folder.name).symlink_to(folder)
    broken = tmp_path / "processed_data" / "test" / "traj_256_to_511.tfrecords" / "0"
    broken.mkdir(parents=True)
    assert main(["check", str(tmp_path)]) == 1
    *problems, counts = capsys.readouterr().out.splitlines()
    assert problems and all(str(broken) in line for line in problems)
    assert f"test 5 sequences, {len(problems)} problem" in counts


def test_train_changes_settings_and_evaluate_scores_the_run(tiny_root, tmp_path, capsys):
    run = ["--preset", "smoke", "--data", str(tiny_root), "--run", str(tmp_path / "run")]
    assert main(["train", *run, "--set", "epochs=1", "--set", "kl_schedule=cyclical"]) == 0
    config = Config.load(tmp_path / "run" / "config.json")
    assert (config.epochs, config.kl_schedule, config.preset) == (1, "cyclical", "smoke")
    assert "1 epochs" in capsys.readouterr().out
    assert main(["evaluate", *run]) == 0
    printed = capsys.readouterr().out
    assert "prior sample (graded)" in printed and "average PSNR" in printed and "grade" in printed
    assert (tmp_path / "run" / "evaluation" / "test" / "per_sequence.csv").exists()


def test_watch_prints_a_line_an_epoch_of_what_the_history_says(tiny_root, tmp_path, capsys):
    run = ["--preset", "smoke", "--run", str(tmp_path / "run")]
    assert main(["train", *run, "--data", str(tiny_root), "--set", "epochs=2", "--set", "validate_every=2"]) == 0
    capsys.readouterr()
    assert main(["watch", *run]) == 0                           # the run's own number of epochs, not the preset's
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["epoch", "MSE"] and len({len(line) for line in (heading, *lines)}) == 1
    for line, record in zip(lines, read_history(tmp_path / "run"), strict=True):
        epoch, mse, kl, kl_weight, forced, psnr, speed = line.split()
        assert int(epoch) == record["epoch"] and float(mse) == pytest.approx(record["mse"], abs=1e-5)
        assert psnr == ("-" if record["psnr"] is None else f"{record['psnr']:.2f}")
        assert float(speed) == pytest.approx(record["sequences_per_second"], abs=0.1)
