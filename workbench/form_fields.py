"""The fields of the Train form, read off the typed config: a new setting or section appears by itself."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dflash.config import TrainConfig, read_tree
from dflash.recipes import shipped_recipes

_KINDS = {"integer": "number", "number": "number", "boolean": "bool", "string": "text"}


@dataclass(frozen=True)
class FormField:
    """One setting. `kind` is number, bool, choice, numbers, texts (lists of them) or text; `default` is a plain value,
    None where it is derived.
    """

    section: str
    key: str
    kind: str
    description: str
    choices: tuple[str, ...]
    default: Any
    usual: bool  # set by a shipped recipe: shown at once, the others on demand

    @property
    def setting(self) -> str:
        return f"{self.section}.{self.key}"

    @property
    def derived(self) -> str:
        """What takes its place when it is left empty, in words, as the description ends."""
        return self.description.partition("default: ")[2]


@lru_cache
def form_sections() -> dict[str, tuple[FormField, ...]]:
    """The fields of every section, both in the order of the config."""
    schema = TrainConfig.model_json_schema()
    usual = _set_by_recipes()
    sections = {}
    for section, reference in schema["properties"].items():
        model = schema["$defs"][reference["$ref"].rpartition("/")[2]]
        sections[section] = tuple(
            _field(section, key, properties, f"{section}.{key}" in usual)
            for key, properties in model["properties"].items()
        )
    return sections


def field_of(setting: str) -> FormField | None:
    """The field of `section.key`, None where there is no such setting."""
    section = setting.partition(".")[0]
    return next((field for field in form_sections().get(section, ()) if field.setting == setting), None)


def as_text(value: Any) -> str:
    """A setting's value as it is typed into the form."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(entry) for entry in value)
    return str(value)


def _field(section: str, key: str, properties: dict[str, Any], usual: bool) -> FormField:
    # An optional setting is a choice between its type and null.
    typed = next((p for p in properties.get("anyOf", [properties]) if p.get("type") != "null"), properties)
    choices = tuple(typed.get("enum", ()))
    return FormField(
        section=section,
        key=key,
        kind="choice" if choices else _kind(typed),
        description=properties.get("description", ""),
        choices=choices,
        default=properties.get("default"),
        usual=usual,
    )


def _kind(typed: dict[str, Any]) -> str:
    if typed.get("type") == "array":
        return "numbers" if typed["items"].get("type") in ("integer", "number") else "texts"
    return _KINDS.get(typed.get("type"), "text")


def _set_by_recipes() -> set[str]:
    return {
        f"{section}.{key}"
        for path in shipped_recipes().values()
        for section, settings in read_tree(path).items()
        for key in settings or ()
    }
