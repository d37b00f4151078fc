"""Under pytest every notebook runs from top to bottom in its small setting, and counts as a slow test."""

import os

import pytest

os.environ["DFLASH_NOTEBOOK_SETTING"] = "small"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)
