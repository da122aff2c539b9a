"""The report's plots, as SVG inside its HTML: text stays text, and colours come from the page's style.

This module knows no metrics or systems. One unit of a plot is one CSS pixel.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOUR_KEYS = (
    *("muted", "rule", "better", "worse", "unclear"),
    *("tuned", "base", "champion", "nearest", "central", "random", "without_retrieval", "lookup"),
)
_COLOURS = {key: f"#0000{number:02x}" for number, key in enumerate(_COLOUR_KEYS, start=1)}
"""A stand-in colour for each key. ``_svg`` replaces it by the page's CSS variable of that name, so dark mode works."""

_WIDTH = 352  # one of the page's three columns, or the whole screen of a phone
_CHARACTER = 6.0  # about the width of a character


@dataclass(frozen=True)
class Mark:
    """A row of an interval plot. ``interval`` is (centre, low, high), None if there is no value; ``text`` is beside it."""

    label: str
    colour_key: str
    interval: tuple[float, float, float] | None
    text: str


@dataclass(frozen=True)
class Line:
    """A curve with an interval at each point."""

    colour_key: str
    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


def interval_picture(marks: Sequence[Mark], alt_text: str) -> str:
    """A dot with its interval for each mark, from top to bottom, on an axis that includes zero, with the text beside it."""
    row, foot, right = 22, 26, 64
    left = max(72.0, _CHARACTER * max(len(mark.label) for mark in marks) + 14)
    figure, axes = _axes(row * len(marks) + foot, left=left, right=right, bottom=foot, top=2)
    axes.axvline(0, color=_COLOURS["muted"], linewidth=1)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center_baseline"}
    inside = _WIDTH - left - right
    for y, mark in enumerate(marks):
        axes.text(-9 / inside, y, mark.label, **beside)
        axes.text(1 + (right - 1) / inside, y, mark.text, **beside)
        if mark.interval:
            centre, low, high = mark.interval
            axes.hlines(y, low, high, color=_COLOURS[mark.colour_key], linewidth=2.5, alpha=0.55)
            axes.plot(centre, y, "o", color=_COLOURS[mark.colour_key], markersize=6.5)
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=_COLOURS["rule"], linewidth=0.8)
    axes.locator_params(axis="x", nbins=4 if inside > 160 else 3)
    return _svg(figure, alt_text)


def lines_picture(lines: Sequence[Line], x_label: str, alt_text: str) -> str:
    """Curves on one axis, with a bar for the interval of each point."""
    figure, axes = _axes(236, left=34, right=6, bottom=42, top=6)
    span = max((max(line.x) - min(line.x) for line in lines), default=0)
    for number, line in enumerate(lines):
        # Shifted a little, so that bars at the same x do not cover each other.
        x = np.array(line.x) + (number - (len(lines) - 1) / 2) * span * 0.012
        axes.vlines(x, line.low, line.high, color=_COLOURS[line.colour_key], linewidth=2, alpha=0.45)
        axes.plot(x, line.y, "o-", color=_COLOURS[line.colour_key], linewidth=1.4, markersize=5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label)
    axes.grid(axis="y", color=_COLOURS["rule"], linewidth=0.8)
    axes.locator_params(nbins=6)
    return _svg(figure, alt_text)


def loss_picture(curve: Sequence[dict[str, float]], steps: int, before: float, after: float, alt_text: str) -> str:
    """The training loss by step with its running mean, and the validation losses ``before`` and ``after`` training.

    ``steps`` is the number of the last step.

    ``curve`` is a list of ``{"step", "loss"}``, empty if the training was too short to log a loss.
    """
    figure, axes = _axes(250, left=56, right=12, bottom=42, top=10, width=460)
    x, loss = (np.array([point[key] for point in curve]) for key in ("step", "loss"))
    axes.plot(x, loss, color=_COLOURS["muted"], linewidth=1, alpha=0.6)
    if len(curve):
        window = np.full(max(1, len(curve) // 8), 1 / max(1, len(curve) // 8))
        mean = np.convolve(x, window, "valid"), np.convolve(loss, window, "valid")
        axes.plot(*mean, color=_COLOURS["tuned"], linewidth=2)
    axes.plot([0, steps], [before, after], "D", color=_COLOURS["nearest"], markersize=7, clip_on=False, zorder=3)
    axes.set_xlim(0, steps)
    axes.margins(y=0.12)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.grid(axis="y", color=_COLOURS["rule"], linewidth=0.8)
    axes.locator_params(nbins=6)
    return _svg(figure, alt_text)


def as_image(svg: str) -> str:
    """A plot as a data URL, for places that the page's style does not reach. It has light colours on white."""
    light = re.search(r":root \{(.*?)\}", (Path(__file__).parent / "page.css").read_text(), re.S)
    assert light is not None
    style = f"<style>svg {{{light[1]} background: #fff; font: 11.5px sans-serif}} text {{fill: var(--ink)}}</style>"
    view_box = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert view_box is not None
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{view_box[1]}" height="{view_box[2]}" '
    standalone = svg.replace("<svg ", opening, 1).replace(">", f">{style}", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(standalone.encode()).decode()}"


def _axes(
    height: float, *, left: float, right: float, bottom: float, top: float, width: float = _WIDTH
) -> tuple["Figure", "Axes"]:
    """A figure with axes at these margins; at 72 dots per inch one point of the SVG is one pixel of the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_COLOURS["rule"])
    axes.tick_params(color=_COLOURS["rule"], labelcolor=_COLOURS["muted"], length=3)
    axes.xaxis.label.set_color(_COLOURS["muted"])
    axes.yaxis.label.set_color(_COLOURS["muted"])
    return figure, axes


def _svg(figure: "Figure", alt_text: str) -> str:
    """The figure as an ``<svg>`` element without references to other addresses. Equal figures give equal bytes."""
    import matplotlib
    from markupsafe import escape

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt_text}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    svg = f'<svg {view_box[0]} role="img" aria-label="{escape(alt_text)}">' + svg[svg.index(">") + 1 :]
    # Group ids repeat between plots, so they are removed. Ids that other elements refer to are unique hashes.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # it would apply to the whole page
    svg = re.sub(r"font-(?:size|family): [^;\"]*;? ?", "", svg)  # the page sets font and size
    for key, colour in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{key})")
    return svg
