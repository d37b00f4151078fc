"""The Train form as data: every setting with its value, where that comes from, and what is wrong with it."""

from typing import Any

from dflash.complaints import Complaint
from dflash.config import TrainConfig
from dflash.config_effects import idle_reasons
from dflash.recipes import shipped_recipes
from workbench.form_fields import FormField, as_text, form_sections
from workbench.run_request import RUN_PREFIX, Prepared

_MOST_RUNS = 50  # offered to start from


def form_view(prepared: Prepared) -> dict[str, Any]:
    """What the form's script draws; texts only, so that nothing in it is read as HTML."""
    plan = prepared.plan
    complaints = [*plan.faults, *plan.lacking, *plan.doubts]
    idle = idle_reasons(plan.config)
    sections = []
    for name, fields in form_sections().items():
        drawn = [_field_view(field, prepared, complaints, idle.get(field.setting)) for field in fields]
        sections.append({"name": name, "about": _about(name), "fields": drawn})
    return {"sections": sections}


def origins(earlier_runs: list[str]) -> list[dict[str, Any]]:
    """What a run can start from, as groups of (value, label)."""
    return [
        {"group": "Recipes", "choices": [[name, name] for name in shipped_recipes()]},
        {"group": "Earlier runs", "choices": [[RUN_PREFIX + name, name] for name in earlier_runs[:_MOST_RUNS]]},
    ]


def about_origin(prepared: Prepared) -> str:
    """The lines that introduce a recipe; an earlier run has none."""
    if prepared.request.origin.startswith(RUN_PREFIX):
        return ""
    lines = []
    for line in prepared.source.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def first_setting(complaint: Complaint) -> str | None:
    """Where a complaint is shown: beside its first setting, a whole section's beside its first field; None where there
    is no such field, as with settings that do not exist."""
    section, _, key = complaint.fields[0].partition(".")
    fields = form_sections().get(section, ())
    if not key:
        return fields[0].setting if fields else None
    setting = f"{section}.{key.partition('.')[0]}"  # a wrong entry of a list is the list's fault
    return setting if any(field.setting == setting for field in fields) else None


def _field_view(
    field: FormField, prepared: Prepared, complaints: list[Complaint], idle: str | None
) -> dict[str, Any]:
    edits = prepared.request.settings
    given = (prepared.given.get(field.section) or {}).get(field.key)
    resolved = getattr(getattr(prepared.plan.config, field.section), field.key)
    return {
        "setting": field.setting,
        "key": field.key,
        "kind": field.kind,
        "choices": list(field.choices),
        "about": field.description,
        "usual": field.usual,
        "given": as_text(given),  # by the recipe or the earlier run
        "text": edits.get(field.setting, as_text(given)),
        "edited": field.setting in edits and edits[field.setting].strip() != as_text(given),
        # What holds when it is left empty.
        "resolved": as_text(resolved) or field.derived,
        "default": as_text(field.default) or field.derived,
        "idle": idle,
        "complaints": [c.sentence for c in complaints if first_setting(c) == field.setting],
    }


def _about(section: str) -> str:
    """A section's docstring, where the config gives it one of its own."""
    text = TrainConfig.model_fields[section].annotation.__dict__.get("__doc__") or ""
    return " ".join(text.split())
