"""Complaints about a configuration: one sentence each, naming field, value and remedy."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Complaint:
    """What is wrong. `fields` are the settings it judges, such as `run.seed` or a whole section."""

    fields: tuple[str, ...]
    sentence: str

    def touches(self, faulty: Iterable[str]) -> bool:
        """Whether it judges one of these settings, or a section around or a setting inside one."""
        return any(f"{mine}.".startswith(f"{other}.") or f"{other}.".startswith(f"{mine}.")
                   for mine in self.fields for other in faulty)  # fmt: skip


def together(origin: str, complaints: list[Complaint]) -> str:
    """All complaints about the config that `origin` names, as one message."""
    if len(complaints) == 1:
        return f"Config {origin}: {complaints[0].sentence}"
    return f"Config {origin} has {len(complaints)} faults:" + "".join(f"\n  {c.sentence}" for c in complaints)


_LIMITS = {
    "greater_than_equal": ("ge", "of at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "of at most"),
    "less_than": ("lt", "below"),
}
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text, in quotes if it looks like a number",
    "string_too_short": "some text",
    "list_type": "a list such as [a, b]",
    "too_short": "at least one entry",
    "model_type": "settings indented below it, or remove it",
}


def from_pydantic(item: dict[str, Any], model: type[BaseModel]) -> Complaint:
    """One of the errors that validating `model` raised, in words a user can act on."""
    where, kind, given = ".".join(str(part) for part in item["loc"]), item["type"], item.get("input")
    if kind == "value_error":
        sentence = f"{item['ctx']['error']}."
    elif kind == "missing":
        sentence = f"{where} is missing: set it."
    elif kind == "extra_forbidden":
        sentence = f"{where} = {given!r} is no known setting: {_advice(item['loc'], model)}."
    elif kind in _LIMITS:
        bound, words = _LIMITS[kind]
        sentence = f"{where} = {given!r} is out of range: give a number {words} {item['ctx'][bound]:g}."
    elif kind == "literal_error":
        sentence = f"{where} = {given!r} is no choice here: take {item['ctx']['expected']}."
    elif kind in _WANTED:
        sentence = f"{where} = {given!r} is not usable: give {_WANTED[kind]}."
    else:
        sentence = f"{where} = {given!r}: {item['msg'][0].lower()}{item['msg'][1:]}."
    return Complaint((where,), sentence)


def _advice(loc: tuple[str, ...], model: type[BaseModel]) -> str:
    """What to write instead of a name that does not exist."""
    *sections, name = (str(part) for part in loc)
    known = model.model_fields
    for section in sections:
        known = known[section].annotation.model_fields
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"write {'.'.join([*sections, close[0]])}, or remove it"
    elsewhere = [
        f"{section}.{name}"
        for section, field in model.model_fields.items()
        if sections and name in getattr(field.annotation, "model_fields", ())
    ]
    return f"remove it, or {'write ' + elsewhere[0] if elsewhere else 'choose one of ' + ', '.join(known)}"
