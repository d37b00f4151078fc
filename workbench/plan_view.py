"""A prepared run as the Train page and the API tell it: whether it can start, what it amounts to, and its command."""

from typing import Any

from dflash.devices import memory_of
from workbench.capacity import gpu_count
from workbench.form import first_setting
from workbench.gpu_split import devices_of
from workbench.run_request import Prepared
from workbench.train_jobs import missing_files, synthesis_in_words


def launch_view(
    prepared: Prepared, origins: list[dict[str, Any]], about: str, *, busy: bool, data_follows: bool
) -> dict[str, Any]:
    """The panel that starts it. `busy`: whether other jobs run, so that waiting for them is the better choice.

    `data_follows`: whether all that is missing is data that other jobs are making.
    """
    plan = prepared.plan
    files = missing_files(prepared)
    gpus = gpu_count()
    return {
        "request": prepared.request.to_json(),
        # With the name that was previewed, so that this very run starts.
        "planned": {**prepared.request.to_json(), "name": prepared.name},
        "origins": origins,
        "about": about,
        "name": prepared.name,
        "ranks": plan.estimate.world_size,
        "ranks_name": "GPUs" if gpus else "Processes",
        "ranks_about": f"Processes that train, one on each GPU; this machine has {gpus or 'no GPU'}.",
        "ranks_fixed": "The settings of the online section say how many train." if prepared.launches_itself else "",
        "verdict": "Its data is being made: Queue waits for it." if data_follows else verdict(prepared, busy),
        "ready": not (plan.faults or plan.lacking or data_follows),
        "can_queue": data_follows or not (plan.faults or plan.lacking),
        "busy": busy,
        "trouble": [
            {"sentence": complaint.sentence, "setting": first_setting(complaint)}
            for complaint in ((() if data_follows else (*plan.faults, *plan.lacking)) + plan.doubts)
        ],
        "make": [] if data_follows else [synthesis_in_words(prepared, file) for file in files],
        "command": prepared.shown_command,
        "yaml": prepared.frozen,
        "can_make": bool(files) and not plan.faults and len(plan.lacking) == 1,
    }


def verdict(prepared: Prepared, busy: bool = False) -> str:
    """One sentence: can it start?"""
    faults, lacking = len(prepared.plan.faults), len(prepared.plan.lacking)
    if faults:
        return f"{faults} setting{' has' if faults == 1 else 's have'} to change first."
    if lacking:
        return "One thing is missing on this machine." if lacking == 1 else f"{lacking} things are missing here."
    if prepared.plan.doubts:
        return "It can start, but its memory may not suffice."
    return "Ready; something runs already, and both would be slower: Queue waits." if busy else "Ready to start."


def plan_view(prepared: Prepared) -> dict[str, Any]:
    """What it amounts to."""
    plan = prepared.plan
    return {
        "numbers": _numbers(prepared),
        "devices": [vars(device) for device in devices_of(plan)],
        "remarks": list(plan.notes),
    }


def summary(prepared: Prepared) -> dict[str, Any]:
    """Everything about a prepared run as plain values, for the API."""
    plan = prepared.plan
    return {
        "name": prepared.name,
        "run_folder": str(plan.run_dir),
        "ready": not (plan.faults or plan.lacking),
        "faults": [complaint.sentence for complaint in plan.faults],
        "not_ready": [complaint.sentence for complaint in plan.lacking],
        "notes": list(plan.notes),
        "command": prepared.shown_command,
        "config": plan.config.model_dump(),
        "yaml": prepared.frozen,
        "derived": plan.estimate.to_dict(),
        "devices": [vars(device) for device in devices_of(plan)],
    }


def place_of(prepared: Prepared) -> str:
    """The device whose memory is estimated, in words."""
    on_cpu = prepared.plan.config.run.device == "cpu" or not (gpu_count() or _wants_gpu(prepared))
    if prepared.plan.estimate.world_size > 1:
        return "each rank" if on_cpu else "each training GPU"
    return "this machine" if on_cpu else "the training GPU"


def capacity_of(prepared: Prepared) -> int | None:
    """Bytes of the device here that `place_of` names; None where this machine has no such device."""
    if _wants_gpu(prepared):
        return memory_of("cuda")
    return memory_of("cuda" if prepared.plan.config.run.device == "auto" and gpu_count() else "cpu")


def _wants_gpu(prepared: Prepared) -> bool:
    return prepared.plan.config.run.device.startswith(("cuda", "xpu"))


def _numbers(prepared: Prepared) -> list[dict[str, str]]:
    """Label, value, unit and how it comes about; a dash where it hangs on data that is counted later."""
    config, numbers = prepared.plan.config, prepared.plan.estimate
    at_most = "at most, " if config.run.epochs is not None else ""
    rows = f"{numbers.world_size} x {numbers.accumulation} x {config.run.micro_batch_size}"
    about_memory = "All parts at their largest, for rows of data.max_length; below is what takes it."
    return [
        _number("Steps", _count(numbers.steps), "", f"{at_most}optimizer steps; run.max_steps or run.epochs"),
        _number("Rows per step", _count(config.run.batch_size), "", f"{rows}: ranks x micro-batches x rows of each"),
        _number("Tokens", _count(numbers.tokens), "at most", "steps x rows x data.max_length"),
        _number("Conversations", _count(numbers.conversations), "", "in data.train, at most, held-out ones left out"),
        _number("Draft", _count(numbers.draft_parameters), "weights", "trained parameters"),
        _number("Memory", *_size(numbers.device_bytes if numbers.memory else None), f"per rank. {about_memory}"),
        _number("Checkpoint", *_size(numbers.checkpoint_bytes), "weights, optimizer state and the draft"),
        _number("Disk", *_size(numbers.disk_bytes), "most that checkpoints take at once: kept, best, being written"),
    ]


def _number(label: str, value: str, unit: str, about: str) -> dict[str, str]:
    return {"label": label, "value": value, "unit": unit, "about": about}


def _count(value: int | None) -> str:
    if value is None:
        return "–"
    for size, letter in ((10**9, "B"), (10**6, "M")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:,}"


def _size(size: int | None) -> tuple[str, str]:
    if size is None:
        return "–", ""
    return (f"{size / 2**30:.1f}", "GiB") if size >= 2**30 else (f"{size / 2**20:.0f}", "MiB")
