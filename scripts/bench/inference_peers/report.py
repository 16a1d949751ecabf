"""Medians and ratios of what scripts/bench/inference gathered, as text, JSON lines and an SVG chart."""

import html
import json
import statistics

# metric, what it is called, True if more is better
METRICS = [
    ("prefill_tok_s_64", "prefill at 64, tokens/s", True),
    ("prefill_tok_s_256", "prefill at 256, tokens/s", True),
    ("prefill_tok_s_1024", "prefill at 1024, tokens/s", True),
    ("decode_tok_s", "decode, tokens/s", True),
    ("ttft_ms_256", "first token at 256, ms", False),
    ("call_ms_200_30", "call of 200 + 30, ms", False),
    ("load_ms", "load, ms", False),
    ("file_mb", "file, MB", False),
    ("anon_mb", "own memory, MB", False),
]


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def summarise(records):
    """[{metric, threads, engine, value: spread, ratio: spread of ours over it, better > 1}]."""
    by_round = {}
    for record in records:
        by_round.setdefault((record["threads"], record["engine"]), {})[record["round"]] = record["values"]
    figures = []
    for metric, _, more in METRICS:
        for (threads, engine), rounds in sorted(by_round.items()):
            ours = by_round.get((threads, "needle"), {})
            values = [v[metric] for v in rounds.values() if metric in v]
            if not values:
                continue
            figure = {"metric": metric, "threads": threads, "engine": engine, "value": spread(values)}
            ratios = []
            for number, theirs in rounds.items():
                own = ours.get(number, {}).get(metric, 0)
                if engine != "needle" and theirs.get(metric, 0) > 0 and own > 0:
                    ratios.append(own / theirs[metric] if more else theirs[metric] / own)
            if ratios:
                figure["ratio"] = spread(ratios)
            figures.append(figure)
    return figures


def json_lines(figures):
    return "\n".join(json.dumps(figure) for figure in figures)


def number(value):
    return "%.0f" % value if value >= 100 else "%.3g" % value


def table(figures):
    lines = ["Ratios say how many times better needle is, taken round by round: median (least - most)."]
    for metric, title, _ in METRICS:
        rows = [f for f in figures if f["metric"] == metric]
        if not rows:
            continue
        lines.append("\n%s" % title)
        for f in rows:
            value = f["value"]
            line = "  %d thread(s)  %-12s %10s  (%s - %s, %d rounds)" % (
                f["threads"], f["engine"], number(value["median"]), number(value["min"]), number(value["max"]), value["rounds"])
            if "ratio" in f:
                ratio = f["ratio"]
                line = "%-72s %7.2fx (%.2f - %.2f)" % (line, ratio["median"], ratio["min"], ratio["max"])
            lines.append(line)
    return "\n".join(lines)


def write_chart(figures, path):
    """Bars of the median ratios with their spread, a block a metric; logarithmic, 1 = as good as the peer."""
    import math
    shown = [(m, t) for m, t, _ in METRICS if m in ("prefill_tok_s_256", "prefill_tok_s_1024", "decode_tok_s", "call_ms_200_30")]
    rows, y = [], 40
    most = max([f["ratio"]["max"] for f in figures if "ratio" in f and f["metric"] in dict(shown)] + [10])
    scale = 520 / math.log10(most / 0.5)
    x_of = lambda ratio: 220 + scale * math.log10(max(ratio, 0.5) / 0.5)
    for metric, title in shown:
        rows.append('<text x="10" y="%d" font-weight="bold">%s</text>' % (y + 14, html.escape(title)))
        y += 22
        for f in (f for f in figures if f["metric"] == metric and "ratio" in f):
            ratio = f["ratio"]
            rows.append('<text x="20" y="%d">%s, %d thread%s</text>' % (y + 12, html.escape(f["engine"]), f["threads"], "s" if f["threads"] > 1 else ""))
            rows.append('<rect x="%.1f" y="%d" width="%.1f" height="12" fill="%s"/>' % (
                x_of(0.5), y + 2, x_of(ratio["median"]) - x_of(0.5), "#3b6ea5" if f["threads"] == 1 else "#7fb069"))
            rows.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#222"/>' % (x_of(ratio["min"]), x_of(ratio["max"]), y + 8, y + 8))
            rows.append('<text x="%.1f" y="%d">%.1fx</text>' % (x_of(ratio["max"]) + 6, y + 12, ratio["median"]))
            y += 18
        y += 10
    for tick in (0.5, 1, 2, 5, 10, 20, 50, 100):
        if tick <= most:
            rows.insert(0, '<line x1="%.1f" x2="%.1f" y1="30" y2="%d" stroke="%s"/><text x="%.1f" y="26" text-anchor="middle">%gx</text>' % (
                x_of(tick), x_of(tick), y, "#c33" if tick == 1 else "#ddd", x_of(tick), tick))
    with open(path, "w") as out:
        out.write('<svg xmlns="http://www.w3.org/2000/svg" width="820" height="%d" font-family="sans-serif" font-size="12">'
                  '<rect width="100%%" height="100%%" fill="white"/>%s</svg>\n' % (y + 10, "".join(rows)))
