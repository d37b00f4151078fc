"""Who reacts to whom: every input is changed in turn, and every block's output is watched.

What a block must not see may not move its output at all: masked keys get a weight of exactly 0, so the tolerance is 0.
What it must see has to move it. Features and slots are changed directly, for each form of the masked attention, with
and without a sliding window; tokens are changed in front of the real target, which covers everything between.

Shapes: B rows, S tokens, N blocks, K slots, n target features, E hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from tqdm import tqdm

from dflash.blocks.attention import ATTENTION_FORMS, default_attention_form
from dflash.blocks.plan import BlockPlan, lay_out
from dflash.checks.visibility import Block, must_see_context, must_see_slot, must_see_token, why_hidden
from dflash.data.batch import collate
from dflash.data.rows import Row
from dflash.errors import UserError
from dflash.features.in_process import InProcessFeatures
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

TOLERANCE = 0.0  # largest change of an output by something it must not see
_TOGETHER = 16  # changes tried in one forward, each on rows of its own
_SHOWN = 5  # complaints of a case that are kept
_DEFAULT_WINDOW = 6  # tokens; shorter than the test's documents, so that it hides something
# A packed row of three documents beside a row of one document and padding. Anchors (row index, kept): a document's
# first token, which sees nothing, its last one, whose block runs past the end, and a dropped one.
_STARTS = ((0, 11, 17), (0,))
_LENGTHS = (26, 20)
_ANCHORS = (((4, True), (11, True), (14, True), (25, True)), ((1, True), (9, True), (18, True), (0, False)))

@dataclass(frozen=True)
class LeakCase:
    """One combination. `outside` is the largest change by what must not be seen, `inside` the smallest by what must."""

    form: str
    window: int | None
    depth: str  # "first layer" | "all layers"
    changed: str  # "features and slots" | "tokens"
    outside: float
    inside: float
    violations: int
    complaints: tuple[str, ...]  # the first few of them, in words

    @property
    def passed(self) -> bool:
        return self.violations == 0


@dataclass(frozen=True)
class LeakReport:
    """All combinations; `reason` is the first complaint in words, empty when the gate is passed."""

    cases: tuple[LeakCase, ...]
    dtype: str
    device: str
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return all(case.passed for case in self.cases)

    @property
    def reason(self) -> str:
        return next((case.complaints[0] for case in self.cases if case.complaints), "")


@dataclass(frozen=True)
class _Change:
    """One change of one input: what it is in words, who has to react, and why the others must not."""

    what: str
    must_see: Callable[[Block, int], bool]
    why_hidden: Callable[[Block], str]


@dataclass(frozen=True)
class _Scene:
    """The test's rows and blocks."""

    rows: list[Row]
    blocks: list[Block]
    anchors: torch.Tensor  # [B, N]
    keep: torch.Tensor  # [B, N]
    block_size: int

    def plan(self, rows: Sequence[Row], device: torch.device) -> tuple[BlockPlan, torch.Tensor, torch.Tensor]:
        """For one or more copies of the test's rows, or rows with other tokens in their place: the plan, the tokens
        [B, S] and the positions [B, S] of the tokens in their documents."""
        batch, copies = collate(rows).to(device), len(rows) // len(self.rows)
        plan = lay_out(
            batch.input_ids,
            batch.loss_mask,
            self.anchors.to(device).repeat(copies, 1),
            self.keep.to(device).repeat(copies, 1),
            block_size=self.block_size,
            gamma=4.0,
            document_start=batch.document_start,
        )
        return plan, batch.input_ids, batch.positions

    def reactions(self, output: torch.Tensor, base: torch.Tensor) -> list:
        """Largest change of each slot, as nested lists [copies][B][N][K], of outputs [copies * B, N*K, E]."""
        return (output - base).abs().amax(-1).view(-1, *self.anchors.shape, self.block_size).tolist()


@torch.no_grad()
def check_leak(
    draft: DFlashDraft,
    target: TargetModel,
    *,
    forms: Sequence[str] = tuple(ATTENTION_FORMS),
    windows: Sequence[int | None] | None = None,
    seed: int = 0,
    progress: bool = True,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> LeakReport:
    """Measure visibility of a draft with its target.

    Args:
        draft: in the target's dtype and on its device; fp32 is best, since bf16 may round a small reaction away.
        windows: sliding windows in tokens, None for full attention; left out, full and one window (the draft's own).
        seed: of the random texts and changes.
        on_case: called before every combination with how many are done and how many there are; what it raises ends
            the check there.

    Raises:
        UserError: the draft was made for another target, or its output is not finite.
    """
    draft.check_target(target)
    own = draft.config.sliding_window
    windows = (None, own or _DEFAULT_WINDOW) if windows is None else windows
    generator = torch.Generator().manual_seed(seed)
    scene = _scene(draft, generator)
    drafts = {"first layer": _first_layer(draft), "all layers": draft}
    todo = [
        partial(_inputs_case, model, depth, target, scene, form, window)
        for form in forms
        for window in windows
        for depth, model in drafts.items()
    ]
    todo.append(partial(_tokens_case, draft, target, scene, default_attention_form(target.device), own))
    cases = []
    for run in tqdm(todo, unit="case", desc="leak", disable=not progress):
        on_case(len(cases), len(todo))
        cases.append(run(generator))
    return LeakReport(tuple(cases), str(target.dtype).removeprefix("torch."), str(target.device))


def _scene(draft: DFlashDraft, generator: torch.Generator) -> _Scene:
    rows = []
    for length, starts in zip(_LENGTHS, _STARTS, strict=True):
        ids = torch.randint(0, draft.config.vocab_size, (length,), generator=generator)
        rows.append(Row(tuple(f"document {start}" for start in starts), ids.tolist(), [True] * length, starts))
    blocks = [
        Block(row, index, anchor, max(start for start in _STARTS[row] if start <= anchor), kept)
        for row, anchors in enumerate(_ANCHORS)
        for index, (anchor, kept) in enumerate(anchors)
    ]
    anchors = torch.tensor([[anchor for anchor, _ in row] for row in _ANCHORS])
    keep = torch.tensor([[kept for _, kept in row] for row in _ANCHORS])
    return _Scene(rows, blocks, anchors, keep, draft.config.block_size)


def _inputs_case(
    draft: DFlashDraft,
    depth: str,
    target: TargetModel,
    scene: _Scene,
    form: str,
    window: int | None,
    generator: torch.Generator,
) -> LeakCase:
    """Change one feature or one slot's input at a time."""
    plan, ids, positions = scene.plan(scene.rows * _TOGETHER, target.device)
    features = InProcessFeatures(target, draft.config.target_layer_ids)(scene.rows).repeat(_TOGETHER, 1, 1)
    slots = target.embedding(plan.slot_inputs(ids, draft.config.mask_token_id))
    attend = ATTENTION_FORMS[form](plan, window)

    def forward(features: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return draft(slots, features, plan.slot_positions, attend, positions)

    def tried() -> Iterator[tuple[_Change, list]]:
        base = forward(features, slots)
        _refuse_unless_finite(base)
        single = depth == "first layer"
        changes = [*_feature_changes(features.shape[1], window, single), *_slot_changes(scene, window)]
        for chunk in _chunks(changes):
            inputs = {"feature": features.clone(), "slot": slots.clone()}
            for copy, (kind, row, index, _) in enumerate(chunk):
                _disturb(inputs[kind], (copy * len(scene.rows) + row, index), generator)
            reactions = scene.reactions(forward(inputs["feature"], inputs["slot"]), base)
            yield from ((change, reactions[copy]) for copy, (*_, change) in enumerate(chunk))

    return _judge(scene, tried(), (form, window, depth, "features and slots"))


def _feature_changes(length: int, window: int | None, single: bool) -> Iterator[tuple[str, int, int, _Change]]:
    """The input changed, its row and its index there, and what follows from the change."""
    for row in range(len(_STARTS)):
        for position in range(length):
            yield "feature", row, position, _Change(
                f"the feature at {position} of row {row}",
                lambda block, slot, row=row, position=position: row == block.row
                and must_see_context(block, slot, position, window, single),
                partial(why_hidden, row=row, position=position, window=window),
            )


def _slot_changes(scene: _Scene, window: int | None) -> Iterator[tuple[str, int, int, _Change]]:
    for other in scene.blocks:
        for slot in sorted({0, scene.block_size // 2, scene.block_size - 1}):
            yield "slot", other.row, other.index * scene.block_size + slot, _Change(
                f"slot {slot} of block {other.index} of row {other.row}",
                lambda block, mine, other=other, slot=slot: must_see_slot(block, mine, other, slot, window),
                lambda block, other=other: "blocks never see one another"
                if block != other
                else "the block was dropped, or is causal in a sliding window",
            )


def _tokens_case(
    draft: DFlashDraft,
    target: TargetModel,
    scene: _Scene,
    form: str,
    window: int | None,
    generator: torch.Generator,
) -> LeakCase:
    """Change one token of the text at a time, in front of the target."""
    source = InProcessFeatures(target, draft.config.target_layer_ids)

    def features_of(row: Row) -> torch.Tensor:
        """[S, n*E]; each row by itself, so that every forward of the target has the shape it had for the base."""
        return source([row], length=max(_LENGTHS))[0]

    def forward(rows: Sequence[Row], features: Sequence[torch.Tensor]) -> torch.Tensor:
        plan, ids, positions = scene.plan(rows, target.device)
        slots = target.embedding(plan.slot_inputs(ids, draft.config.mask_token_id))
        attend = ATTENTION_FORMS[form](plan, window)
        return draft(slots, torch.stack(list(features)), plan.slot_positions, attend, positions)

    def tried() -> Iterator[tuple[_Change, list]]:
        unchanged = [features_of(row) for row in scene.rows]
        base = forward(scene.rows * _TOGETHER, unchanged * _TOGETHER)
        _refuse_unless_finite(base)
        changes = [(row, position) for row, held in enumerate(scene.rows) for position in range(len(held))]
        for chunk in _chunks(changes):
            rows, features = scene.rows * _TOGETHER, unchanged * _TOGETHER
            for copy, (row, position) in enumerate(chunk):
                changed = _with_another_token(scene.rows[row], position, draft.config.vocab_size, generator)
                at = copy * len(scene.rows) + row
                rows[at], features[at] = changed, features_of(changed)
            reactions = scene.reactions(forward(rows, features), base)
            yield from ((_token_change(*change, window), reactions[copy]) for copy, change in enumerate(chunk))

    return _judge(scene, tried(), (form, window, "all layers", "tokens"))


def _token_change(row: int, position: int, window: int | None) -> _Change:
    return _Change(
        f"token {position} of row {row}",
        lambda block, slot: must_see_token(block, slot, row, position),
        partial(why_hidden, row=row, position=position, window=window),
    )


def _with_another_token(row: Row, position: int, vocab_size: int, generator: torch.Generator) -> Row:
    tokens = list(row.input_ids)
    tokens[position] = (tokens[position] + int(torch.randint(1, vocab_size, (1,), generator=generator))) % vocab_size
    return replace(row, input_ids=tokens)


def _judge(scene: _Scene, tried: Iterator[tuple[_Change, list]], about: tuple) -> LeakCase:
    """Compare every slot's reaction to every change with what the rule says."""
    outside, inside, complaints = 0.0, float("inf"), []
    form, window, depth, _ = about
    where = f"{form} attention, {'no window' if window is None else f'window {window}'}, {depth}"
    for change, reaction in tried:
        for block in scene.blocks:
            for slot in range(scene.block_size):
                moved = reaction[block.row][block.index][slot]
                me = f"slot {slot} of block {block.index} (anchor {block.anchor} of row {block.row})"
                if change.must_see(block, slot):
                    inside = min(inside, moved)
                    if moved <= TOLERANCE:
                        complaints.append(f"{where}: {me} does not react to {change.what}, which it must see.")
                else:
                    outside = max(outside, moved)
                    if moved > TOLERANCE:
                        complaints.append(
                            f"{where}: {me} changes by {moved:.2g} with {change.what}, which it must not see: "
                            f"{change.why_hidden(block)}."
                        )
    return LeakCase(*about, outside, inside, len(complaints), tuple(complaints[:_SHOWN]))


def _chunks(changes: Sequence) -> Iterator[Sequence]:
    """At most `_TOGETHER` changes at a time; rows that are left without one stay as they are."""
    yield from (changes[start : start + _TOGETHER] for start in range(0, len(changes), _TOGETHER))


def _refuse_unless_finite(output: torch.Tensor) -> None:
    if not torch.isfinite(output).all():
        raise UserError("The draft's output is not finite: its weights are damaged, so leaks cannot be looked for.")


def _disturb(inputs: torch.Tensor, at: tuple[int, int], generator: torch.Generator) -> None:
    """Put another vector of the usual size at (row, index) of [B, L, D]."""
    noise = torch.randn(inputs.shape[-1], generator=generator)
    inputs[at] = (noise * 2 * inputs.float().std().clamp(min=1e-3).cpu()).to(inputs)


def _first_layer(draft: DFlashDraft) -> DFlashDraft:
    """The draft cut down to its first layer, where what each slot sees is not yet mixed with what others saw."""
    cut = DFlashDraft(replace(draft.config, num_hidden_layers=1))
    kept = {
        name: tensor
        for name, tensor in draft.state_dict().items()
        if not name.startswith("layers.") or name.startswith("layers.0.")
    }
    cut.load_state_dict(kept)
    return cut.to(device=draft.fc.weight.device, dtype=draft.fc.weight.dtype).eval()
