"""The detector's commands: what can be typed. What they do is imported once that is known to make sense, since PyTorch
takes seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from detector.architecture import PRIORS
from detector.choices import CascadeTest, Fusion, Nms
from detector.command import Parser, config_options, count, guarded, share
from detector.presets import DEFAULT_CONFIG, presets


def train_final(argv: Sequence[str] | None = None) -> int:
    """train-final."""

    def command() -> int:
        args = _train_final_parser().parse_args(argv)
        from detector import train_final

        return train_final.train_final(args)

    return guarded("train-final", command, interrupted="interrupted; the same command goes on where it was")


def eval_final(argv: Sequence[str] | None = None) -> int:
    """eval-final."""

    def command() -> int:
        args = _eval_final_parser().parse_args(argv)
        from detector import eval_final

        return eval_final.eval_final(args)

    return guarded("eval-final", command)


def detect(argv: Sequence[str] | None = None) -> int:
    """detect."""

    def command() -> int:
        args = _detect_parser().parse_args(argv)
        from detector import detect

        return detect.detect(args)

    return guarded("detect", command)


def export_final(argv: Sequence[str] | None = None) -> int:
    """export-final."""

    def command() -> int:
        args = _export_final_parser().parse_args(argv)
        from detector import export_final

        return export_final.export_final(args)

    return guarded("export-final", command)


def _train_final_parser() -> Parser:
    parser = Parser(
        "train-final",
        "Train the full Cascade R-CNN with a found pyramid, and evaluate it. The same command goes on after any stop.",
        {
            "train-final --arch best.json": "with the configuration that the search had",
            "train-final --arch best.json --data DIR --dry-run": "checks all of it, tries a step, says how long",
            "train-final --arch nas-fpn --config coco --data DIR": "the published pyramid, on COCO",
            "train-final --arch best.json --data DIR --workers 8": "eight processes, a GPU each",
        },
    )
    graph = f"best.json, or a published graph ({', '.join(PRIORS)}); without it the plain FPN is trained"
    parser.add_argument("--arch", metavar="FILE|NAME", help=graph)
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"{', '.join(presets())} or a YAML file; default: what FILE was found with, else {DEFAULT_CONFIG}",
    )
    config_options(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--init", type=Path, metavar="FILE", help="start from this model.pt; its classes may differ")
    parser.add_argument("--output", type=Path, default=Path("runs/final"), metavar="DIR", help="where results go")
    parser.add_argument(
        "--checkpoint-minutes",
        type=count(0),
        default=10,
        metavar="N",
        help="how often to write what a restart goes on from; 0: after every step",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check data, graph, memory and a step, say what would happen, and end"
    )
    _quiet_option(parser)
    together = parser.add_argument_group("several processes, through Ray Train")
    together.add_argument("--workers", type=count(1), default=1, metavar="N", help="processes that share each batch")
    together.add_argument(
        "--gpus-per-worker", type=count(0, 1), metavar="N", help="default: 1 if there are any; 0 also alone"
    )
    together.add_argument("--address", metavar="ADDR", help="a running Ray cluster to join")
    together.add_argument("--verbose", action="store_true", help="show what Ray has to say")
    return parser


def _eval_final_parser() -> Parser:
    parser = Parser(
        "eval-final",
        "Evaluate weights of train-final.",
        {
            "eval-final --weights runs/final/model.pt": "on the validation split",
            "eval-final --weights FILE --nms gaussian --flip": "with Soft-NMS, and mirrored images, too",
            "eval-final --weights A --weights B": "two models as one, by weighted boxes fusion",
        },
        "--weights FILE",
    )
    _weights_option(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in COCO form")
    parser.add_argument("--split", default="val", metavar="NAME", help="which part of it")
    _testing_options(parser)
    _quiet_option(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/eval"), metavar="DIR", help="where results go")
    return parser


def _detect_parser() -> Parser:
    parser = Parser(
        "detect",
        "Find objects in pictures: a copy of each with boxes, and detections.json for all.",
        {
            "detect --weights runs/final/model.pt photo.jpg": "one picture",
            "detect --weights FILE photos/ --threshold 0.5": "a folder, and only what is fairly sure",
            "detect --weights A --weights B photo.jpg": "two models as one, by weighted boxes fusion",
        },
        "--weights FILE PATH [PATH ...]",
    )
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PATH", help="pictures, or folders of them")
    _weights_option(parser)
    _quiet_option(parser)
    parser.add_argument("--threshold", type=share, default=0.3, metavar="X", help="least score of what is shown")
    _testing_options(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/detect"), metavar="DIR", help="where results go")
    return parser


def _export_final_parser() -> Parser:
    parser = Parser(
        "export-final",
        "Write trained weights as a torch.export program, checked against the model.",
        {"export-final --weights runs/final/model.pt --size 800 1344": "for images of that size"},
        "--weights FILE",
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a model.pt of train-final")
    parser.add_argument(
        "--size", type=count(32), nargs=2, metavar=("H", "W"), help="of the images it takes; default: those of training"
    )
    parser.add_argument("--output", type=Path, default=Path("model.pt2"), metavar="FILE", help="where it goes")
    return parser


def _quiet_option(parser: Parser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress: only warnings and what came of it")


def _weights_option(parser: Parser) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="a model.pt of train-final; given again, all are one ensemble",
    )


def _testing_options(parser: Parser) -> None:
    """What is not given stays as the weights' own configuration has it."""
    parser.add_argument("--cascade-test", choices=get_args(CascadeTest), help="at which boxes the stages score")
    parser.add_argument("--nms", choices=get_args(Nms), help="hard, or Soft-NMS: linear or gaussian")
    parser.add_argument("--scales", type=count(1), nargs="+", metavar="PX", help="short sides at which images are seen")
    parser.add_argument("--flip", action="store_true", default=None, help="see every image mirrored, too")
    parser.add_argument("--fuse", choices=get_args(Fusion), help="how boxes of an ensemble are merged (default: wbf)")


PARSERS = {
    "train-final": _train_final_parser,
    "eval-final": _eval_final_parser,
    "detect": _detect_parser,
    "export-final": _export_final_parser,
}
