"""`python -m benchmarks.science`: studies of GANs whose results stand beside published ones."""

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.science.runner import Runner, Study, failure, studies
from minigan.errors import MiniganError

RESULTS = Path(__file__).parent.parent / "results" / "science"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.science",
        description="Run studies, or go on with them: runs that are in the folder of results are not made again.",
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="which; all if none is named")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each kind; 5")
    parser.add_argument("--only", metavar="TEXT", help="only runs in whose line this text stands")
    parser.add_argument(
        "--quick", action="store_true", help="tiny runs that are not kept: does all of it work?"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets are; as MINIGAN_DATA")
    parser.add_argument("--results", metavar="DIR", help=f"folder of STUDY.jsonl and STUDY.md; {RESULTS}")
    parser.add_argument("--list", action="store_true", help="list the studies, and run none")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(name: str, study: Study, seeds: int, quick: bool, folder: str, only: str | None) -> int:
    """One study, and its exit code; its table is printed even if it ends early."""
    runner = Runner(name, study, seeds, quick, folder, _say, only or "")
    runner.announce()
    code = 0
    try:
        for _ in runner.run():
            pass
    except MiniganError as error:
        _say(f"{name}: {failure(error)}")
        code = 1
    except KeyboardInterrupt:
        _say(f"{name}: interrupted; the same command goes on after the runs that are finished")
        code = 130
    table = runner.table()
    if table:
        print(f"\n# {name}\n\n{table}\n", flush=True)
        if not quick:
            _say(f"{name}: written to {runner.report}")
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run the studies that are named, in turn; 0 if all are complete, 1 if one failed, 130 after Ctrl-C."""
    parser, known = _parser(), studies()
    options = parser.parse_intermixed_args(arguments)
    unknown = [name for name in options.studies if name not in known]
    if unknown:
        parser.error(f"no study {', '.join(unknown)}; there are {', '.join(known)}")
    if options.seeds < 1:
        parser.error(f"--seeds: {options.seeds}, expected at least 1")
    if options.quick and options.results:
        parser.error("--quick keeps nothing, so that --results has no use with it")
    if options.list:
        for name, study in known.items():
            print(f"{name}: {study.ABOUT}")
        return 0
    if options.data_dir:
        os.environ["MINIGAN_DATA"] = options.data_dir
    worst = 0
    with ExitStack() as stack:
        folder = options.results or str(RESULTS)
        if options.quick:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name in dict.fromkeys(options.studies or known):
            code = _run(name, known[name], options.seeds, options.quick, folder, options.only)
            if code == 130:
                return code
            worst = max(worst, code)
    return worst


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
