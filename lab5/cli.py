"""The command `lab5`: arguments in, calls to the package out, errors as one clear line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

from lab5.config import PRESETS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 it could not be done, 2 wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        return options.action(options) or 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"lab5 {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nlab5 {options.command}: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab5", description="Conditional VAE for video prediction: the workbook's commands.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, action, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(action=action)
        return sub

    def folder_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--preset", choices=PRESETS, default="quick")
        sub.add_argument("--run", default="", type=_absolute, help="run folder (default: runs/PRESET in the project)")

    def run_options(sub: argparse.ArgumentParser) -> None:
        folder_options(sub)
        sub.add_argument("--data", default="", type=_absolute,
                         help="folder that holds processed_data (default: the simulated robot)")

    sub = command("simulate", _simulate, "write a simulated robot-pushing set in the lab's layout")
    sub.add_argument("root", type=Path, help="folder that gets processed_data")
    for split, count in (("train", 576), ("validate", 32), ("test", 64)):
        sub.add_argument(f"--{split}", type=int, default=count, help=f"sequences (default: {count})")
    sub.add_argument("--length", type=int, default=30, help="frames a sequence (default: 30)")
    sub.add_argument("--seed", type=_at_least(0), default=1)
    sub.add_argument("--workers", type=_at_least(1),
                     help="processes (default: one a core); the frames do not depend on it")

    sub = command("download", _download, "fetch Berkeley's BAIR archive (32 GB), or go on with it")
    sub.add_argument("url", nargs="?", default="", help="another address of it, or any file's (default: Berkeley's)")
    sub.add_argument("--to", type=Path, metavar="PATH", help="file or folder for it (default: its own name, here)")
    sub.add_argument("--sha256", default="", metavar="HEX", help="what it must have (default: known for Berkeley's)")

    sub = command("import", _import, "bring real BAIR from Berkeley's TFRecords or the lab's zip, read in place")
    sub.add_argument("source", type=Path, help="folder or tar of softmotion30_44k, or zip of processed_data")
    sub.add_argument("root", type=Path, help="folder that gets packed, or with --tree processed_data")
    sub.add_argument("--camera", choices=("aux1", "main"), default="aux1",
                     help="whose frames (default: aux1, the lab's)")
    sub.add_argument("--tree", action="store_true", help="write the lab's folders of PNGs and tables")

    sub = command("check", _check, "count the sequences and name every problem of a data set or of its pack")
    sub.add_argument("root", type=Path, help="folder that holds processed_data or packed, or what can be imported")

    sub = command("pack", _pack, "pack a data set into memory maps, once, for fast reading")
    sub.add_argument("root", type=Path, help="folder that holds processed_data")

    sub = command("train", _train, "train, or go on with the run in the folder")
    run_options(sub)
    sub.add_argument("--set", dest="settings", metavar="NAME=VALUE", action="append", default=[],
                     help="change a setting of the preset, e.g. --set lr=0.001 (repeatable)")
    sub.add_argument("--from", dest="source", default="", type=_absolute, metavar="RUN",
                     help="begin with the best weights of another run, at their epoch, e.g. with a lower lr")
    sub.add_argument("--processes", type=_at_least(1), default=1, help="train in several processes, one a GPU or core")

    sub = command("watch", _watch, "print a line an epoch of a run that is trained elsewhere, until it is finished")
    folder_options(sub)

    sub = command("evaluate", _evaluate, "score a run's best weights on the test split")
    run_options(sub)

    command("demo", _demo, "score the weights that come with the workbook on the simulated robot's test split")

    sub = command("convert-checkpoint", _convert_checkpoint, "make a run folder of the course template's model.pth")
    sub.add_argument("checkpoint", type=Path, metavar="MODEL.PTH", help="read without running what is in it")
    sub.add_argument("run", type=Path, nargs="?", metavar="RUN", help="new folder (default: MODEL_lab5 beside it)")
    sub.add_argument("--condition", choices=("previous", "target"), default="previous",
                     help="which step's action and position the predictor was given (default: previous, cond[i-1])")
    sub.add_argument("--order", choices=["".join(letters) for letters in permutations("hzc")], default="hzc",
                     help="its input: h, z and condition as they were concatenated (default: hzc)")
    sub.add_argument("--skip", choices=("context", "early", "latest"), default="",
                     help="the decoder's skips: of the last context frame (default), of the one before it (the "
                     "template's i < n_past), or of the newest frame (default where args say last_frame_skip)")

    sub = command("sweep", _sweep, "compare settings, one change at a time, under equal budgets")
    run_options(sub)
    sub.add_argument("--choices", choices=("core", "extras", "full"), default="core",
                     help="core: KL schedule, teacher forcing and extras; full: every choice (default: core)")
    sub.add_argument("--seeds", type=_at_least(1), default=1, help="runs of each option (default: 1)")
    sub.add_argument("--share", type=_share, default=0.1,
                     help="length of a run, a share of the preset's (default: 0.1)")

    def student_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--id", default="", help="student id, for the title page and the zip's name")
        sub.add_argument("--name", default="", help="student's name")
        sub.add_argument("--details", type=Path, metavar="YAML",
                         help="file with student_id, name, language (en or zh) and discussion (default: report.yaml)")

    sub = command("report", _report, "run every notebook, export every figure, make the PDF, print the grade")
    run_options(sub)
    student_options(sub)
    sub.add_argument("--only", nargs="+", metavar="NN", help="only these notebooks, e.g. --only 05 06")

    sub = command("rubric", _rubric, "make the PDF of a run that is there, and say what a grader would miss")
    run_options(sub)
    student_options(sub)

    sub = command("submit", _submit, "pack what is handed in: report, source, notebooks, figures")
    run_options(sub)
    student_options(sub)
    sub.add_argument("--to", type=Path, default=Path(), help="folder for the zip (default: this one)")
    sub.add_argument("--weights", action="store_true", help="put the weights in as well")
    sub.add_argument("--verify", action="store_true", help="unpack the zip and run its workbook with the smoke preset")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    """What reads a number of an option, and refuses one below the least."""
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)
    return number


def _share(text: str) -> float:
    try:
        if 0 < float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""


def _simulate(options: argparse.Namespace) -> None:
    from lab5.simulator import simulate

    simulate(options.root, options.train, options.validate, options.test, options.length, options.seed, options.workers)
    print(f"{options.train} / {options.validate} / {options.test} sequences of {options.length} frames "
          f"in {options.root / 'processed_data'}")


def _download(options: argparse.Namespace) -> None:
    from lab5.download import BAIR_URL, download

    print(download(options.url or BAIR_URL, options.to, options.sha256))


def _import(options: argparse.Namespace) -> None:
    from lab5.importer import import_set

    counts = import_set(options.source, options.root, options.camera, options.tree)
    print(", ".join(f"{split} {count:,}" for split, count in counts.items())
          + f" sequences in {options.root / ('processed_data' if options.tree else 'packed')}")


def _check(options: argparse.Namespace) -> int:
    from lab5.importer import check

    counts, problems = check(options.root)
    for problem in problems:
        print(problem)
    counts = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    print(f"{options.root}: {counts or 'no'} sequences, {len(problems)} problem{'s' * (len(problems) != 1)}")
    return 1 if problems else 0


def _pack(options: argparse.Namespace) -> None:
    from lab5.packs import pack

    pack(options.root)
    print(f"packed into {options.root / 'packed'}")


def _train(options: argparse.Namespace) -> None:
    from lab5 import parallel
    from lab5.workbook import Workbook, open_book

    if options.source:
        book = _branch(options)
    else:
        book = open_book(options.preset, options.run, options.data)
        if options.settings:
            book = Workbook(PRESETS[options.preset].replace(**_changes(options.settings)), book.run, book.data)
    if options.processes > 1:
        book.prepare()
        chosen = [argument for setting in options.settings for argument in ("--set", setting)]
        parallel.launch(options.processes, ["train", "--preset", options.preset, "--run", str(book.run),
                                            "--data", str(book.data), *chosen])
        return
    history = book.train()
    if parallel.join().is_first:
        scored = [record["psnr"] for record in history if record["psnr"] is not None]
        print(f"{len(history)} epochs in {book.run}; best validation PSNR {max(scored):.2f} dB")
    parallel.leave()


def _watch(options: argparse.Namespace) -> None:
    from lab5.live import lines
    from lab5.workbook import open_book

    for line in lines(open_book(options.preset, options.run).run):
        print(line, flush=True)


def _branch(options: argparse.Namespace):
    """The run folder that begins with another run's best weights, on that run's data."""
    from lab5.training import branch
    from lab5.workbook import Workbook, open_book

    if not options.run:
        raise ValueError("--from needs --run, a new folder for the run that goes on from those weights")
    source = open_book(options.preset, options.source, options.data)
    return Workbook(branch(source.run, Path(options.run), **_changes(options.settings)), Path(options.run), source.data)


def _changes(settings: list[str]) -> dict:
    changes = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: expected NAME=VALUE")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value                               # a word, such as cyclical
    return changes


def _evaluate(options: argparse.Namespace) -> None:
    from lab5.report import summary
    from lab5.workbook import open_book

    print(summary(open_book(options.preset, options.run, options.data)))


def _demo(options: argparse.Namespace) -> None:
    from lab5.report import demo

    print(demo())


def _convert_checkpoint(options: argparse.Namespace) -> None:
    from lab5.convert import convert, save

    source = options.checkpoint
    converted = convert(source, options.condition, options.order, options.skip)
    path = save(converted, options.run or source.with_name(f"{source.stem}_lab5"))
    config = converted.model.config
    print(*converted.notes, f"{path}: width {config.width}, g {config.g_dim}, z {config.z_dim}, condition "
          f"{config.condition}, skips {config.skip}, {config.n_past} + {config.n_future} frames",
          f"lab5 evaluate --run {path.parent.resolve()} --data FOLDER scores it", sep="\n")


def _sweep(options: argparse.Namespace) -> None:
    from lab5 import sweep
    from lab5.workbook import open_book

    book = open_book(options.preset, options.run, options.data)
    swept = sweep.sweep(book, sweep.SWEEPS[options.choices], options.share, options.seeds)
    swept.write(book.run / "sweep.csv")
    print(f"{swept.table()}\n\n{book.run / 'sweep.csv'}")


def _report(options: argparse.Namespace) -> None:
    from lab5.report import build_pdf, find_details, run_report, summary

    details = find_details(options.details, student_id=options.id, name=options.name)
    book = run_report(options.preset, options.run, options.data, options.only)
    if not options.only:
        _print_rubric(*build_pdf(book, details))
    print(summary(book))


def _rubric(options: argparse.Namespace) -> int:
    from lab5.report import build_pdf, find_details
    from lab5.workbook import open_book

    details = find_details(options.details, student_id=options.id, name=options.name)
    return _print_rubric(*build_pdf(open_book(options.preset, options.run, options.data), details))


def _submit(options: argparse.Namespace) -> int:
    from lab5.report import build_pdf, find_details
    from lab5.submit import submit, verify
    from lab5.workbook import open_book

    details = find_details(options.details, student_id=options.id, name=options.name)
    book = open_book(options.preset, options.run, options.data)
    status = _print_rubric(*build_pdf(book, details))
    path = submit(book, details, options.to, options.weights)
    print(f"\n{path} ({path.stat().st_size / 1e6:.1f} MB), read back" + (
        "" if status == 0 else "; the list above says what a grader would miss"))
    if options.verify:
        verify(path)
        print("unpacked elsewhere, all of its notebooks run")
    return status


def _print_rubric(items: list, pages: dict[str, int]) -> int:
    from lab5.rubric import as_text

    print(as_text(items, pages))
    return 0 if all(item.ok for item in items) else 1


if __name__ == "__main__":
    sys.exit(main())
