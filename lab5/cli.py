"""The command `lab5`: arguments in, calls to the package out, errors as one clear line."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from functools import partial
from itertools import permutations
from pathlib import Path

from lab5.config import PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 it could not be done, 2 wrong arguments, 130 Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")       # what was computed is printed, whatever the terminal
    options = _parser().parse_args(arguments)
    try:
        return options.action(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        status, message = 1, f"lab5 {options.command}: {error}"
    except KeyboardInterrupt:
        status, message = 130, f"\nlab5 {options.command}: stopped; the same command resumes from what is saved"
    print(message, file=sys.stderr)                             # here, since a bar is closed with the error's frames
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab5", description="Conditional VAE for video prediction: the workbook.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(action, text: str, *parents: argparse.ArgumentParser):
        sub = commands.add_parser(action.__name__[1:], help=text, description=text, parents=parents)
        sub.set_defaults(action=action)
        return sub.add_argument

    _add_data_commands(command)
    _add_run_commands(command)
    return parser


def _add_data_commands(command) -> None:
    add = command(_simulate, "write a simulated robot-pushing set in the lab's layout")
    add("root", type=Path, help="folder that gets processed_data")
    for split, count in (("train", 576), ("validate", 32), ("test", 64)):
        add(f"--{split}", type=_number, default=count, help=f"sequences (default: {count})")
    command(_pack, "pack a data set, or Berkeley's TFRecords, into memory maps for fast reading")(
        "root", type=Path, help="folder that holds processed_data, or Berkeley's softmotion30_44k")
    command(_check, "count the sequences and name every problem of a data set and of its packs")("root", type=Path)

    add = command(_convert, "make a run folder of a checkpoint of the course's template or of SVG")
    add("checkpoint", type=Path, metavar="MODEL.PTH", help="read without running what is in it")
    add("run", type=Path, nargs="?", metavar="RUN", help="new folder (default: MODEL_lab5 beside it)")
    add("--condition", choices=("previous", "target"), default="previous",
        help="which step's action and position the predictor was given (default: previous, cond[i-1])")
    add("--order", choices=["".join(letters) for letters in permutations("hzc")], default="hzc",
        help="order in which h, z and condition were concatenated (default: hzc)")
    add("--skip", choices=("context", "early", "latest"), default="", help="the decoder's skips: of the last context "
        "frame, of the one before it (i < n_past; default), or of the newest frame (default with last_frame_skip)")


def _add_run_commands(command) -> None:
    data, run = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", default="", type=_absolute, help="data set's folder (default: the simulated robot)")
    run.add_argument("--preset", choices=PRESETS, default="quick")
    run.add_argument("--run", default="", type=_absolute, help="run folder (default: runs/PRESET in the project)")

    add = command(_train, "train, or resume the run in the folder (several processes: torchrun -m -- lab5.cli)", run,
                  data)
    add("--set", dest="settings", metavar="NAME=VALUE", action="append", default=[], type=_setting,
        help="change a setting of the preset, e.g. --set lr=0.001 (repeatable)")
    add = command(_evaluate, "score a run's best weights on the test split", run, data)
    add("--future", type=partial(_number, least=1), help="frames to predict (default: as trained), e.g. 28")
    add("--best-of", type=partial(_number, least=2), help="samples of each sequence (default: as configured), e.g. 100")
    command(_demo, "score the weights that come with the workbook on the simulated robot's test split")

    add = command(_sweep, "compare settings, one change at a time, under equal budgets", run, data)
    add("choices", choices=("extras", "schedules"), help="which of notebook 08's comparisons")
    add("--seeds", type=partial(_number, least=1), default=3, help="runs of each option (default: 3)")
    add("--share", type=float, default=0.5, help="length of a run, as a share of the preset's (default: 0.5)")

    add = command(_report, "run every notebook, export every figure, make the PDF, print the grade", run, data)
    add("--only", nargs="+", metavar="NN", help="only these notebooks, e.g. --only 05 06")
    add("--pdf", action="store_true", help="only make the PDF again, and list what a grader would miss")
    command(_submit, "zip what is handed in: report, source, notebooks, figures, weights", run, data)
    command(_grade, "score each zip of a folder of them, and write grades.csv into it", data)("folder", type=Path)


def _number(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
    return int(text)


def _setting(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value                                      # a word, such as cyclical


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path and not path.startswith("~") else path  # `open_run` expands ~


def _open(options: argparse.Namespace):
    from lab5.workbook.run import open_run

    return open_run(options.preset, options.run, options.data)


def _simulate(options: argparse.Namespace) -> None:
    from lab5.robot.simulator import simulate

    simulate(options.root, options.train, options.validate, options.test)
    print(f"{options.train} / {options.validate} / {options.test} sequences in {options.root / 'processed_data'}")


def _pack(options: argparse.Namespace) -> None:
    from lab5.formats.tree import pack_tree

    pack_tree(options.root)
    print(f"packed into {options.root / 'packed'}")


def _check(options: argparse.Namespace) -> int:
    from lab5.formats.tree import check

    lines, problems = check(options.root)
    print(*problems, *lines, f"{len(problems)} problems", sep="\n")
    return bool(problems)


def _convert(options: argparse.Namespace) -> None:
    from lab5 import checkpoint
    from lab5.formats.template import convert

    source = options.checkpoint
    run = options.run or source.with_name(f"{source.stem}_lab5")
    if run.exists() and any(run.iterdir()):
        raise ValueError(f"{run}: is not empty; choose another folder for the converted weights")
    model = convert(source, options.condition, options.order, options.skip)
    checkpoint.save(run / "best.safetensors", model, epoch=0)
    print(f"{model.config.n_past} context frames, {model.config.n_future} predicted; condition "
          f"{model.config.condition}, skips {model.config.skip}\n"
          f"lab5 evaluate --run {run.resolve()} --data FOLDER scores it")


def _train(options: argparse.Namespace) -> None:
    from lab5.workbook.run import Run

    lab = _open(options)
    if options.settings:
        lab = Run(PRESETS[options.preset].replace(**dict(options.settings)), lab.folder, lab.data)
    history = lab.train()
    if os.environ.get("RANK", "0") == "0":                      # of several processes one reports
        scored = [record["psnr"] for record in history if record["psnr"] is not None]
        print(f"{len(history)} epochs in {lab.folder}; best validation PSNR {max(scored, default=float('nan')):.2f} dB")


def _evaluate(options: argparse.Namespace) -> None:
    from lab5.handin.rubric import summary

    lab, given = _open(options), {"n_future": options.future, "best_of": options.best_of}
    print(summary(lab, lab.evaluation(**{name: value for name, value in given.items() if value})))


def _demo(options: argparse.Namespace) -> None:
    from lab5.handin.report import demo

    print(demo())


def _sweep(options: argparse.Namespace) -> None:
    from lab5.workbook import sweep

    lab = _open(options)
    records = sweep.sweep(lab, sweep.SWEEPS[options.choices], options.share, options.seeds)
    path = lab.folder / f"comparison_{options.choices}.csv"
    sweep.write(path, records)
    print(f"{sweep.report(records)}\n\n{path}")


def _report(options: argparse.Namespace) -> int:
    from lab5.handin.pdf import try_words
    from lab5.handin.report import build_pdf, find_notebooks, run_report
    from lab5.handin.words import Details, read_words

    details = Details.load()                                    # an error is told before anything is computed
    try_words(details, read_words(details, find_notebooks()), Path(options.data).name)
    lab = _open(options) if options.pdf else run_report(options.preset, options.run, options.data, options.only)
    if options.only and not options.pdf:
        print(f"executed notebooks: {lab.folder / 'notebooks'}")
        return 0
    text, complete = build_pdf(lab, details)
    print(text)
    return options.pdf and not complete


def _submit(options: argparse.Namespace) -> int:
    from lab5.handin.report import build_pdf
    from lab5.handin.submit import submit
    from lab5.handin.words import Details

    lab, details = _open(options), Details.load()
    text, complete = build_pdf(lab, details)
    print(text)
    path = submit(lab, details, Path())
    print(f"\n{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return not complete


def _grade(options: argparse.Namespace) -> None:
    from lab5.handin.grade import grade_folder
    from lab5.workbook.run import RECORDED, open_run

    lab = open_run("standard", str(RECORDED), options.data)
    pack = lab.pack("test")
    print(f"{len(pack)} test sequences of {lab.data_name}")
    print(grade_folder(options.folder, pack))


if __name__ == "__main__":
    sys.exit(main())
