"""The Anatomy page as a person uses it."""

import json

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def page(visit):
    tab = visit("anatomy")
    tab.page.wait_for_selector(".df-strip .df-cell.anchor")
    return tab.page


def test_a_conversation_is_shown_with_mask_anchors_slots_and_both_figures(page):
    assert page.locator(".df-strip .df-cell.taught").count() > 50
    assert page.locator(".df-strip .df-cell.anchor").count() > 4
    assert page.locator(".df-slots tbody tr").count() == 8
    page.wait_for_selector("#cells .js-plotly-plot .gtitle")
    page.wait_for_selector("#tiles .js-plotly-plot .gtitle")
    assert "never computed" in page.text_content(".df-tiles-note")


def test_clicking_an_anchor_chooses_its_block(page):
    page.locator(".df-strip .df-cell.anchor").nth(2).click()
    page.wait_for_function("document.querySelector('.df-block-name').textContent.startsWith('block 2 ')")
    assert page.input_value("#block input") == "2"


def test_resampling_moves_the_anchors(page):
    def places():
        return page.locator(".df-strip .df-cell.anchor").evaluate_all("cells => cells.map(cell => cell.title).join()")

    before = places()
    page.click("#resample")
    page.wait_for_function(
        "before => [...document.querySelectorAll('.df-strip .df-cell.anchor')].map(cell => cell.title).join() !== before",
        arg=before,
    )


def test_hovering_a_cell_says_in_words_why_it_is_visible(page):
    page.wait_for_selector("#cells .nsewdrag")
    page.locator("#cells .nsewdrag").hover(position={"x": 20, "y": 20})
    page.wait_for_selector("#cells .hovertext")
    assert "strictly before the anchor" in page.text_content("#cells .hovertext").replace("\u00a0", " ")


def test_a_pasted_conversation_replaces_the_built_in_ones(page):
    page.click("#conversation input")
    page.click("[role=option]:has-text('Your own')")
    line = {"messages": [{"role": "user", "content": "<i>Hi</i>"}, {"role": "assistant", "content": "Well, hello."}]}
    page.fill("#line textarea", json.dumps(line))
    page.locator("#line textarea").blur()
    page.wait_for_function("document.querySelector('.df-strip').textContent.includes('<i>Hi</i>')")
    assert page.locator(".df-strip i").count() == 0
