"""Conversations, saved traces, replay by keyboard, ways side by side, and work that ends when nobody wants it."""

import json
import time
from urllib.parse import parse_qsl, urlsplit

import pytest
from workbench_server import PATIENCE

from dflash.model.config import DFlashConfig
from dflash.model.draft import DFlashDraft
from dflash.target import TargetModel

pytestmark = pytest.mark.browser


def few_tokens(page, count: int = 16) -> None:
    page.fill("#max_new_tokens input[type=number]", str(count))


def said(page) -> list[str]:
    return page.locator("#history textarea").evaluate_all("boxes => boxes.map(box => box.value)")


def converse(tab, text: str) -> None:
    before = len(said(tab.page))
    tab.decode(text)
    grown = "count => document.querySelectorAll('#history textarea').length === count + 2"
    tab.page.wait_for_function(grown, arg=before)


def test_a_conversation_goes_on_from_what_was_said_and_can_be_edited_and_cleared(visit):
    tab = visit()
    page = tab.page
    few_tokens(page)
    page.check("#talk input")
    converse(tab, "First question.")
    assert said(page)[0] == "First question." and said(page)[1]
    assert page.input_value("#prompt textarea") == ""
    page.fill("#history textarea >> nth=0", "Another first question.")
    converse(tab, "Second question.")
    assert said(page)[0] == "Another first question." and said(page)[2] == "Second question."
    assert page.text_content(".df-behind") == "behind 2 messages"
    page.click("#history .df-turn:last-child button:has-text('Remove')")
    assert len(said(page)) == 3
    page.click("#history .df-clear")
    assert said(page) == []
    converse(tab, "A new beginning.")
    assert said(page)[0] == "A new beginning." and page.text_content(".df-behind") == ""


def test_two_tabs_never_share_what_was_said_or_decoded(visit):
    first, second = visit(), visit()
    for tab, text in ((first, "Tab one."), (second, "Tab two.")):
        few_tokens(tab.page)
        tab.page.check("#talk input")
        tab.page.fill("#prompt textarea", text)
    first.page.click("#decode")  # both at once: one waits for the other
    second.page.click("#decode")
    for tab, text in ((first, "Tab one."), (second, "Tab two.")):
        tab.wait_for_phase("done")
        tab.page.wait_for_function("document.querySelectorAll('#history textarea').length === 2")
        assert said(tab.page)[0] == text == tab.page.text_content(".df-quote")


def test_a_saved_trace_is_opened_again_by_its_link_without_decoding(visit, monkeypatch):
    tab = visit()
    few_tokens(tab.page)
    tab.decode("Keep this.")
    page = tab.page
    text = page.text_content(".df-lane[data-lane=draft] .df-text")
    page.click(".df-save")
    page.wait_for_function("document.querySelector('#saved textarea, #saved input').value.length === 24")
    name = page.evaluate("document.querySelector('#saved textarea, #saved input').value")

    def refuse(*args, **options):
        raise AssertionError("a saved trace needs no forward of the target")

    monkeypatch.setattr(TargetModel, "forward", refuse)
    cold = visit(f"?trace={name}").page
    cold.wait_for_function("document.querySelector('.df-quote').textContent === 'Keep this.'")
    assert cold.text_content(".df-lane[data-lane=draft] .df-text") == text
    assert cold.text_content(".df-recorded").startswith("Saved")
    assert cold.input_value("#prompt textarea") == "Keep this."
    assert "identical" in cold.text_content(".df-badge")


@pytest.mark.parametrize("name", ["../../etc/passwd", "0" * 24])
def test_a_link_to_no_trace_is_answered_with_a_sentence(visit, name):
    page = visit(f"?trace={name}").page
    page.wait_for_selector(".toast-body")
    assert "saved trace" in page.text_content(".toast-body")


def test_the_replay_pauses_seeks_and_goes_on_by_keyboard(visit):
    tab = visit()
    tab.decode("Replay this.")
    page = tab.page
    page.click("[data-pace='0.125']")
    lane = ".df-lane[data-lane=draft] .df-text"
    whole = page.text_content(lane)
    page.focus(lane)
    page.keyboard.press("Space")
    assert page.text_content(".df-play") == "Pause"
    page.keyboard.press("Space")
    assert page.text_content(".df-play") == "Go on"
    page.focus(".df-seek")
    page.keyboard.press("Home")
    assert page.text_content(lane) == ""
    page.keyboard.press("End")
    assert page.text_content(lane) == whole
    assert "seconds" in page.get_attribute(".df-seek", "aria-valuetext")
    page.click(".df-skip")
    assert page.text_content(".df-play") == "Replay" and page.text_content(lane) == whole


def test_ways_are_added_measured_side_by_side_and_exported(visit, tmp_path):
    tab = visit()
    page = tab.page
    page.set_default_timeout(90_000 * PATIENCE)
    few_tokens(page)
    page.fill("#prompt textarea", "Compare this.")
    page.click("#add_way")
    page.wait_for_function("document.querySelectorAll('.df-entry').length === 1")
    page.fill("#block_size input[type=number]", "2")
    page.locator("#block_size input[type=number]").blur()
    page.click("#add_way")
    page.wait_for_function("document.querySelectorAll('.df-entry').length === 2")
    page.click("#compare")
    page.wait_for_selector(".df-ways[data-phase=done]")
    labels = page.locator(".df-ways tbody td:first-child").all_text_contents()
    assert labels[0] == "Target alone" and labels[-2:] == ["Plain generate", "Prompt lookup, 10 tokens"]
    assert ["block 4" in labels[1], "block 2" in labels[2]] == [True, True]
    verdicts = page.locator(".df-ways tbody td:last-child").all_text_contents()
    assert verdicts[0] == "the yardstick" and all("identical" in words for words in verdicts[1:3])
    with page.expect_download() as download:
        page.click(".df-ways .df-export")
    download.value.save_as(tmp_path / "ways.json")
    kept = json.loads((tmp_path / "ways.json").read_text())
    assert kept["prompt"] == "Compare this." and len(kept["rows"]) == 5
    page.click(".df-entry >> nth=0 >> .df-remove")
    page.wait_for_function("document.querySelectorAll('.df-entry').length === 1")


def test_whoever_removes_a_way_by_keyboard_stays_in_the_list(visit):
    page = visit().page
    for size, count in (("2", 1), ("3", 2)):
        page.fill("#block_size input[type=number]", size)
        page.locator("#block_size input[type=number]").blur()
        page.click("#add_way")
        page.wait_for_function("count => document.querySelectorAll('.df-entry').length === count", arg=count)
    page.focus(".df-entry >> nth=0 >> .df-remove")
    for left, focused in ((1, ".df-entry:first-child .df-remove"), (0, "#add_way")):
        page.keyboard.press("Enter")
        page.wait_for_function("count => document.querySelectorAll('.df-entry').length === count", arg=left)
        assert page.evaluate("wanted => document.activeElement === document.querySelector(wanted)", focused)


def test_the_trace_of_a_later_turn_is_stepped_through_by_keyboard_and_spoken(visit):
    tab = visit()
    page = tab.page
    few_tokens(page)
    page.check("#talk input")
    converse(tab, "First question.")
    converse(tab, "Second question.")
    page.focus(".df-row")
    page.keyboard.press("ArrowDown")
    chosen = page.locator('.df-row[aria-selected="true"]')
    assert chosen.get_attribute("data-step") == "2" == page.evaluate("document.activeElement.dataset.step")
    rejected = chosen.locator(".df-chip.rej").count()
    spoken = chosen.get_attribute("aria-label")
    assert spoken.startswith("step 2: ") and ("rejected" in spoken) == (rejected > 0)


def test_memory_that_runs_out_is_said_in_the_lanes_and_in_the_comparison(visit, monkeypatch):
    tab = visit()
    page = tab.page
    few_tokens(page, 8)
    tab.decode("Warm up.")

    def out_of_memory(*args, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(TargetModel, "forward", out_of_memory)
        tab.decode("Too much.")
        assert "ran out of memory" in page.text_content(".df-race .df-status")
        page.click("#compare")
        page.wait_for_selector(".df-ways[data-phase=error]")
        assert "ran out of memory" in page.text_content(".df-ways .df-status")
    assert "identical" in tab.decode("And now this.").page.text_content(".df-badge")


def test_a_small_draft_that_cannot_be_used_is_answered_with_a_sentence(visit):
    page = visit().page
    page.fill("#assistant textarea, #assistant input", "/no/such/model")
    page.click("#compare")
    page.wait_for_selector(".df-ways[data-phase=error]")
    assert "/no/such/model" in page.text_content(".df-ways .df-status")


def test_a_stopped_decoding_leaves_the_engine_within_a_step(visit, monkeypatch):
    """Forwards are counted in the server itself, which runs in this process."""
    forwards = []
    real = TargetModel.forward

    def counted(self, *args, **options):
        forwards.append(time.monotonic())
        return real(self, *args, **options)

    monkeypatch.setattr(TargetModel, "forward", counted)
    tab = visit("?prompt=Warm+up&max_new_tokens=8")
    tab.wait_for_phase("done")
    page = tab.page
    few_tokens(page, 448)
    page.fill("#prompt textarea", "Go on and on.")
    page.click("#decode")
    tab.wait_for_phase("target", "draft")
    page.click("#stop")
    tab.wait_for_phase("stopped")
    page.wait_for_timeout(1_500)
    count = len(forwards)
    page.wait_for_timeout(700)
    assert len(forwards) == count
    few_tokens(page, 8)
    began = time.monotonic()
    tab.decode("And now this.")
    assert page.text_content(".df-quote") == "And now this."
    assert time.monotonic() - began < 20 * PATIENCE


def long_comparison(visit, under_way: str):
    """A tab that compares for a long time, as soon as it shows what `under_way` selects."""
    tab = visit()
    few_tokens(tab.page, 320)
    tab.page.fill("#rounds input", "9")
    tab.page.click("#compare")
    tab.page.wait_for_selector(under_way)
    return tab


def test_a_stopped_comparison_lets_the_next_visitor_in(visit):
    first = long_comparison(visit, ".df-ways tbody tr")
    first.page.click("#stop_compare")
    first.page.wait_for_selector(".df-ways[data-phase=stopped]")
    second = visit()
    few_tokens(second.page, 8)
    assert second.decode("My turn.").page.text_content(".df-quote") == "My turn."


def test_whoever_waits_is_told_the_place_in_the_queue(visit):
    first = long_comparison(visit, ".df-ways[data-phase=running]")
    second = visit()
    few_tokens(second.page, 8)
    second.page.click("#decode")
    second.wait_for_phase("waiting")
    assert "ahead of this one" in second.page.text_content(".df-status")
    first.page.click("#stop_compare")
    second.wait_for_phase("done")


def address(page) -> dict[str, str]:
    """What the address names."""
    return dict(parse_qsl(urlsplit(page.url).query))


def test_the_address_follows_every_edit_and_reloading_decodes_the_same_again(visit):
    tab = visit()
    page = tab.page
    assert address(page) == {}
    few_tokens(page)
    page.locator("#max_new_tokens input[type=number]").blur()
    page.wait_for_function("location.search.includes('max_new_tokens=16')")
    page.click(".df-examples button:has-text('Python')")
    page.wait_for_function("location.search.includes('Fibonacci')")
    tab.decode("Remember this.")
    page.wait_for_function("location.search.includes('prompt=Remember+this.')")
    assert address(page)["block_size"] == "4"
    before, text = page.url, page.text_content(".df-lane[data-lane=draft] .df-text")
    tab.reload()
    tab.wait_for_phase("done")
    assert page.url == before
    assert page.input_value("#prompt textarea") == "Remember this."
    assert page.text_content(".df-lane[data-lane=draft] .df-text") == text


def test_the_address_keeps_the_step_under_inspection_of_a_saved_trace(visit):
    tab = visit()
    few_tokens(tab.page)
    tab.decode("Keep this step.")
    page = tab.page
    page.focus(".df-row")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("location.search.includes('step=3')")
    page.click(".df-save")
    page.wait_for_function("location.search.includes('trace=')")
    assert set(address(page)) == {"trace", "step"} and address(page)["step"] == "3"
    tab.reload()
    page.wait_for_function("document.querySelector('.df-quote')?.textContent === 'Keep this step.'")
    page.wait_for_selector('.df-row[data-step="3"][aria-selected="true"]')
    assert page.locator(".df-block.chosen").get_attribute("data-step") == "3"
    few_tokens(page, 24)  # no longer what the trace shows
    page.locator("#max_new_tokens input[type=number]").blur()
    page.wait_for_function("!location.search.includes('trace=')")
    assert "step" not in address(page) and address(page)["prompt"] == "Keep this step."


def test_an_address_without_a_prompt_restores_the_settings_and_decodes_nothing(visit):
    page = visit("?prompt=&max_new_tokens=24").page
    page.wait_for_function("document.querySelector('#max_new_tokens input[type=number]').value === '24'")
    page.wait_for_timeout(500)
    assert page.get_attribute(".df-race", "data-phase") != "error"
    assert page.get_attribute(".df-race", "data-recorded") != "false"


def test_another_draft_with_smaller_blocks_is_in_the_address_with_its_block_size(visit, tiny_target, tmp_path):
    config = DFlashConfig.for_target(tiny_target, num_hidden_layers=1, num_features=2, block_size=3)
    DFlashDraft(config).save_pretrained(tmp_path / "other")
    page = visit().page
    page.fill("#draft input", str(tmp_path / "other"))
    page.locator("#draft input").press("Enter")
    page.wait_for_function("location.search.includes('block_size=3')")
    assert address(page)["draft"] == str(tmp_path / "other")
