"""The command: what it prints and what it returns. What a user can get wrong is in `test_bad_input`."""

import json
import shutil

import pytest

from lab5.cli import main
from lab5.config import Config
from lab5.data import open_pack


def test_check_counts_sequences_and_names_every_problem(tiny_root, tiny_packs, tmp_path, capsys):
    assert main(["check", str(tiny_root)]) == 0
    printed = capsys.readouterr().out
    assert "train: 8 sequences of 30 frames, with actions and positions" in printed and "0 problems" in printed
    shutil.copytree(tiny_root / "processed_data", tmp_path / "processed_data")
    broken = tmp_path / "processed_data" / "test" / "traj_256_to_511.tfrecords" / "0"
    broken.mkdir(parents=True)
    assert main(["check", str(tmp_path)]) == 1
    problem, *_, count = capsys.readouterr().out.splitlines()
    assert str(broken) in problem and count == "1 problems"


def test_pack_regenerates_the_packs_of_a_tree(tiny_root, tiny_packs, tmp_path, capsys):
    shutil.copytree(tiny_root / "processed_data", tmp_path / "processed_data")
    assert main(["pack", str(tmp_path)]) == 0 and "packed into" in capsys.readouterr().out
    for split, pack in tiny_packs.items():
        assert open_pack(tmp_path, split).data_sha == pack.data_sha


def test_train_changes_settings_and_evaluate_scores_the_run(tiny_root, tmp_path, capsys):
    run = ["--preset", "smoke", "--data", str(tiny_root), "--run", str(tmp_path / "run")]
    assert main(["train", *run, "--set", "epochs=1", "--set", "kl_schedule=cyclical"]) == 0
    config = Config.load(tmp_path / "run" / "config.json")
    assert (config.epochs, config.kl_schedule, config.preset) == (1, "cyclical", "smoke")
    assert "1 epochs" in capsys.readouterr().out
    assert main(["evaluate", *run]) == 0
    printed = capsys.readouterr().out
    assert "prior sample (graded)" in printed and "average PSNR" in printed and "grade" in printed
    scores = json.loads((tmp_path / "run" / "evaluation" / "test" / "scores.json").read_text())
    assert f"{scores['averages']['psnr']['prior_sample']['mean']:.2f}" in printed


@pytest.mark.parametrize("arguments", [["train", "--preset", "slow"], ["watch"], []])
def test_wrong_arguments_end_with_status_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
