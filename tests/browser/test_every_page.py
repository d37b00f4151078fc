"""What holds on every page: narrow screens, dark and light, links, keyboard."""

import pytest

pytestmark = pytest.mark.browser

READY = {"": ".df-race", "anatomy": ".df-strip .df-cell.anchor", "acceptance": ".df-accept", "train": ".df-field"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", READY)
def test_no_page_scrolls_sideways_on_a_phone(visit, path, scheme):
    tab = visit(path, width=360, scheme=scheme)
    tab.page.wait_for_selector(READY[path])
    if not path:
        tab.decode()
    content, window = tab.widths()
    assert content <= window == 360


@pytest.mark.parametrize("path", READY)
def test_texts_keep_aa_contrast_in_light_and_dark(visit, path):
    for scheme in ("light", "dark"):
        tab = visit(path, scheme=scheme)
        tab.page.wait_for_selector(READY[path])
        if not path:
            tab.decode()
        assert tab.page.evaluate(_LOW_CONTRAST) == []


def test_pages_are_reached_by_their_links(visit):
    page = visit().page
    page.wait_for_timeout(2_000)  # leaving while the page still asks its first questions makes Gradio log an abort
    page.click(".df-bar-top nav a:has-text('Anatomy')")
    page.wait_for_selector(".df-strip")
    assert page.url.endswith("/anatomy")
    assert page.get_attribute(".df-bar-top nav a:has-text('Anatomy')", "aria-current") == "page"


def test_the_chosen_colours_survive_a_reload(visit):
    tab = visit(scheme="light")
    page = tab.page
    page.click(".df-theme")
    assert "dark" in page.get_attribute("body", "class")
    tab.reload()
    page.wait_for_function("document.body.classList.contains('dark')")


def test_decode_is_reached_and_pressed_by_keyboard_alone(visit):
    tab = visit()
    page = tab.page
    page.set_default_timeout(90_000)  # a whole run of the default length
    page.wait_for_timeout(1_000)
    page.focus("#prompt textarea")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "decode":
            break
    page.keyboard.press("Enter")
    tab.wait_for_phase("done")


# Every text node's colour against the nearest opaque ground; WCAG AA asks for 4.5, or 3 for large text.
_LOW_CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll(".df-panel *, .df-bar-top *, .df-side label *, .df-side button")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const style = getComputedStyle(node);
    if (!own || node.closest("[hidden], svg") || style.visibility === "hidden" || !node.getClientRects().length) continue;
    if (node.disabled || Number(style.opacity) < 1) continue;
    const [a, b] = [light(parse(style.color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) bad.push(`${node.className}: ${node.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return bad;
}"""
