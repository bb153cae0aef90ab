"""Draws bench/growth.csv as SVG:  plot.py [CSV [DIRECTORY]]

The same points give the same bytes: no date, no random ids.
"""

import csv
import os
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({
    "svg.hashsalt": "dgen",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "figure.figsize": (7, 4),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "lines.marker": "o",
    "legend.frameon": False,
})
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))

# of each plot: title, both axes, and whether they are logarithmic
PLOTS = {
    "servers": ("Calls by 16 clients", "servers", "calls a second", True, False),
    "mailbox": ("A message to a server that has others waiting", "messages waiting",
                "microseconds a message", True, True),
    "state": ("One element of a state changed, 1 client", "bytes of the state",
              "milliseconds", True, True),
    "workers": ("Calls to 1,000 servers by 64 clients", "workers", "calls a second", False, True),
    "clients": ("Calls by number of clients", "clients", "calls a second", True, True),
}

# what one would write by hand stands back
STYLES = {False: ["#1f5fa8", "#d9662b", "#3b8f4f"], True: ["#777777", "#aaaaaa"]}


def read(path):
    """{plot: {series: [(x, y)]}}"""
    plots = {}
    with open(path, newline="") as f:
        for row in csv.DictReader(line for line in f if not line.startswith("#")):
            points = plots.setdefault(row["plot"], {}).setdefault(row["series"], [])
            points.append((float(row["x"]), float(row["y"])))
    return plots


def number(x, _):
    return "{:,.0f}".format(x) if x >= 1 else "%g" % x


def draw_one(name, series, directory):
    title, xlabel, ylabel, logx, logy = PLOTS[name]
    figure, axes = plt.subplots()
    used = {False: 0, True: 0}
    for what, points in series.items():
        by_hand = what.startswith("UPDATE")
        color = STYLES[by_hand][used[by_hand] % len(STYLES[by_hand])]
        used[by_hand] += 1
        axes.plot(*zip(*points), label=what, color=color, linestyle="--" if by_hand else "-")
    if logx:
        axes.set_xscale("log", base=2 if name == "clients" else 10)
    if logy:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    if not logx:
        axes.set_xticks(sorted({x for points in series.values() for x, _ in points}))
    axes.xaxis.set_major_formatter(FuncFormatter(number))
    axes.yaxis.set_major_formatter(FuncFormatter(number))
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    figure.savefig(os.path.join(directory, name + ".svg"), metadata={"Date": None})
    plt.close(figure)


def draw(path, directory):
    os.makedirs(directory, exist_ok=True)
    for name, series in read(path).items():
        draw_one(name, series, directory)


if __name__ == "__main__":
    draw(*(sys.argv[1:] + [os.path.join(HERE, "growth.csv"),
                           os.path.join(HERE, "..", "doc", "plots")][len(sys.argv) - 1:]))
