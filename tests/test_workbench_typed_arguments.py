"""Endpoints refuse arguments of another type in a sentence that names argument and type."""

import inspect

import gradio as gr
import pytest

from workbench.endpoints import computing, typed


def endpoint(names: list[str], steps: int = 1, share: float = 0.5) -> tuple:
    return names, steps, share


@pytest.mark.parametrize(
    ("arguments", "name", "kind"),
    [((3,), "names", "list[str]"), ((["a"], "many"), "steps", "int"), ((["a"], 1, "x"), "share", "float"),
     ((["a"], 1.5), "steps", "int")],
)  # fmt: skip
def test_an_argument_of_another_type_is_named_with_the_type_that_is_wanted(arguments, name, kind):
    with pytest.raises(gr.Error, match="is not usable") as refused:
        typed(endpoint)(*arguments)
    assert f"Argument {name} = " in str(refused.value) and kind in str(refused.value)


def test_right_arguments_arrive_by_place_and_by_name():
    assert typed(endpoint)(["a"], 2, share=1) == (["a"], 2, 1.0)


def test_an_endpoint_that_computes_stays_a_generator_and_refuses_before_it_begins():
    begun = []

    def work(report, tokens: int = 1) -> int:
        begun.append(tokens)
        return tokens

    checked = typed(computing(work))
    assert inspect.isgeneratorfunction(checked)
    assert list(checked(2))[-1] == 2
    with pytest.raises(gr.Error, match="Argument tokens = 'many'"):
        next(checked("many"))
    assert begun == [2]
