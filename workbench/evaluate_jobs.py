"""Evaluations and benchmarks as jobs: begin one, follow it, stop it, go on with it."""

import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dflash.errors import UserError
from dflash.evaluation.draft_names import draft_label, file_name
from dflash.evaluation.journal import progress_of
from dflash.model.draft_folder import check_draft, check_whole, find_draft
from dflash.target_facts import target_facts
from workbench.bench import SHIPPED, Bench
from workbench.evaluations import Evaluations
from workbench.job import Job
from workbench.jobs import Jobs
from workbench.prompt_store import PromptStore

EVALUATE, BENCHMARK = "evaluate", "benchmark"
_SHOWN = 4  # jobs that are over


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate: a draft ("shipped" or a folder) on prompt sets by name; `limit` prompts of each, 0 for all."""

    draft: str
    sets: Sequence[str]
    limit: int = 8
    max_new_tokens: int = 128
    block_size: int = 0  # 0: the draft's own
    temperature: float = 0.0


class EvaluateJobs:
    """The evaluations of one workbench; they run with its target, device and dtype."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.jobs = Jobs(bench.runs)
        self.prompts = PromptStore(bench.runs)
        self.results = Evaluations(bench.runs)

    def evaluate(self, request: EvaluationRequest) -> tuple[Job, str]:
        """Queue an evaluation; returns its job and the name that its result will have.

        Raises:
            UserError: no set is chosen, a set or the draft is not there, or a number is out of range.
        """
        if not request.sets:
            raise UserError("No prompt set is chosen: tick at least one, or drop a JSONL file of prompts.")
        files = [self.prompts.path(name) for name in request.sets]
        if request.limit < 0 or request.max_new_tokens < 1 or request.block_size < 0 or request.temperature < 0:
            raise UserError(
                "Prompts per set, new tokens, block size and temperature must not be negative: correct them."
            )
        draft = request.draft or self.bench.draft_name
        self._check(draft, request.max_new_tokens, request.block_size or None)
        name = self._result_for(draft)
        command = [sys.executable, "-m", "dflash", "evaluate"]
        for file in files:
            command += ["--prompts", str(file)]
        if request.limit:
            command += ["--limit", str(request.limit)]
        command += ["--max-new-tokens", str(request.max_new_tokens)]
        if request.block_size:
            command += ["--block-size", str(request.block_size)]
        if request.temperature:
            command += ["--temperature", str(request.temperature)]
        command += [*self._models(draft), "--json", str(self.results.path(name))]
        return self._enqueue(command, EVALUATE, name), name

    def benchmark(self, draft: str, prompts: int = 3, max_new_tokens: int = 64) -> Job:
        """Queue the measurement of every block size of a draft on this machine.

        Raises:
            UserError: the draft is not there, or a number is below 1.
        """
        if prompts < 1 or max_new_tokens < 1:
            raise UserError("A benchmark needs at least one prompt and one new token: give 1 or more.")
        draft = draft or self.bench.draft_name
        self._check(draft, max_new_tokens)
        name = self._free_name(BENCHMARK, file_name(draft_label(draft)))
        out = self.results.runs / ".evaluations" / "block-sizes" / f"{name}.json"
        command = [sys.executable, "-m", "dflash", "benchmark", "--limit", str(prompts)]
        command += ["--max-new-tokens", str(max_new_tokens), *self._models(draft), "--json", str(out)]
        return self._enqueue(command, BENCHMARK, name)

    def _check(self, draft: str, max_new_tokens: int, block_size: int | None = None) -> None:
        """Refuse at once what a job would find only when everything is loaded.

        Raises:
            UserError: the draft is gone, damaged or another target's, or the target has no room for so many tokens.
        """
        name, target = None if draft == SHIPPED else draft, self.bench.target_name
        check_draft(name, target, block_size)
        check_whole(find_draft(name, target))
        facts = target_facts(target)
        if facts and facts.max_length and max_new_tokens >= facts.max_length:
            raise UserError(
                f"{max_new_tokens:,} new tokens and a prompt exceed the {facts.max_length:,} tokens of context that "
                f"{target!r} has: ask for fewer."
            )

    def act(self, action: str, name: str) -> None:
        """Stop, abort (while queued) or resume a job.

        Raises:
            UserError: the job is not in a state for it, is no evaluation, or there is no such action.
        """
        if self.jobs.get(name).kind not in (EVALUATE, BENCHMARK):
            raise UserError(f"Job {name!r} is no evaluation: look for it on the Train page.")
        actions = {
            "stop": lambda: self.jobs.stop(name),
            "abort": lambda: self.jobs.abort(name),
            "resume": lambda: self.jobs.resume(name, queued=True),  # two at once would spoil one another's times
        }
        if action not in actions:
            raise UserError(f"There is no action {action!r}: reload the page.")
        actions[action]()

    def rows(self) -> list[dict[str, Any]]:
        """What page and API show: queued, running, then the latest that are over. Starts the queue if it stands."""
        self.jobs.advance()
        every = self.jobs.list()
        waiting = [job.name for job in every if job.state == "queued"]  # trainings among them
        jobs = [job for job in every if job.kind in (EVALUATE, BENCHMARK)]
        shown = [job for job in jobs if job.active] + [job for job in jobs if not job.active][:_SHOWN]
        return [self._row(job, waiting) for job in shown]

    def _row(self, job: Job, waiting: list[str]) -> dict[str, Any]:
        out = job.result_file
        done, total = (progress_of(out) if job.kind == EVALUATE else None) or (None, None)
        # The command refuses to go on where its result is complete.
        over = [] if job.state == "done" or out.is_file() else ["resume"]
        return {
            "name": job.name,
            "kind": job.kind,
            "state": job.state,
            "place": waiting.index(job.name) + 1 if job.name in waiting else None,
            "done": done,
            "total": total,
            "started": job.started,
            "ended": job.ended,
            "problem": job.likely_cause or "",
            "tail": job.log_tail(8) if job.state in ("failed", "lost", "running") else "",
            "command": shlex.join(job.command),
            "result": self._result_name(out) if job.kind == EVALUATE and out.is_file() else None,
            "actions": {"queued": ["abort"], "running": ["stop"]}.get(job.state, over),
        }

    def _result_name(self, out: Path) -> str:
        return out.stem if out.parent.name == ".evaluations" else f"{out.parent.parent.name}/{out.stem}"

    def _enqueue(self, command: list[str], kind: str, result: str) -> Job:
        return self.jobs.enqueue(command, kind=kind, name=_job_name(kind, result), resume_command=command)

    def _models(self, draft: str) -> list[str]:
        own = [] if draft == SHIPPED else ["--draft", draft]
        return ["--target", self.bench.target_name, *own, "--device", self.bench.device, "--dtype", self.bench.dtype]

    def _result_for(self, draft: str) -> str:
        """A name for the result: within the run that the draft is of, if it is of one of ours."""
        folder = Path(draft).expanduser().resolve()
        checkpoint = folder.parent if folder.name == "draft" else folder
        run = checkpoint.parent.parent
        if checkpoint.parent.name == "checkpoints" and run.parent == self.results.runs.resolve():
            return self._free_name(EVALUATE, f"{run.name}/{checkpoint.name}")
        return self._free_name(EVALUATE, file_name(draft_label(draft)))

    def _free_name(self, kind: str, draft: str) -> str:
        """The draft's name with the time, and with a number from the second on that is asked for within a second."""
        stamped = f"{draft}-{time.strftime('%m%d-%H%M%S')}"
        names = itertools.chain([stamped], (f"{stamped}-{number}" for number in itertools.count(2)))
        return next(name for name in names if self.jobs.find(_job_name(kind, name)) is None)


def _job_name(kind: str, result: str) -> str:
    """The end of a long name tells it from others of the same draft: it is the time."""
    return f"{kind}-{file_name(result)[-80:]}"
