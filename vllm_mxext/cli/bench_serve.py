"""`mxext bench serve` and the documented performance tools: flags and files, one run, its comparisons and outputs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vllm_mxext.bench.serve.compare import Comparison, check_comparable, compare, differences
from vllm_mxext.bench.serve.console import documented_block, format_comparison, further_block
from vllm_mxext.bench.serve.history import History, format_history
from vllm_mxext.bench.serve.labels import LABELS, Language, language_of
from vllm_mxext.bench.serve.plan import OutputPlan, Plan
from vllm_mxext.bench.serve.plan_reading import add_plan_arguments, plan_from_arguments, read_plan
from vllm_mxext.bench.serve.report_data import Report
from vllm_mxext.bench.serve.result import RunResult
from vllm_mxext.bench.serve.saving import save_outputs
from vllm_mxext.cli.bench_progress import measure
from vllm_mxext.cli.connection import Connection
from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import ConfigError

EXIT_FAILED = 1
EXIT_MISSED = 3
EXIT_INVALID = 4
EXIT_INTERRUPTED = 130

EPILOG = """\
exit codes:
  0    done
  1    nothing was answered, a result could not be saved, or another error
  2    wrong option, file or value
  3    objectives missed (--slo...), or a regression (--baseline)
  4    the measurement is invalid, or could not be compared; the reasons are printed
  130  interrupted with Ctrl-C; what was measured until then was saved
"""
"""Shown at the end of `--help`."""

_ALIASES = {
    "--input-len": "workload.input_tokens",
    "--output-len": "workload.output_tokens",
    "--shared-prefix": "workload.shared_prefix_tokens",
    "--ramp": "load.ramp_to",
    "--lang": "output.language",
}
"""Names that other commands and tools have for an option -> the option; hidden from `--help`."""

_OBJECTIVES = {"ttft": "slo.ttft_ms", "tpot": "slo.tpot_ms", "e2el": "slo.e2e_ms", "e2e": "slo.e2e_ms"}
"""Name of an objective, ours or vLLM's -> option."""


def run(argv: Sequence[str], prog: str = "mxext bench serve", *, asks_for_model: bool = True) -> int:
    """Measures a server; returns the exit code.

    Args:
        argv: flags; they override the values of a file that `--config FILE` names.
        prog: the program's name in its help.
        asks_for_model: whether the server is asked for its first model if none is named.

    Raises:
        ConfigError: a wrong option, file or value.
    """
    parser = _parser(prog, asks_for_model=asks_for_model)
    arguments = parser.parse_args(argv)
    base = read_plan(Path(arguments.config)) if arguments.config else Plan()
    language = language_of(getattr(arguments, "output.language") or base.output.language)
    if arguments.show_history:
        print(format_history(History().runs(), language))
        return 0
    given = arguments.compare or []
    are_urls = [text.startswith(("http://", "https://")) for text in given]
    if len(given) > 2 or (len(given) == 2 and any(are_urls)):
        raise ConfigError("--compare takes one address, one JSON file, or two JSON files.")
    if len(given) == 2:
        return _compare_files(Path(given[0]), Path(given[1]), language)
    other = None
    if given and are_urls[0]:
        setattr(arguments, "server.compare_url", given[0])
    elif given:
        other = _earlier(RunResult.read(Path(given[0])), f"'{given[0]}'")
    _set_objectives(arguments)
    if asks_for_model and not base.server.model and getattr(arguments, "server.model") is None:
        setattr(arguments, "server.model", "unknown")
        plan_from_arguments(arguments, base)  # mistakes are reported before the server is asked
        setattr(arguments, "server.model", _first_model(arguments, base))
    plan = plan_from_arguments(arguments, base)
    _check_outputs(plan.output)
    name = plan.output.baseline
    baseline = _earlier(History().baseline(name), f"The baseline '{name}'") if name else None
    result = measure(plan)
    if not result.records:
        print("mxext: interrupted before the first answer.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return _finish(result, plan, baseline, other)


def run_config(argv: Sequence[str], prog: str) -> int:
    """Measures a server as a YAML file describes; returns the exit code.

    Raises:
        ConfigError: a wrong option, file or value.
    """
    if argv and not argv[0].startswith("-"):
        return run(["--config", *argv], prog, asks_for_model=False)
    parser = Parser(
        prog=prog,
        description="Measure a server as a YAML file describes; every flag of performance_tester may follow the file.",
    )
    parser.add_argument("file", metavar="FILE", help="sections server, test_params, prompts, output and others")
    if not {"-h", "--help"}.isdisjoint(argv):
        parser.print_help()
        return 0
    raise ConfigError(f"The file comes first: {prog} FILE [flags].")


def _parser(prog: str, *, asks_for_model: bool) -> Parser:
    model = "without --model the server's first model" if asks_for_model else "--model is needed"
    parser = Parser(
        prog=prog,
        usage=f"%(prog)s {'[--model MODEL]' if asks_for_model else '--model MODEL'} [options]",
        description=f"Measure a running server; {model}.",
        epilog=EPILOG,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the options in sections; flags override it")
    add_plan_arguments(parser)
    parser.add_argument(
        "--goodput",
        nargs="+",
        metavar="NAME:MS",
        help="objectives in milliseconds, as in vLLM: ttft:200 tpot:50 e2el:5000",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="URL|FILE",
        help="compare with a second server, measured alternately, or with an earlier run's JSON; two JSON files are "
        "compared without measuring",
    )
    parser.add_argument(
        "--history", dest="show_history", action="store_true", help="print the table of earlier runs and exit"
    )
    parser.add_argument("--url", dest="server.url", metavar="URL", default=None, help="the same as --server-url")
    for alias, dest in _ALIASES.items():
        parser.add_argument(alias, dest=dest, default=None, help=argparse.SUPPRESS)
    return parser


def _first_model(arguments: argparse.Namespace, base: Plan) -> str:
    url = getattr(arguments, "server.url") or base.server.url
    variable = getattr(arguments, "server.api_key_env") or base.server.api_key_env
    with Connection(url, os.environ.get(variable)) as connection:
        return connection.first_model()


def _set_objectives(arguments: argparse.Namespace) -> None:
    """Translates `--goodput ttft:200` and `--slo ttft=200,tpot=50` into the options that mean the same."""
    given = list(arguments.goodput or ())
    preset = getattr(arguments, "slo.preset")
    if preset and "=" in preset:
        given += preset.split(",")
        setattr(arguments, "slo.preset", None)
    for item in given:
        name, _, milliseconds = item.replace("=", ":").partition(":")
        if name not in _OBJECTIVES:
            raise ConfigError(f"An objective is written ttft:200, tpot:50 or e2el:5000 (milliseconds); got '{item}'.")
        setattr(arguments, _OBJECTIVES[name], milliseconds)


def _check_outputs(output: OutputPlan) -> None:
    """Checks before the measurement that every output file can be written.

    Raises:
        ConfigError: one cannot.
    """
    for text in (output.json, output.csv, output.prometheus, output.html):
        path = Path(text)
        if text and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise ConfigError(
                f"'{text}' cannot be written; name a file in a folder that exists and that you may write."
            )
    if output.run_name:
        History().result_path(output.run_name)


def _earlier(result: RunResult, name: str) -> Report:
    """Returns the report of an earlier run, after checking, before anything is measured, that it can be compared with.

    Raises:
        ConfigError: it is damaged, or cannot be compared with.
    """
    report = _report(result, name)
    check_comparable(result, name)
    try:
        compare(report.blocks, report.blocks)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be compared with: {error}") from None
    return report


def _report(result: RunResult, name: str) -> Report:
    try:
        report = Report.of(result)
        _ = report.blocks, report.values
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"{name} is damaged ({error}); write it again with --json.") from None
    return report


def _finish(result: RunResult, plan: Plan, baseline: Report | None, other: Report | None) -> int:
    """Compares, shows and saves; returns the exit code."""
    output = plan.output
    language = language_of(output.language)
    report = Report.of(result, language=language)
    compared = _compared(report, plan, other)
    against = _comparisons(baseline, report, language) if baseline else ()
    report = dataclasses.replace(report, comparisons=compared, baseline=against)
    saved = save_outputs(report, output)
    if output.console_output:
        print(documented_block(report))
        if saved.paths:
            print("\n" + "\n".join(f"{LABELS[language]['saved']}: {path}" for path in saved.paths))
        print(f"\n{further_block(report)}")
    for sentence in (*saved.notices, *saved.problems):
        print(f"mxext: {sentence}", file=sys.stderr)
    if not any(one.num_ok for one in report.stages) and not result.is_interrupted:
        detail = next((one.failure_detail for one in result.records if one.failure_detail), "")
        print(f"mxext: No request was answered{f': {detail}' if detail else '.'}", file=sys.stderr)
    return _exit_code(report, plan, is_saved=not saved.problems, is_compared=other is None or bool(compared))


def _exit_code(report: Report, plan: Plan, *, is_saved: bool, is_compared: bool) -> int:
    words = LABELS[report.language]
    regressions = [one for one in report.baseline if one.is_regression(plan.output.max_regression / 100)]
    if report.result.is_interrupted:
        return EXIT_INTERRUPTED
    if not report.has_answers or not is_saved:
        return EXIT_FAILED
    has_comparison = is_compared and (bool(report.comparisons) or not plan.server.compare_url)
    if not report.result.is_valid or not has_comparison or (plan.output.baseline and not report.baseline):
        return EXIT_INVALID  # the reason has been printed
    for one in regressions:
        sentence = one.sentence(words["the_baseline"], words["this_run"], report.language)
        print(f"{words['regression']}: {sentence}", file=sys.stderr)
    if plan.output.baseline and not regressions:
        print(f"{words['no_regression']}.", file=sys.stderr)
    return EXIT_MISSED if regressions or report.is_missed else 0


def _compared(report: Report, plan: Plan, other: Report | None) -> tuple[Comparison, ...]:
    """Compares the two servers of the run, or the run (A) with an earlier one (B); empty if there is no other."""
    if other is not None:
        return _comparisons(report, other, report.language)
    if not plan.server.compare_url:
        return ()
    try:
        check_comparable(report.result, "This run")
        return compare(report.turns(plan.server.name), report.turns(plan.server.compare_name), is_paired=True)
    except ConfigError as error:
        print(f"mxext: {error}", file=sys.stderr)
        return ()


def _compare_files(first: Path, second: Path, language: Language) -> int:
    one, other = (_report(RunResult.read(path), f"'{path}'") for path in (first, second))
    compared = _comparisons(one, other, language)
    if not compared:
        return EXIT_INVALID
    print(format_comparison(LABELS[language]["compare"], compared, language))
    return 0


def _comparisons(first: Report, second: Report, language: Language) -> tuple[Comparison, ...]:
    """Compares two runs; prints why and returns nothing if that is not possible."""
    try:
        for report, name in ((first, "The first run"), (second, "The second run")):
            check_comparable(report.result, name)
        compared = compare(first.blocks, second.blocks)
    except ConfigError as error:
        print(f"mxext: {error}", file=sys.stderr)
        return ()
    for sentence in differences(first.result, second.result, language):
        print(f"mxext: {sentence}", file=sys.stderr)
    return compared
