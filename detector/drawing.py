"""Pictures for people: detections on an image, and precision over recall."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detector.targets import Detections

GOLDEN_RATIO = 0.6180339887  # hues this far apart stay apart, however many there are
Colour = tuple[int, int, int]


def colour_of(label: int) -> Colour:
    """One colour for each class; neighbours differ in hue, and every second one in lightness."""
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_RATIO % 1, 0.5 if label % 2 else 0.62, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: Image.Image, detections: Detections, classes: Sequence[str]) -> Image.Image:
    """A copy of the image with a box, class and score for each detection. Lines and letters grow with the image; a
    small one is drawn enlarged, so that its labels can be read."""
    enlarged = max(1, round(480 / max(image.size)))
    canvas = image.resize((image.width * enlarged, image.height * enlarged))
    pen = ImageDraw.Draw(canvas)
    side = max(canvas.size)
    width = max(2, round(side / 400))
    font = ImageFont.load_default(max(11, round(side / 60)))
    worst_first = detections.scores.argsort()
    labels = []
    for index in worst_first.tolist():
        label = int(detections.labels[index])
        x1, y1, x2, y2 = (enlarged * value for value in detections.boxes[index].tolist())
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour_of(label), width=width)
        labels.append((x1, y1, label, f"{classes[label]} {detections.scores[index]:.2f}"))
    for x, y, label, text in labels:  # above all boxes, the best on top
        _write(pen, (x, y), text, colour_of(label), font, canvas.size)
    return canvas


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """Text on a ground of its own, above the corner where there is room, inside the picture in any case."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(0.0, corner[0]), max(0.0, size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], max(0.0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    pen.text((x + 2 - left, y + 2 - top), text, fill="black" if brightness > 140 else "white", font=font)


def draw_precision_recall(precision: NDArray[np.float64], path: Path) -> None:
    """Precision (3, 101) over recall, as detector.evaluate.Evaluation has it, to a PNG."""
    from matplotlib.figure import Figure

    recall = np.linspace(0, 1, precision.shape[1])
    figure = Figure(figsize=(5.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for curve, name, style in zip(precision, ("0.5", "0.75", "0.5 to 0.95"), ("-", "--", ":"), strict=True):
        axes.plot(recall, curve, style, lw=1.8, label=f"IoU {name}: AP {curve.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision, mean over classes", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
