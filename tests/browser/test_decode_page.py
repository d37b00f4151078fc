"""The Decode page as a person uses it."""

import json

import pytest

pytestmark = pytest.mark.browser


def test_one_click_shows_both_decodings_the_ratio_and_the_badge(visit):
    tab = visit().decode("Count to three.")
    page = tab.page
    target = page.text_content(".df-lane[data-lane=target] .df-text")
    draft = page.text_content(".df-lane[data-lane=draft] .df-text")
    assert target and draft
    assert float(page.text_content(".df-number b")) > 0
    assert "identical" in page.text_content(".df-badge")
    assert "block's shape" in page.text_content(".df-tip")
    rows = page.locator(".df-row").count()
    assert page.locator(".df-group:has(.draft)").count() == rows > 0
    page.wait_for_selector(".df-figures .js-plotly-plot .gtitle")


def test_example_prompts_fill_the_prompt(visit):
    page = visit().page
    page.click(".df-examples button:has-text('Python')")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('Fibonacci')")


def test_the_trace_is_stepped_through_with_the_keyboard_and_lights_up_the_timeline(visit):
    page = visit().decode().page
    page.focus(".df-row")
    for key, step in (("ArrowDown", 2), ("ArrowDown", 3), ("ArrowUp", 2), ("Home", 1)):
        page.keyboard.press(key)
        chosen = page.locator('.df-row[aria-selected="true"]')
        assert chosen.get_attribute("data-step") == str(step)
        assert page.locator(".df-group.chosen").get_attribute("data-step") == str(step)
        assert page.evaluate("document.activeElement.dataset.step") == str(step)
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement === document.querySelector('.df-rows').lastElementChild")


def test_pointing_at_the_timeline_chooses_the_step_in_the_trace(visit):
    page = visit().decode().page
    page.locator(".df-group:has(.draft)").nth(4).hover()
    assert page.locator(".df-row.chosen").get_attribute("data-step") == "5"
    assert page.text_content(".df-readout").startswith("step 5:")


def test_token_texts_are_never_read_as_markup(visit):
    page = visit().decode("<img src=x onerror=alert(1)><b>bold</b>").page
    assert page.locator(".df-quote img, .df-quote b").count() == 0
    assert "<img" in page.text_content(".df-quote")


def test_an_empty_prompt_is_answered_with_a_sentence(visit):
    tab = visit().decode("   ")
    assert "prompt is empty" in tab.page.text_content(".df-status")


def test_a_missing_draft_folder_is_answered_with_a_sentence(visit):
    tab = visit("?prompt=Hi&draft=/no/such/folder")
    tab.wait_for_phase("error")
    assert "/no/such/folder" in tab.page.text_content(".df-status")


def test_a_permalink_opened_cold_restores_the_settings_and_decodes(visit):
    tab = visit("?prompt=Say+hello&max_new_tokens=16&block_size=3&temperature=0")
    tab.wait_for_phase("done")
    page = tab.page
    assert page.input_value("#prompt textarea") == "Say hello"
    assert page.input_value("#max_new_tokens input[type=number]") == "16"
    assert page.input_value("#block_size input[type=number]") == "3"
    assert page.text_content(".df-quote") == "Say hello"
    assert page.locator(".df-row").first.locator(".df-chip").count() == 3


def test_a_sampled_run_gets_no_badge_of_identity(visit):
    tab = visit("?prompt=Say+hello&max_new_tokens=16&temperature=0.8&rule=rejection")
    tab.wait_for_phase("done")
    badge = tab.page.locator(".df-badge")
    assert "not compared" in badge.text_content()
    assert "identical" not in badge.get_attribute("class")


def test_the_trace_can_be_exported_as_json(visit, tmp_path):
    page = visit().decode("Export this.").page
    with page.expect_download() as download:
        page.click(".df-export")
    download.value.save_as(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["prompt"] == "Export this."
    assert len(trace["draft"]["steps"]) == page.locator(".df-row").count() + 1


def test_replay_ends_where_the_run_ended(visit):
    page = visit().decode().page
    whole = page.text_content(".df-lane[data-lane=draft] .df-text")
    page.click(".df-play")
    page.wait_for_function("document.querySelector('.df-play').textContent === 'Replay'")
    assert page.text_content(".df-lane[data-lane=draft] .df-text") == whole


def test_a_closed_tab_leaves_the_engine_to_the_next_visitor(visit):
    first = visit()
    first.page.fill("#max_new_tokens input[type=number]", "256")
    first.page.click("#decode")
    first.wait_for_phase("loading", "target", "draft", "check")
    first.context.close()
    assert visit().decode("My turn.").page.text_content(".df-quote") == "My turn."
