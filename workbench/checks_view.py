"""The two gates of the Anatomy page, run on the bench's models, and their results in the form the page shows."""

import html
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from dflash.checks.layers import Difference, LayersReport, check_layers
from dflash.checks.leak import LeakReport, check_leak
from dflash.checks.texts import answered_prompts
from dflash.data.template import Rendered, render
from dflash.model.loading import load_draft
from dflash.target import TargetModel
from workbench.bench import SHIPPED, Bench

_LARGEST_IN_FP32 = 1_000_000_000  # parameters of a target that is loaded a second time for the leak test
_MIN_CONVERSATIONS = 4
_MAX_CONVERSATIONS = 64

Report = Callable[[str], None]


def leak_test(bench: Bench, draft_name: str, *, report: Report = lambda words: None) -> LeakReport:
    """`dflash check leak` for a draft, in fp32 where the target is small enough to be loaded once more.

    `report` gets words about the progress; what it raises ends the test.

    Raises:
        UserError: the draft cannot be loaded or is damaged.
    """
    report("Loading the target in float32 …")
    target = _exact_target(bench)
    draft = load_draft(_name(bench, draft_name), target)

    def on_case(done: int, total: int) -> None:
        report(f"Every input is changed in turn: combination {done + 1} of {total} …")

    with warnings.catch_warnings():
        # On a CPU FlexAttention runs uncompiled, which is slow and exact: what is wanted here.
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return check_leak(draft, target, progress=False, on_case=on_case)


def layer_check(
    bench: Bench, draft_name: str, given: Sequence[Rendered] = (), *, report: Report = lambda words: None
) -> LayersReport:
    """`dflash check layers` for a draft, on the given conversations, or on built-in prompts where they are too few.

    Raises:
        UserError: the draft cannot be loaded, or its layers have no neighbours.
    """
    report("Loading target and draft …")
    engine = bench.engine(draft_name)
    target = engine.target
    usable = [item for item in given if item.supervised >= 2][:_MAX_CONVERSATIONS]
    if len(usable) < _MIN_CONVERSATIONS:
        report("The target answers 16 built-in prompts …")
        usable = [render(item, target.tokenizer, 512) for item in answered_prompts(target)]

    def on_text(done: int, total: int) -> None:
        report(f"Features of the layers and of their neighbours: text {done + 1} of {total} …")

    return check_layers(engine.draft, target, usable, progress=False, on_text=on_text)


def leak_record(report: LeakReport) -> dict[str, Any]:
    """The leak test as JSON-safe data."""
    return {"passed": report.passed, "reason": report.reason, **asdict(report)}


def layers_record(report: LayersReport) -> dict[str, Any]:
    """The layer check as JSON-safe data."""
    return {"passed": report.passed, "reason": report.reason, **asdict(report)}


def leak_html(report: LeakReport) -> str:
    """The leak test as a verdict and a table."""
    outside = max(case.outside for case in report.cases)
    inside = min(case.inside for case in report.cases)
    words = (
        f"No block reacts to what it must not see (largest change {outside:g}), and each reacts to all that it must "
        f"see (smallest change {inside:.2g})."
        if report.passed
        else report.reason
    )
    rows = [
        [
            case.form,
            "none" if case.window is None else f"{case.window} tokens",
            case.depth,
            case.changed,
            f"{case.outside:g}",
            f"{case.inside:.2g}",
            "passed" if case.passed else f"{case.violations} violations",
        ]
        for case in report.cases
    ]
    columns = ["attention", "window", "draft", "changed", "largest change outside", "smallest change inside", ""]
    about = f"{len(rows)} combinations, {report.dtype}, tolerance {report.tolerance:g}"
    return _shown("leak", report.passed, words, columns, rows, about)


def layers_html(report: LayersReport) -> str:
    """The layer check as a verdict and a table."""
    lowest = min(row.loss_increase.low for row in report.rows if row.loss_increase)
    words = (
        f"The draft's own layers are best: the loss of the others is higher by at least {lowest:.3f} (95 %)."
        if report.passed
        else report.reason
    )
    rows = [
        [
            f"{row.offset:+d}" if row.offset else "0 (its own)",
            ", ".join(map(str, row.layer_ids)),
            f"{row.loss:.3f}",
            f"{row.tau_estimate:.2f}",
            f"{row.first_slot_accuracy:.0%}",
            _interval(row.loss_increase),
            _interval(row.tau_decrease),
        ]
        for row in report.rows
    ]
    columns = ["offset", "target layers", "loss", "τ estimate", "slot 1 right", "loss higher by", "τ lower by"]
    left_out = "".join(f"; offset {offset:+d} lies outside the target" for offset in report.skipped_offsets)
    about = f"{report.conversations} conversations, {report.blocks:,} blocks, 95 % intervals{left_out}"
    return _shown("layers", report.passed, words, columns, rows, about)


def message_html(words: str, *, bad: bool = False) -> str:
    """A sentence about a check that is under way or could not be run."""
    return f'<p class="df-status{" bad" if bad else ""}" role="status">{html.escape(words)}</p>'


def _shown(kind: str, passed: bool, words: str, columns: list[str], rows: list[list[str]], about: str) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    mark = '<b class="df-same">✓ passed</b>' if passed else '<b class="df-other">≠ failed</b>'
    return (
        f'<div class="df-verdict" data-check="{kind}" data-passed="{str(passed).lower()}"><p role="status">{mark} '
        f'{html.escape(words)}</p><div class="df-scroll df-table" tabindex="0" role="region" '
        'aria-label="Results, scrolls sideways">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="df-note">{html.escape(about)}</p></div>'
    )


def _interval(difference: Difference | None) -> str:
    return f"{difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]" if difference else "–"


def _exact_target(bench: Bench) -> TargetModel:
    target = bench.target
    size = sum(parameter.numel() for parameter in target.model.parameters())
    if str(target.dtype) == "torch.float32" or size > _LARGEST_IN_FP32:
        return target
    return TargetModel.load(bench.target_name, dtype="float32", device=target.device)


def _name(bench: Bench, draft_name: str) -> str | None:
    name = (draft_name or bench.draft_name).strip()
    return None if name == SHIPPED else name
