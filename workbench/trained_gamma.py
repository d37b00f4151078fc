"""The decay of slot weights that the draft of a result was trained with, from where its training wrote it down."""

from dflash.config import default_gamma
from dflash.errors import UserError
from dflash.evaluation.report_file import Evaluation
from dflash.model.draft_folder import SHIPPED_DRAFT_RECIPES
from dflash.recipes import resolve_recipe
from workbench.run_reader import RunsRoot
from workbench.run_summary import read_settings


def trained_gamma(name: str, result: Evaluation, runs: RunsRoot) -> float | None:
    """Gamma of a run's result (RUN/NAME) from the run's config, of a shipped draft's from its recipe; else None."""
    run, _, _ = name.rpartition("/")
    recipe = SHIPPED_DRAFT_RECIPES.get(result.settings.get("target")) if result.draft_name == "shipped" else None
    try:
        if run:
            settings = runs.settings(run)
        elif recipe:
            settings = read_settings(resolve_recipe(recipe))
        else:
            return None
        gamma, size = settings["blocks"]["gamma"], settings["draft"]["block_size"]
        return float(default_gamma(int(size)) if gamma is None else gamma)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None  # a run that is gone or of another version does not say it; its results are whole all the same
