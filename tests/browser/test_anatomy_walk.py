"""The mask by keyboard and pointer, links, files, and the gates of the Anatomy page."""

import json

import pytest
from workbench_server import PATIENCE

pytestmark = pytest.mark.browser


def ready(tab):
    tab.page.set_default_timeout(60_000 * PATIENCE)
    tab.page.wait_for_selector(".df-strip .df-cell.anchor")
    tab.page.wait_for_selector("#cells .js-plotly-plot .gtitle")
    tab.page.wait_for_selector("#tiles .js-plotly-plot .gtitle")
    tab.page.wait_for_timeout(500)  # the figures become interactive a little later than they are there
    return tab.page


def words(page, figure: int) -> str:
    return page.locator(".df-walk-words").nth(figure).text_content()


def test_the_cells_are_walked_with_the_keyboard_and_each_says_why(visit):
    page = ready(visit("anatomy"))
    page.locator(".df-walk-pad").nth(0).focus()
    page.wait_for_selector("#cells .df-walk-frame")
    assert words(page, 0).startswith("Slot 0 of block 4")
    page.keyboard.press("ArrowDown")
    assert words(page, 0).startswith("Slot 1 of block 4") and "strictly before the anchor" in words(page, 0)
    page.keyboard.press("End")
    assert "blocks never see one another" in words(page, 0)
    page.keyboard.press("Control+Home")
    assert words(page, 0).startswith("Slot 0 of block 4")
    page.keyboard.press("ArrowUp")  # at the edge
    assert words(page, 0).startswith("Slot 0 of block 4")


def test_the_tokens_are_walked_with_the_keyboard_and_each_says_what_its_tooltip_says(visit):
    page = ready(visit("anatomy"))
    page.locator(".df-strip").focus()
    for key, place in (("ArrowRight", 0), ("ArrowRight", 1), ("End", -1), ("ArrowRight", -1), ("Home", 0)):
        page.keyboard.press(key)
        token = page.locator(".df-strip .df-cell").nth(place)
        assert page.text_content(".df-token-words") == token.get_attribute("title")
    anchor = page.locator(".df-strip .df-cell.anchor").nth(2)
    place = "anchor => [...document.querySelectorAll('.df-strip .df-cell')].indexOf(anchor)"
    for _ in range(anchor.evaluate(place)):
        page.keyboard.press("ArrowRight")
    assert "anchor of block 2" in page.text_content(".df-token-words")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.df-block-name').textContent.startsWith('block 2 ')")
    assert anchor.get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")  # goes on from the anchor
    assert page.locator(".df-strip .df-cell.here").get_attribute("title") != anchor.get_attribute("title")


def test_hovering_a_cell_writes_its_sentence_below_too(visit):
    page = ready(visit("anatomy"))
    page.locator("#cells .nsewdrag").hover(position={"x": 20, "y": 20})
    page.wait_for_function("document.querySelector('.df-walk-words').textContent.includes('strictly before the')")


def test_enter_on_a_tile_looks_into_its_cells_and_choosing_a_block_leaves_it(visit):
    page = ready(visit("anatomy"))
    page.locator(".df-walk-pad").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert words(page, 1).startswith("slots 0–127, keys 128–255")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#cells .gtitle')?.textContent.includes('tile 0, 1')")
    assert page.input_value("#tile input, #tile textarea") == "0, 1"
    page.locator(".df-strip .df-cell.anchor").nth(2).click()
    page.wait_for_function("document.querySelector('#cells .gtitle')?.textContent.includes('this block')")
    assert page.input_value("#tile input, #tile textarea") == ""


def test_training_scale_shows_all_its_tiles(visit):
    page = ready(visit("anatomy"))
    page.click("#training_scale")
    wanted = "83,886,080 cells in 5,120 tiles"
    page.wait_for_function("words => document.querySelector('.df-tiles-note').textContent.includes(words)", arg=wanted)
    assert page.locator(".df-document").count() > 1
    assert "of padding" in page.text_content(".df-counts")


def test_a_link_opened_cold_restores_every_setting(visit):
    link = "anatomy?conversation=A+function+and+its+test&packing=1&length=512"
    link += "&anchors=9&size=4&gamma=2.5&window=16&seed=7&block=3"
    page = ready(visit(link))
    page.wait_for_function("document.querySelector('.df-block-name').textContent.startsWith('block 3 of 9')")
    assert page.input_value("#conversation input") == "A function and its test"
    shown = {"length": "512", "anchors": "9", "anatomy_block_size": "4", "gamma": "2.5", "window": "16"}
    for name, value in shown.items():
        assert page.input_value(f"#{name} input[type=number]") == value
    assert page.input_value("#seed input") == "7" and page.is_checked("#packing input")
    again = ready(visit(link))
    anchors = "() => [...document.querySelectorAll('.df-strip .df-cell.anchor')].map(cell => cell.title).join()"
    again.wait_for_function("document.querySelector('.df-block-name').textContent.startsWith('block 3 of 9')")
    assert page.evaluate(anchors) == again.evaluate(anchors)


def test_a_dropped_file_is_used_its_bad_lines_are_named_and_its_link_opens_it_again(visit, tmp_path):
    page = ready(visit("anatomy"))
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A very special answer."}]}
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(talk) + "\n{broken\n")
    page.click("#conversation input")
    page.click("[role=option]:has-text('Your own')")
    page.wait_for_selector("#drop")
    page.set_input_files("#drop input[type=file]", str(path))
    page.wait_for_function("document.querySelector('.df-strip').textContent.includes('special')")
    page.wait_for_selector(".df-complaints")
    assert "Line 2 is left out: not valid JSON" in page.text_content(".df-complaints")
    page.click("#anatomy .df-copy")
    page.wait_for_function("document.querySelector('#anatomy .df-copy').textContent !== 'Copy link'")
    query = page.evaluate("document.querySelector('#anatomy_link textarea, #anatomy_link input').value")
    assert "input=" in query
    cold = visit("anatomy?" + query).page
    cold.wait_for_function("document.querySelector('.df-strip').textContent.includes('special')")


def test_a_broken_link_says_so_in_a_sentence(visit):
    page = visit("anatomy?anchors=many").page
    page.wait_for_selector(".toast-body")
    assert "The link's anchors is 'many'" in page.text_content(".toast-body")


def test_the_leak_test_runs_from_its_button(visit):
    page = ready(visit("anatomy"))
    page.set_default_timeout(240_000 * PATIENCE)
    page.click("#leak_test")
    page.wait_for_selector(".df-verdict[data-check=leak]")
    assert page.get_attribute(".df-verdict", "data-passed") == "true"
    assert "largest change 0" in page.text_content(".df-verdict")
    assert page.locator(".df-verdict tbody tr").count() > 5


def test_the_address_follows_every_edit_and_reloading_shows_the_same(visit):
    tab = visit("anatomy")
    page = ready(tab)
    assert "?" not in page.url
    page.fill("#anchors input[type=number]", "9")
    page.locator("#anchors input[type=number]").blur()
    page.wait_for_function("location.search.includes('anchors=9')")
    page.locator(".df-strip .df-cell.anchor").nth(2).click()
    page.wait_for_function("location.search.includes('block=2')")
    tab.reload()
    page.wait_for_function("document.querySelector('.df-block-name')?.textContent.startsWith('block 2 of 9')")
    assert page.input_value("#anchors input[type=number]") == "9" and "anchors=9" in page.url


def test_a_pasted_conversation_is_in_the_address_only_once_its_link_was_copied(visit):
    tab = visit("anatomy?anchors=9")
    page = ready(tab)
    page.click("#conversation input")
    page.click("[role=option]:has-text('Your own')")
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A very secret answer."}]}
    page.fill("#line textarea", json.dumps(talk))
    page.locator("#line textarea").blur()
    page.wait_for_function("document.querySelector('.df-strip').textContent.includes('secret')")
    assert "?" not in page.url  # nothing is kept yet, and another conversation would be a lie
    page.click("#anatomy .df-copy")
    page.wait_for_function("location.search.includes('input=')")
    page.fill("#seed input", "5")
    page.wait_for_function("location.search.includes('seed=5')")
    assert "input=" in page.url
    tab.reload()
    page.wait_for_function("document.querySelector('.df-strip')?.textContent.includes('secret')")
    assert page.input_value("#seed input") == "5"


def test_a_share_that_is_neither_nothing_nor_all_never_reads_so(visit):
    page = ready(visit("anatomy?conversation=A+function+and+its+test&gamma=0.5"))
    shares = page.locator(".df-slots tbody td:nth-child(6)").all_text_contents()
    weights = page.locator(".df-slots tbody td:nth-child(5)").all_text_contents()
    assert shares[0].strip() == "0 %" and weights[0] == "0.000"  # the anchor itself teaches nothing
    assert "< 1 %" in [share.strip() for share in shares[1:]]
