"""The command: what it prints and what it returns. What a user can get wrong is in `test_bad_input`."""

import json
import shutil

from lab5.cli import main
from lab5.config import Config


def test_pack_and_check_count_sequences_and_name_every_problem(tiny_root, tmp_path, capsys):
    root = shutil.copytree(tiny_root / "processed_data", tmp_path / "processed_data").parent
    assert main(["pack", str(root)]) == 0 and main(["check", str(root)]) == 0
    printed = capsys.readouterr().out
    assert f"packed into {root / 'packed'}" in printed and "0 problems" in printed
    assert "train: 8 sequences of 30 frames, with actions and positions" in printed
    broken = root / "processed_data" / "test" / "traj_256_to_511.tfrecords" / "0"
    broken.mkdir(parents=True)
    assert main(["check", str(root)]) == 1
    problem, *_, count = capsys.readouterr().out.splitlines()
    assert str(broken) in problem and count == "1 problems"


def test_train_changes_settings_and_evaluate_scores_the_run(tiny_root, tmp_path, capsys):
    run = ["--preset", "smoke", "--data", str(tiny_root), "--run", str(tmp_path / "run")]
    assert main(["train", *run, "--set", "epochs=1", "--set", "kl_schedule=cyclical"]) == 0
    config = Config.load(tmp_path / "run" / "config.json")
    assert (config.epochs, config.kl_schedule, config.preset) == (1, "cyclical", "smoke")
    assert "1 epochs" in capsys.readouterr().out
    assert main(["evaluate", *run]) == 0
    printed = capsys.readouterr().out
    assert "prior sample (graded)" in printed and "average PSNR" in printed and "of the 20 marks" in printed
    scores = json.loads((tmp_path / "run" / "evaluation" / "test" / "scores.json").read_text())
    assert f"{scores['averages']['psnr']['prior_sample']['mean']:.2f}" in printed
