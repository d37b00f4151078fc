"""The Acceptance page's actions as named endpoints, for `gradio_client` and other programs."""

from typing import Any

from dflash.errors import UserError
from dflash.evaluation.breakdown import acceptance_by, most_missed, paired, tau_by, tau_by_position, tau_of
from dflash.evaluation.report_file import Evaluation
from dflash.evaluation.speedup import StepCost
from workbench.acceptance_view import ENTROPY_EDGES, GROUPS
from workbench.endpoints import register
from workbench.evaluate_jobs import EvaluateJobs, EvaluationRequest
from workbench.pages.acceptance_values import said


def whatif(tau: float, t_target: float, t_draft: float, t_verify: float, t_overhead: float) -> dict:
    """Speed-up = tau * t_target / (t_draft + t_verify + t_overhead), and the tau below which nothing is gained."""

    def work() -> dict:
        cost = StepCost(float(t_target), float(t_draft), float(t_verify), float(t_overhead))
        return {"speedup": cost.speedup(float(tau)), "break_even_tau": cost.break_even_tau, "step_ms": cost.step}

    return said(work)


def add_endpoints(desk: EvaluateJobs) -> None:
    """Every action of the page under a name of its own; mistakes come back as their sentence."""

    def evaluations() -> dict:
        """Names of all results, the newest first, with drafts and prompt sets to choose from."""
        return {"results": desk.results.names(), "drafts": desk.bench.drafts(), "prompt_sets": desk.prompts.names()}

    def acceptance(result: str) -> dict:
        """One result: acceptance per slot, tau by set, category, language and place, by entropy, most-missed tokens."""
        return said(lambda: summary(desk.results.load(result)))

    def compare_results(first: str, second: str) -> dict:
        """Two results on the prompts they share: the second's tau less the first's, with interval and counts."""
        return said(lambda: paired(desk.results.load(first), desk.results.load(second)).to_dict())

    def block_sizes() -> dict:
        """The newest measurement of all block sizes: tau, times and speed-up of each, and the best one."""

        def work() -> dict:
            found = desk.results.block_sizes()
            if found is None:
                raise UserError("No block sizes were measured yet: call /benchmark_start first.")
            sizes, recorded = found
            rows = [_size(row) for row in sizes.rows]
            return {"draft": sizes.draft_name, "recorded": recorded, "best": sizes.best.block_size, "sizes": rows}

        return said(work)

    def evaluate_start(
        prompt_sets: list[str],
        draft: str = "",
        limit: int = 8,
        max_new_tokens: int = 128,
        block_size: int = 0,
        temperature: float = 0.0,
    ) -> dict:
        """Queue an evaluation as a job; returns the job's name and that of its result. 0 prompts means all."""
        request = EvaluationRequest(
            draft, tuple(prompt_sets), int(limit), int(max_new_tokens), int(block_size), temperature
        )

        def work() -> dict:
            job, name = desk.evaluate(request)
            return {"job": job.name, "result": name, "state": job.state}

        return said(work)

    def benchmark_start(draft: str = "", prompts: int = 3, max_new_tokens: int = 64) -> dict:
        """Queue the measurement of every block size on this machine; returns the job's name."""
        job = said(lambda: desk.benchmark(draft, int(prompts), int(max_new_tokens)))
        return {"job": job.name, "state": job.state}

    def evaluate_jobs() -> list[dict]:
        """Evaluations and benchmarks: queued, running and the latest that are over, with their progress."""
        return desk.rows()

    def evaluate_stop(job: str) -> list[dict]:
        """Stop a running evaluation or take a queued one out; finished prompts are kept."""

        def work() -> list[dict]:
            desk.act("abort" if desk.jobs.get(job).state == "queued" else "stop", job)
            return desk.rows()

        return said(work)

    def evaluate_resume(job: str) -> list[dict]:
        """Go on with an evaluation that was stopped or failed, from its next prompt."""
        said(lambda: desk.act("resume", job))
        return desk.rows()

    readings = (evaluations, acceptance, compare_results, whatif, block_sizes, evaluate_jobs)
    doings = (evaluate_start, benchmark_start, evaluate_stop, evaluate_resume)
    for endpoint in (*readings, *doings):
        register(endpoint)


def summary(result: Evaluation) -> dict[str, Any]:
    """A result as JSON: everything the page draws; what needs the detail of steps is None without it."""
    detailed = result.has_detail
    edges = (1, 17, 65, 257, 1025, 1 << 40)
    by_entropy = acceptance_by(result.answers, ENTROPY_EDGES, lambda j: j.entropy) if detailed else None
    return {
        "draft": result.draft_name,
        "settings": result.settings,
        "machine": result.machine,
        "speedup": result.speedup,
        "step_ms": result.step_ms,
        "tau": tau_of(result.answers).to_dict(),
        "acceptance": result.counts.to_dict(),
        **{f"tau_by_{field}": {n: e.to_dict() for n, e in tau_by(result.answers, field).items()} for field in GROUPS},
        "tau_by_position": detailed
        and [
            {"from": edges[i]} | estimate.to_dict()
            for i, estimate in enumerate(tau_by_position(result.answers, edges))
        ]
        or None,
        "acceptance_by_entropy": by_entropy
        and [{"from_nats": low} | p.to_dict() for low, p in zip(ENTROPY_EDGES, by_entropy, strict=False)],
        "most_missed": [_missed(m) for m in most_missed(result.answers)] if detailed else None,
    }


def _missed(missed) -> dict[str, Any]:
    example = missed.examples[0]
    return {
        "text": missed.text,
        "missed": missed.missed.to_dict(),
        "instead": [{"text": text, "count": count} for text, count in missed.instead],
        "example": {"before": example.before, "draft": example.draft_text, "target": example.target_text},
    }


def _size(row) -> dict[str, Any]:
    times = {f"{part}_ms": getattr(row.cost, part) for part in ("target", "draft", "verify", "overhead")}
    return {"block_size": row.block_size, "tau": row.tau, "speedup": row.speedup, "steps": row.steps} | times
