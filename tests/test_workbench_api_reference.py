"""docs/api.md lists the endpoints that the app really has."""

import ast
from pathlib import Path

import pytest

from workbench.api_reference import reference
from workbench.app import build_app
from workbench.bench import Bench

DOCUMENT = Path(__file__).parents[1] / "docs" / "api.md"


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory):
    app = build_app(Bench("smollm2-135m", "", tmp_path_factory.mktemp("runs"), device="cpu"))
    info = app.get_api_info()
    assert info["unnamed_endpoints"] == {}
    return info["named_endpoints"]


def test_the_document_is_that_of_the_app(endpoints):
    assert DOCUMENT.read_text(encoding="utf-8") == reference(endpoints), (
        "docs/api.md is out of date: python -m workbench.api_reference > docs/api.md"
    )


def test_every_endpoint_says_what_it_does(endpoints):
    assert {name for name, info in endpoints.items() if len(info.get("description", "")) < 20} == set()


def test_no_endpoint_got_a_number_because_its_name_was_taken(endpoints):
    assert [name for name in endpoints if name.rpartition("_")[2].isdigit()] == []


def test_nothing_in_the_document_depends_on_this_machine(endpoints, tmp_path):
    assert str(tmp_path.parent) not in reference(endpoints) and "/work/" not in reference(endpoints)


def test_every_example_is_python_that_gives_each_required_argument(endpoints):
    text = reference(endpoints)
    calls = [
        node
        for block in text.split("```python\n")[2:]  # the first one is the introduction's
        for node in ast.walk(ast.parse(block.partition("```")[0]))
        if isinstance(node, ast.Call)
    ]
    assert len(calls) == len(endpoints)
    for call, (name, info) in zip(calls, endpoints.items(), strict=True):
        given = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        assert given.pop("api_name") == name
        assert set(given) == {p["parameter_name"] for p in info["parameters"] if not p["parameter_has_default"]}
        for parameter in info["parameters"]:
            kind = {"str": str, "int": int, "float": float}.get(parameter["python_type"]["type"])
            if kind and parameter["parameter_name"] in given:
                assert isinstance(given[parameter["parameter_name"]], kind), f"{name}: {parameter['parameter_name']}"


def _value(node: ast.expr):
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
