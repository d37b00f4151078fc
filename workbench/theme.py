"""How the workbench looks: system fonts, one accent, style sheets from `static/`."""

from functools import lru_cache
from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

_STATIC = Path(__file__).parent / "static"
_PAGE_STYLES = ("tokens.css", "page.css")
_COMPONENT_STYLES = (
    "layout.css",
    "train.css",
    "race.css",
    "details.css",
    "history.css",
    "ways.css",
    "anatomy.css",
    "runs.css",
    "acceptance.css",
)


@lru_cache
def static_text(name: str) -> str:
    """A file of `static/` as text."""
    return (_STATIC / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """A flat theme whose surfaces and lines come from `tokens.css`, so that light and dark need one definition."""
    base = gr.themes.Base(
        primary_hue=colors.blue,
        neutral_hue=colors.slate,
        text_size=sizes.text_md,
        radius_size=sizes.radius_sm,
        font=fonts.Font("sans-serif"),
        font_mono=fonts.Font("monospace"),
    )
    shared = {
        "body_background_fill": "var(--df-ground)",
        "body_text_color": "var(--df-ink)",
        "body_text_color_subdued": "var(--df-muted)",
        "background_fill_primary": "var(--df-surface)",
        "background_fill_secondary": "var(--df-ground)",
        "border_color_primary": "var(--df-line)",
        "border_color_accent": "var(--df-draft)",
        "color_accent": "var(--df-draft-fill)",
        "color_accent_soft": "var(--df-draft-soft)",
        "block_background_fill": "var(--df-surface)",
        "block_border_color": "var(--df-line)",
        "block_label_text_color": "var(--df-muted)",
        "block_title_text_color": "var(--df-muted)",
        "block_info_text_color": "var(--df-muted)",
        "input_background_fill": "var(--df-surface)",
        "input_border_color": "var(--df-line)",
        "input_border_color_focus": "var(--df-draft)",
        "input_placeholder_color": "var(--df-muted)",
        "slider_color": "var(--df-draft-fill)",
        "link_text_color": "var(--df-draft)",
        "link_text_color_hover": "var(--df-draft)",
        "link_text_color_visited": "var(--df-draft)",
        "link_text_color_active": "var(--df-draft)",
        "button_primary_background_fill": "#1d5fb8",
        "button_primary_background_fill_hover": "#174e98",
        "button_primary_text_color": "#ffffff",
        "button_primary_border_color": "#1d5fb8",
        "button_secondary_background_fill": "var(--df-surface)",
        "button_secondary_background_fill_hover": "var(--df-well)",
        "button_secondary_text_color": "var(--df-ink)",
        "button_secondary_border_color": "var(--df-line)",
        "button_secondary_border_color_hover": "var(--df-muted)",
        "checkbox_label_background_fill": "var(--df-surface)",
        "checkbox_label_background_fill_hover": "var(--df-well)",
        "checkbox_label_background_fill_selected": "var(--df-draft-soft)",
        "checkbox_label_text_color": "var(--df-ink)",
        "checkbox_label_text_color_selected": "var(--df-ink)",
        "checkbox_label_border_color": "var(--df-line)",
        "error_background_fill": "var(--df-surface)",
        "error_text_color": "var(--df-own)",
        "error_border_color": "var(--df-own)",
        "shadow_drop": "none",
        "shadow_drop_lg": "none",
    }
    dark = {f"{name}_dark": value for name, value in shared.items() if hasattr(base, f"{name}_dark")}
    return base.set(**shared, **dark, button_border_width="1px", button_border_width_dark="1px")


def head() -> str:
    """What every page's <head> gets: style sheets and the helpers that the components share.

    The styles are here and not in Gradio's `css`, which rewrites selectors and applies them only after the page is up.
    Those of components are nested in the page's container, so that they win over Gradio's resets.
    """
    page = "\n".join(static_text(name) for name in _PAGE_STYLES)
    components = "\n".join(static_text(name) for name in _COMPONENT_STYLES)
    return f"<style>{page}\n.gradio-container {{\n{components}\n}}</style><script>{static_text('common.js')}</script>"
