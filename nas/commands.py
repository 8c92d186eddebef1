"""The commands of the service: what can be typed. What they do is imported once that is known to make sense, since
PyTorch, Ray and databases take their time.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from detector.command import Parser, config_options, count, guarded
from detector.presets import presets

MAX_SEED = 2**63 - 1  # what databases keep in a column
MOST_RUNS, MOST_PREPARATIONS = 10**6, 100  # that confirm


def search(argv: Sequence[str] | None = None) -> int:
    """nas-search."""

    def command() -> int:
        args = _search_parser().parse_args(argv)
        from nas import service

        return service.search(args)

    return guarded("nas-search", command, interrupted="interrupted; the same command continues")


def export(argv: Sequence[str] | None = None) -> int:
    """nas-export."""

    def command() -> int:
        args = _export_parser().parse_args(argv)
        from nas import export

        return export.export(args)

    return guarded("nas-export", command)


def report(argv: Sequence[str] | None = None) -> int:
    """nas-report."""

    def command() -> int:
        args = _report_parser().parse_args(argv)
        from nas import report

        return report.report(args)

    return guarded("nas-report", command)


def status(argv: Sequence[str] | None = None) -> int:
    """nas-status."""

    def command() -> int:
        args = _status_parser().parse_args(argv)
        from nas import status

        return status.status(args)

    return guarded("nas-status", command)


def stop(argv: Sequence[str] | None = None) -> int:
    """nas-stop."""

    def command() -> int:
        args = _stop_parser().parse_args(argv)
        from nas import ask

        return ask.stop(args)

    return guarded("nas-stop", command)


def control(argv: Sequence[str] | None = None) -> int:
    """nas-control."""

    def command() -> int:
        args = _control_parser().parse_args(argv)
        from nas import ask

        return ask.control(args)

    return guarded("nas-control", command)


def completion(argv: Sequence[str] | None = None) -> int:
    """nas-completion."""

    def command() -> int:
        args = _completion_parser().parse_args(argv)
        from nas import completion

        return completion.completion(args)

    return guarded("nas-completion", command)


def _search_parser() -> Parser:
    parser = Parser(
        "nas-search",
        "Search for a feature pyramid. The same command continues a study after any interruption.",
        {
            "nas-search": "on the built-in data set, in minutes on two cores",
            "nas-search --config my.yaml --data DIR": "on a data set in COCO form",
            "nas-search --set proxy.trial.steps=100": "with another value of a key (docs/configuration.md)",
            "nas-search --episodes 800": "extends a search of fewer episodes",
            "nas-search --study other --algorithm random": "a baseline beside it, in the same database",
        },
    )
    _study_options(parser)
    parser.add_argument("--config", default="shapes", metavar="NAME|FILE", help=f"{', '.join(presets())} or a file")
    config_options(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--episodes", type=count(1), default=400, metavar="N", help="in all, earlier runs included")
    parser.add_argument("--algorithm", choices=("reinforce", "random", "evolution"), help="who proposes")
    parser.add_argument("--prior", metavar="NAME|FILE|none", help="where to start: nas-fpn, fpn or a best.json")
    parser.add_argument(
        "--max-gflops", type=_positive, metavar="X", help="a pyramid above is drawn again, and never trained"
    )
    parser.add_argument("--max-params", type=count(1), metavar="N", help="refuse a search for larger pyramids")
    parser.add_argument(
        "--confirm",
        type=count(0, MOST_RUNS),
        metavar="N",
        help="runs of the best graphs with new seeds; default: episodes / 6",
    )
    parser.add_argument(
        "--confirm-preparations",
        type=count(0, MOST_PREPARATIONS),
        default=0,
        metavar="N",
        help="other preparations of the proxy that judge what was confirmed; each takes the time and disk of the first",
    )
    parser.add_argument("--seed", type=count(0, MAX_SEED), default=0, metavar="N", help="of the study")
    parser.add_argument(
        "--workers", type=count(1), metavar="N", help="trials at a time; default: what fits on GPUs or cores"
    )
    parser.add_argument("--gpus-per-trial", type=_share, metavar="X", help="default: 1, or 0 without a GPU")
    parser.add_argument("--trial-timeout", type=_positive, metavar="S", help="seconds after which a trial has failed")
    parser.add_argument("--address", metavar="ADDR", help="a running Ray cluster to join")
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="where to write its events: DIR/STUDY")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="no progress: only warnings and what was found")
    said.add_argument("--json", action="store_true", help="a line of JSON on standard output for each episode")
    said.add_argument("--verbose", action="store_true", help="show Ray's own messages")
    return parser


def _export_parser() -> Parser:
    parser = Parser(
        "nas-export",
        "Write found graphs as files that train-final takes.",
        {
            "nas-export --best": "what new seeds say is best, as best.json",
            "nas-export --top 5 --show": "five files, and drawings on the terminal",
            "nas-export --pareto front": "a file for each graph that none beats in both AP and cost",
            "nas-export --best --format torch": "a PyTorch module of its own, as best.py",
            "nas-export --episode 17 --picture 17.svg": "one graph, and its picture",
        },
        "--best|--top K|--pareto DIR|--episode N",
    )
    _study_options(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--best", action="store_true", help="the confirmed winner; unconfirmed, the highest reward")
    which.add_argument("--top", type=count(1), metavar="K", help="the K best graphs, as NAME-1.json to NAME-K.json")
    which.add_argument("--pareto", type=Path, metavar="DIR", help="the graphs that none beats in both AP and cost")
    which.add_argument("--episode", type=count(0), metavar="N", help="the graph of one episode")
    parser.add_argument(
        "--format",
        choices=("json", "torch", "onnx", "tensorflow"),
        default="json",
        help="json: what train-final takes; torch: a Python module that needs PyTorch only; onnx: the untrained "
        "pyramid, for programs that show or time it; tensorflow: the block specification of its model garden",
    )
    parser.add_argument(
        "--output", metavar="FILE|-", help="default: best.json, best.onnx, or best.py (torch, tensorflow); - prints it"
    )
    parser.add_argument("--show", action="store_true", help="draw each graph on the terminal, too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the best one, as .svg or .png")
    return parser


def _report_parser() -> Parser:
    parser = Parser(
        "nas-report",
        "Write one page about a search: what was found, how sure that is, and what to do next. Needs no network.",
        {
            "nas-report": "report.html; searches by --algorithm random beside it are its baseline",
            "nas-report --compare other third": "beside other searches of the same database",
        },
    )
    _study_options(parser)
    parser.add_argument("--compare", nargs="+", metavar="NAME", help="searches to set it beside")
    parser.add_argument("--output", type=Path, default=Path("report.html"), metavar="FILE", help="where it goes")
    return parser


def _status_parser() -> Parser:
    parser = Parser(
        "nas-status",
        "Say where a search stands. Reads only; safe while it runs.",
        {"nas-status": "one look", "nas-status --watch": "again and again", "nas-status --json": "for programs"},
    )
    _study_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on one line")
    parser.add_argument("--watch", action="store_true", help="again and again, until interrupted")
    parser.add_argument("--every", type=count(1), default=2, metavar="S", help="seconds between two looks of --watch")
    return parser


def _stop_parser() -> Parser:
    parser = Parser(
        "nas-stop",
        "End a search that runs; the same nas-search command continues it.",
        {"nas-stop": "once the running trials have ended", "nas-stop --now": "at once; they run again later"},
    )
    _study_options(parser)
    parser.add_argument("--now", action="store_true", help="end its trials, too; they run again later")
    return parser


def _control_parser() -> Parser:
    parser = Parser(
        "nas-control",
        "Pause a search that runs, continue it, skip an episode or try one again.",
        {
            "nas-control pause": "trials that run end, no more start",
            "nas-control continue": "goes on",
            "nas-control skip 17": "lets a running episode fail",
            "nas-control retry 17": "tries an episode again that failed",
        },
        "pause|continue|skip N|retry N",
    )
    _study_options(parser)
    parser.add_argument("action", choices=["pause", "continue", "skip", "retry"], help="skip and retry name an episode")
    parser.add_argument("episode", type=count(0), nargs="?", metavar="N", help="its number")
    return parser


def _completion_parser() -> Parser:
    parser = Parser(
        "nas-completion",
        "Print what lets a shell complete the options of every command here, for the Tab key.",
        {
            'eval "$(nas-completion bash)"': "for this shell; as a line of ~/.bashrc, for all to come",
            'eval "$(nas-completion zsh)"': "the same, in ~/.zshrc after compinit",
        },
        "bash|zsh",
    )
    parser.add_argument("shell", choices=["bash", "zsh"], help="which one it is")
    return parser


def _study_options(parser: Parser) -> None:
    parser.add_argument("--database", default="nas.db", metavar="FILE|URL", help="where results are kept")
    parser.add_argument("--study", type=_study_name, default="default", metavar="NAME", help="which search in it")


def _study_name(text: str) -> str:
    """Folders and actors are named after studies."""
    if not text.strip() or not text.isprintable() or "/" in text:
        raise argparse.ArgumentTypeError(f"{text!r} given, must be a name of printable characters, without slashes")
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} given, must be a number above 0")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value <= 1 or (value.is_integer() and value > 0)):
        raise argparse.ArgumentTypeError(f"{text} given, must be a share of a GPU (0 to 1) or a whole number")
    return value


PARSERS = {
    "nas-search": _search_parser,
    "nas-status": _status_parser,
    "nas-control": _control_parser,
    "nas-stop": _stop_parser,
    "nas-report": _report_parser,
    "nas-export": _export_parser,
    "nas-completion": _completion_parser,
}
