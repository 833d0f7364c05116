"""Draws charts as SVG."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from tests.benchmarks.report.charts import Chart

COLOURS = [f"C{number}" for number in range(10)] * 4


def draw(found: Iterable[Chart], folder: Path) -> list[str]:
    """Writes a file for each chart that has curves; their names."""
    matplotlib.rcParams.update({"svg.hashsalt": "ringpost", "svg.fonttype": "none", "font.size": 9})
    names = []
    for chart in found:
        if not chart.curves:
            continue
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for (label, points), marker, colour in zip(chart.curves.items(), "osv^D<>pP*Xhd" * 4, COLOURS, strict=False):
            x, y, low, high = zip(*points, strict=True)
            around = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
            axes.errorbar(
                x, y, yerr=around, label=label, marker=marker, color=colour, markersize=4, linewidth=1, capsize=2
            )
        axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
        axes.set_xscale("log" if chart.log_x else "linear")
        axes.set_yscale("log" if chart.log_y else "linear")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        names.append(f"{chart.name}.svg")
        figure.savefig(folder / names[-1], metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return names
