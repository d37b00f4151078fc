"""The benchmark: each prompt decoded by the target alone and by draft + target, paired, and everything pooled."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dflash.data.conversations import Prompt
from dflash.decoding.comparison import compare
from dflash.decoding.engine import Engine
from dflash.decoding.prompt import render_prompt
from dflash.decoding.sampling import Sampling
from dflash.errors import UserError
from dflash.evaluation.detail import detail_of
from dflash.evaluation.journal import Journal, partial_of
from dflash.evaluation.machine import describe_machine
from dflash.evaluation.prompt_sets import CATEGORY_RULE, LANGUAGE_RULE, check_ids
from dflash.evaluation.report_file import FORMAT, write_report
from dflash.evaluation.results import Result, pool, pool_by, result_of

TURNS = ("first", "all")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured. `max_new_tokens` per turn; `block_size` None takes the draft's.

    `turns` "first" answers the first turn of each prompt; "all" answers every turn in order, with the draft side's
    answers as history, and ends a conversation early (counted as `skipped`) where it outgrows the target's context.
    """

    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    block_size: int | None = None
    turns: str = "first"

    def __post_init__(self) -> None:
        if self.turns not in TURNS:
            raise UserError(f"Unknown choice of turns {self.turns!r}: choose one of {', '.join(TURNS)}.")


def evaluate(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    journal_path: Path | None = None,
    progress: bool = True,
    on_result: Callable[[Result], None] | None = None,
) -> dict[str, Any]:
    """Decode every prompt both ways and pool the results.

    The order of the two sides alternates from prompt to prompt. Greedy decoding is also checked against plain
    decoding in the block's shape.

    Args:
        journal_path: file that keeps each finished result, and gives back those an interrupted start left.
        on_result: called with each result, restored ones included.

    Returns:
        JSON-safe: `format`, `settings`, `machine`, `rules` (what category and language mean), `pooled`, `by_set`,
        `by_category`, `by_language` and `results`, one per prompt and turn, each with its `detail`.

    Raises:
        UserError: no draft, an empty or too long prompt, two prompts of one id, or a journal of another evaluation.
    """
    described = describe_settings(engine, settings)
    _check_prompts(engine, prompts, settings)
    machine = describe_machine(engine)
    journal = (
        Journal(journal_path, described | {"machine": machine, "format": FORMAT}, len(prompts))
        if journal_path
        else None
    )
    results: list[Result] = []
    try:
        engine.warm_up(settings.block_size)
        with tqdm(total=len(prompts), unit="prompt", disable=not progress, desc="evaluate") as bar:
            for number, prompt in enumerate(prompts):
                for result in _evaluate_prompt(engine, prompt, settings, journal, draft_first=number % 2 == 1):
                    results.append(result)
                    if on_result is not None:
                        on_result(result)
                bar.update()
                pooled = pool(results)
                bar.set_postfix(tau=_shown(pooled["tau"]), speedup=_shown(pooled["speedup"]))
    finally:
        if journal:
            journal.close()
    return {
        "format": FORMAT,
        "settings": described,
        "machine": machine,
        "rules": {"category": CATEGORY_RULE, "language": LANGUAGE_RULE},
        "pooled": pool(results),
        "by_set": pool_by(results, "set"),
        "by_category": pool_by(results, "category"),
        "by_language": pool_by(results, "language"),
        "results": results,
    }


def evaluate_to_file(
    engine: Engine,
    prompts: Sequence[Prompt],
    out: Path,
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    draft_name: str = "",
    progress: bool = True,
    on_result: Callable[[Result], None] | None = None,
) -> dict[str, Any]:
    """`evaluate`, written to `out` as JSON; an interrupted evaluation goes on from `<out>.partial.jsonl`.

    `draft_name` is what people call the draft: it is kept beside the settings, which hold its fingerprint.
    """
    partial = partial_of(out)
    report = evaluate(engine, prompts, settings, journal_path=partial, progress=progress, on_result=on_result)
    report["draft_name"] = draft_name or report["settings"]["draft"]
    write_report(out, report)
    partial.unlink()
    return report


def describe_settings(engine: Engine, settings: EvaluationSettings) -> dict[str, Any]:
    """Everything that results depend on besides the prompts and the machine."""
    proposer = engine.proposer
    if proposer is None:
        raise UserError("This engine has no draft: load one to evaluate it.")
    return {
        "target": engine.target.name,
        "draft": draft_fingerprint(engine),
        "block_size": settings.block_size or proposer.block_size,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.sampling.temperature,
        "rule": settings.sampling.rule,
        "seed": settings.sampling.seed,
        "turns": settings.turns,
    }


def draft_fingerprint(engine: Engine) -> str:
    """Twelve hex digits that change with the draft's configuration or any of its weights."""
    if engine.draft is None:
        return type(engine.proposer).__name__
    digest = hashlib.sha256(json.dumps(engine.draft.config.to_public(), sort_keys=True).encode())
    for name, tensor in sorted(engine.draft.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _evaluate_prompt(
    engine: Engine, prompt: Prompt, settings: EvaluationSettings, journal: Journal | None, draft_first: bool
) -> Iterator[Result]:
    turns = prompt.turns if settings.turns == "all" else prompt.turns[:1]
    history: list[str] = []
    ids = _render(engine, prompt, turns[:1], settings)
    for turn, text in enumerate(turns):
        key = f"{prompt.set}/{prompt.id}/{turn}/{hashlib.sha256(str(ids).encode()).hexdigest()[:12]}"
        result = journal.get(key) if journal else None
        if result is None:
            compared = compare(
                engine, ids, settings.max_new_tokens, settings.sampling, settings.block_size, draft_first=draft_first
            )
            answer = engine.target.tokenizer.decode(compared.draft.tokens, skip_special_tokens=True)
            result = {name: getattr(prompt, name) for name in ("set", "id", "category", "language")}
            result |= {"turn": turn, "draft_first": draft_first} | result_of(compared) | {"answer": answer}
            result["detail"] = detail_of(engine.target, ids, compared.draft)  # only now, behind the timed pair
            if journal:
                journal.add(key, result)
        history += [text, result["answer"]]
        following = turns[turn + 1 :]
        ids = _next_turn(engine, [*history, *following[:1]], settings) if following else None
        yield result | {"skipped": 0 if ids else len(following)}
        if ids is None:
            return


def _next_turn(engine: Engine, turns: list[str], settings: EvaluationSettings) -> list[int] | None:
    """Ids of a conversation with its answers so far; None when it cannot go on (no room left, or an empty answer)."""
    try:
        return render_prompt(engine.target, turns, max_new_tokens=settings.max_new_tokens)
    except UserError:
        return None


def _check_prompts(engine: Engine, prompts: Sequence[Prompt], settings: EvaluationSettings) -> None:
    """Every complaint about prompts before anything slow begins."""
    check_ids(prompts)
    for prompt in prompts:
        _render(engine, prompt, prompt.turns[:1], settings)


def _render(engine: Engine, prompt: Prompt, turns: list[str], settings: EvaluationSettings) -> list[int]:
    try:
        return render_prompt(engine.target, turns, max_new_tokens=settings.max_new_tokens)
    except UserError as error:
        raise UserError(f"Prompt {prompt.id!r}: {error}") from error


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
