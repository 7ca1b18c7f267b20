"""One HTML file with everything: charts as inline SVG, tables, formulas; no scripts, no network, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from vllm_mxext.bench.serve.charts import Chart, distribution_charts, load_charts, timeline_charts
from vllm_mxext.bench.serve.compare import Comparison
from vllm_mxext.bench.serve.labels import LABELS
from vllm_mxext.bench.serve.report_data import (
    DISTRIBUTIONS,
    POINTS,
    Report,
    count,
    level_name,
    named_values,
    number,
    request_values,
    seconds,
    share,
)

_MAX_ROWS = 2000
"""Requests that the page lists at most; the JSON and the CSV have all."""

_ONLY_SOMETIMES = ("send_lag", "ttft_from_sending", "e2e_from_sending", "good", "cached", "steady")
"""Prefixes of figures that only some runs have, and that are left out of the others rather than shown as `n/a`."""

_STYLE = """\
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1b1f24;--soft:#5b6572;--line:#d9dee5;--good:#18794e;
--bad:#c62a2f;--s0:#2563c9;--s1:#d9730d;--s2:#128577}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--card:#1d2127;--text:#e8ebef;--soft:#9ba6b3;--line:#363d47;
--good:#4cc38a;--bad:#ff8589;--s0:#6ea8ff;--s1:#ffa057;--s2:#3ec9b4}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,"Noto Sans","Noto Sans CJK SC",sans-serif}
main{max-width:1240px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px}h3{font-size:14px;margin:0 0 8px}
p{margin:0 0 8px}.soft{color:var(--soft)}
.badge{display:inline-block;padding:2px 10px;border-radius:99px;border:1px solid currentColor;font-weight:600;
font-size:13px;margin:8px 8px 0 0}.good{color:var(--good)}.bad{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:20px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:22px;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}
svg{display:block;width:100%;height:auto;font:12px system-ui,"Noto Sans","Noto Sans CJK SC",sans-serif}
.grid{stroke:var(--line)}.axis{stroke:var(--soft)}.tick,.label{fill:var(--soft)}.label{font-size:12px}
.mark{stroke:var(--soft);stroke-dasharray:4 3}.marked{fill:var(--text);font-size:11px;
paint-order:stroke;stroke:var(--card);stroke-width:4px}
.stroke{fill:none;stroke-width:2;stroke-linejoin:round}.fill{opacity:.18}
.s0.stroke{stroke:var(--s0)}.s1.stroke{stroke:var(--s1)}.s2.stroke{stroke:var(--s2)}
.s0.fill,.s0.bar,.s0.dot{fill:var(--s0)}.s1.fill,.s1.bar,.s1.dot{fill:var(--s1)}.s2.fill,.s2.bar,.s2.dot{fill:var(--s2)}
.scroll{overflow-x:auto;max-height:560px;overflow-y:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,td.left{text-align:left}th{color:var(--soft);font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0;font-size:13px}
dt{font-weight:600}dd{margin:0}
details{margin-top:12px}summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font-size:12px;margin:8px 0 0;white-space:pre-wrap;overflow-wrap:anywhere}
@media (max-width:600px){dl{grid-template-columns:1fr}figure{overflow-x:auto}figure svg{min-width:520px}}
@media print{.scroll{max-height:none}.card,.tile{break-inside:avoid}}
"""


def to_html(report: Report) -> str:
    """Returns the page."""
    words, language = LABELS[report.language], "zh-CN" if report.language == "zh" else "en"
    model = report.result.model
    parts = [
        _head(report),
        _tiles(report),
        _section(words["stages"], _levels(report)) if len(report.stages) > 1 else "",
        _compared(words["compare"], report.comparisons, report),
        _compared(words["baseline"], report.baseline, report),
        _grid(words["latency_chart"], load_charts(report)),
        _grid(f"{words['distributions']} · {_main_name(report)}", distribution_charts(report)),
        _grid(words["timeline"], timeline_charts(report)),
        _section(words["table"], _figures(report)),
        _section(words["failures"], _failures(report)) if report.failures else "",
        _section(words["lag"], _client(report)) if report.lag else "",
        _section(words["notes"], _list(report.result.notes)) if report.result.notes else "",
        _section(words["formulas"], _definitions(report.formulas)),
        _section(words["environment"], _definitions(_flat(report.result.environment))),
        _section(words["plan"], _definitions(_flat(report.result.plan))),
        _requests(report),
    ]
    return (
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(words['log_title'])}: {escape(model)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _head(report: Report) -> str:
    words, result = LABELS[report.language], report.result
    server = result.plan.get("server", {})
    badges = [(words["valid"], "good") if result.is_valid else (words["invalid"], "bad")]
    if not report.has_answers:
        badges = [(words["nothing_answered"], "bad")]
    elif report.failures:
        badges.append((f"{words['failed']}: {count(report.failures.total())}", "bad"))
    if report.figures.goodput is not None and result.is_valid:
        badges.append((words["slo_missed"], "bad") if report.is_missed else (words["slo_met"], "good"))
    if report.is_sweep and report.best_good is not None and result.is_valid:
        badges.append((f"{words['best_good']}: {level_name(report.best_good.stage, report.language)}", "good"))
    if result.is_interrupted:
        badges.append((words["interrupted"], "bad"))
    shown = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for text, kind in badges)
    reasons = _list(result.invalid_reasons) if result.invalid_reasons else ""
    line = " · ".join(
        filter(None, (result.model, str(server.get("url", "")), result.started_at[:19].replace("T", " ")))
    )
    return f'<h1>{escape(words["log_title"])}</h1><p class="soft">{escape(line)}</p>{shown}{reasons}'


def _tiles(report: Report) -> str:
    words, values = LABELS[report.language], report.values
    tiles = [
        (words["output_throughput"], number(values["output_throughput"])),
        ("TTFT P50", seconds(values["ttft_median"])),
        ("TTFT P99", seconds(values["ttft_p99"])),
        ("TPOT P50", seconds(values["tpot_median"])),
        ("E2E P50", seconds(values["e2e_median"])),
        (words["failed"], f"{count(values['failed_requests'])} / {count(values['total_requests'])}"),
    ]
    if report.figures.goodput is not None:
        tiles.append((words["good_share"], share(report.figures.goodput.share)))
    cells = "".join(
        f'<div class="tile"><span class="soft">{escape(name)}</span><b>{text}</b></div>' for name, text in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _main_name(report: Report) -> str:
    stage = report.figures.stage
    level = level_name(stage, report.language)
    return f"{stage.server} · {level}" if report.is_comparison else level


def _grid(title: str, charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    cards = "".join(
        f'<figure class="card" style="margin:0"><h3>{escape(chart.title)}</h3>{chart.svg}</figure>' for chart in charts
    )
    return f'<h2>{escape(title)}</h2><div class="charts">{cards}</div>'


def _levels(report: Report) -> str:
    words = LABELS[report.language]
    rows = []
    for index, one in enumerate(report.stages):
        values = named_values(one)
        latencies = [seconds(values[f"{name}_{point}"]) for name in DISTRIBUTIONS[:3] for point in ("median", "p99")]
        knee = f" ({words['knee']})" if index == report.knee_index else ""
        rates = (number(values["output_throughput"]), number(values["request_throughput"]))
        rows.append(
            (
                f"{level_name(one.stage, report.language)}{knee}",
                one.stage.server,
                *rates,
                *latencies,
                count(values["failed_requests"]),
            )
        )
    names = [f"{name} {point}" for name in ("TTFT", "TPOT", "E2E") for point in ("P50", "P99")]
    sentence = f"<p>{escape(report.knee_sentence)}</p>" if report.knee else ""
    return sentence + _table(
        (words["stage"], words["server"], "tokens/s", words["rate"], *names, words["failed"]), rows
    )


def _figures(report: Report) -> str:
    words = LABELS[report.language]
    values = report.values
    rows = []
    for name in (*DISTRIBUTIONS, "chunk_gap", "token_gap"):
        written = number if name == "throughput" else seconds
        rows.append((words[name], *(written(values[f"{name}_{point}"]) for point in POINTS)))
    in_table = {f"{row}_{point}" for row in (*DISTRIBUTIONS, "chunk_gap", "token_gap") for point in POINTS}
    others = {
        name: "n/a" if value is None else f"{value:,.6g}"
        for name, value in values.items()
        if name not in in_table and not (value is None and name.startswith(_ONLY_SOMETIMES))
    }
    table = _table(("", *(words[point] for point in POINTS)), rows)
    return f'{table}<div style="margin-top:16px">{_pairs(others)}</div>'


def _failures(report: Report) -> str:
    rows = [(kind, str(times)) for kind, times in report.failures.items()]
    details = sorted({record.failure_detail for record in report.result.records if record.failure_detail})
    return _table((LABELS[report.language]["failures"], ""), rows) + _list(details[:20])


def _client(report: Report) -> str:
    words, lag = LABELS[report.language], report.lag
    assert lag is not None
    return _definitions(
        {
            words["loop_delay"]: seconds(lag.loop_delay_p99_s),
            words["send_lag"]: seconds(lag.send_lag_p99_s),
            words["cpu_share"]: share(lag.cpu_share),
        }
    )


def _compared(title: str, compared: Sequence[Comparison], report: Report) -> str:
    if not compared:
        return ""
    words = LABELS[report.language]
    rows = [
        (
            words[f"compared_{one.figure}"],
            f"{one.first:.4g}",
            f"{one.second:.4g}",
            f"{one.ratio:.3f}",
            f"{one.low:.3f} – {one.high:.3f}",
            words[one.verdict],
        )
        for one in compared
    ]
    header = (words["figure"], "A", "B", words["ratio"], words["interval"], words["verdict"])
    sentences = _list(one.sentence("A", "B", report.language) for one in compared)
    return _section(title, _table(header, rows) + sentences)


def _requests(report: Report) -> str:
    words = LABELS[report.language]
    shown = ("request_id", "stage", "ttft", "tpot", "e2e_latency", "throughput", "prompt_tokens", "completion_tokens")
    rows = []
    for record in report.result.records[:_MAX_ROWS]:
        values = request_values(record, report.compat)
        cells = (_cell(values[name]) for name in shown)
        rows.append((*cells, words["is_warmup"] if record.is_warmup else record.failure or record.finish_reason))
    total = len(report.result.records)
    more = f" ({_MAX_ROWS} / {total})" if total > _MAX_ROWS else f" ({total})"
    table = _table((*shown, ""), rows)
    return f"<details><summary>{escape(words['all_requests'])}{more}</summary>{_card(table)}</details>"


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{_card(body)}"


def _card(body: str) -> str:
    return f'<div class="card scroll">{body}</div>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _definitions(pairs: Mapping[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in pairs.items())}</dl>"


def _pairs(values: Mapping[str, str]) -> str:
    cells = "".join(
        f'<div><span class="soft">{escape(name)}</span> {escape(text)}</div>' for name, text in values.items()
    )
    style = "display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:2px 16px;font-size:13px"
    return f'<div style="{style}">{cells}</div>'


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{name}."))
        elif value not in (None, "", (), []):
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _cell(value: object) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
