"""The Anatomy page's actions as named endpoints."""

from dflash.data.template import Rendered
from workbench.anatomy import Anatomy, AnatomySettings, dissect_row, explain_cell, summary
from workbench.anatomy_query import DEFAULTS
from workbench.anatomy_rows import Rows, built_in_rows, text_rows
from workbench.bench import Bench
from workbench.checks_view import Report
from workbench.checks_view import layer_check as run_layers
from workbench.checks_view import layers_record, leak_record
from workbench.checks_view import leak_test as run_leak
from workbench.endpoints import computing, register


def build(bench: Bench) -> None:
    """Register the endpoints in the open Blocks."""

    @computing
    def anatomy_plan(
        report: Report,
        conversation: str = "",
        num_anchors: int = 48,
        block_size: int = 8,
        gamma: float = 4.0,
        seed: int = 0,
        window: int = 0,
        block: int = 0,
        packing: bool = False,
        length: int = 2048,
        row: int = 1,
    ) -> dict:
        """Take conversations through the training pipeline: loss mask, anchors, one block's slots, tiles of the mask.

        `conversation` is JSON lines; empty takes a built-in one. `row` counts conversations, or packed rows, from 1.
        """
        rows = _rows(bench, conversation, packing, length)
        report("laying out")
        settings = AnatomySettings(num_anchors, block_size, gamma, seed, window or None)
        view = dissect_row(bench.target, rows.row(row), settings, length if packing else None)
        about = {"rows": len(rows.rows), "conversations": rows.conversations, "left_out": rows.complaints()}
        return summary(view, view.check_block(block)) | about

    @computing
    def anatomy_cell(
        report: Report,
        query: int,
        key: int,
        conversation: str = "",
        num_anchors: int = 48,
        block_size: int = 8,
        seed: int = 0,
        window: int = 0,
        packing: bool = False,
        length: int = 2048,
        row: int = 1,
    ) -> dict:
        """Whether draft slot `query` sees key `key` (the context's tokens, then the slots), and why, in words."""
        rows = _rows(bench, conversation, packing, length)
        report("laying out")
        settings = AnatomySettings(num_anchors, block_size, seed=seed, window=window or None)
        view: Anatomy = dissect_row(bench.target, rows.row(row), settings, length if packing else None)
        return explain_cell(view, query, key)

    @computing
    def leak_test(report: Report, draft: str = "") -> dict:
        """Change every feature, slot and token in turn: a block's output must not move with what it must not see."""
        return leak_record(run_leak(bench, draft, report=report))

    @computing
    def layer_check(report: Report, draft: str = "", conversations: str = "") -> dict:
        """Move a draft's features by one layer: it has to get worse.

        `conversations` are JSON lines, best not trained on; with fewer than four, built-in prompts take their place.
        """
        given = []
        if conversations.strip():
            rows = text_rows(bench.target, conversations, packing=False, length=512).rows
            given = [Rendered(row.ids[0], row.input_ids, row.loss_mask) for row in rows]
        return layers_record(run_layers(bench, draft, given, report=report))

    for endpoint in (anatomy_plan, anatomy_cell, leak_test, layer_check):
        register(endpoint)


def _rows(bench: Bench, conversation: str, packing: bool, length: int) -> Rows:
    if conversation.strip():
        return text_rows(bench.target, conversation, packing=packing, length=length)
    return built_in_rows(bench.target, DEFAULTS.conversation, packing=packing, length=length)
