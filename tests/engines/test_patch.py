"""The patch for SGLang 0.5.14 on the wheel as it is published: all files or none, there and back."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dflash.cli.main import main
from dflash.errors import UserError
from dflash.online import patching
from dflash.online.patching import SourcePatch, parse_patch, shipped_patches

VERSION = "0.5.14"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The published wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    # The same file for any Python: it holds no compiled code that matters here.
    download = [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version=3.11",
        "-q",
        "-d",
        str(folder),
    ]
    subprocess.run([sys.executable, *download, f"sglang=={VERSION}"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture
def installed(wheel, tmp_path) -> Path:
    """An environment that has it: the files of the patch, and what tells the version."""
    site_packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for file in parse_patch(shipped_patches()[VERSION].read_bytes()):
        (site_packages / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(wheel / file.path, site_packages / file.path)
    shutil.copytree(wheel / f"sglang-{VERSION}.dist-info", site_packages / f"sglang-{VERSION}.dist-info")
    return tmp_path


def contents(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }


def test_it_applies_to_the_published_wheel_and_reverts_to_the_same_bytes(installed, capsys):
    before = contents(installed)
    assert main(["patch", "check", str(installed)]) == 1
    assert main(["patch", "apply", str(installed)]) == 0
    assert main(["patch", "check", str(installed)]) == 0
    changed = {path for path, digest in contents(installed).items() if before[path] != digest}
    assert len(changed) == 7
    for path in changed:
        compile((installed / path).read_text(), path, "exec")
    assert main(["patch", "revert", str(installed)]) == 0
    assert contents(installed) == before
    assert "as they were released" in capsys.readouterr().out


def test_applying_twice_changes_nothing(installed):
    patch = SourcePatch.find(installed)
    assert patch.apply()
    after = contents(installed)
    assert not patch.apply()
    assert contents(installed) == after


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_a_file_that_someone_changed_is_refused_and_none_is_touched(installed, capsys, action):
    if action == "revert":
        SourcePatch.find(installed).apply()
    changed = next(installed.rglob("model_runner.py"))
    changed.write_text(changed.read_text() + "# mine\n")
    before = contents(installed)
    assert main(["patch", action, str(installed)]) == 2
    error = capsys.readouterr().err
    assert "model_runner.py" in error and "changed by someone else" in error and "Traceback" not in error
    assert contents(installed) == before


def test_a_failure_in_the_middle_leaves_every_file_as_it_was(installed, monkeypatch):
    before = contents(installed)
    replace, calls = patching.os.replace, []

    def full_disk(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(patching.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        SourcePatch.find(installed).apply()
    assert contents(installed) == before


def test_an_application_that_was_cut_off_is_completed_or_undone(installed, wheel):
    before = contents(installed)
    patch = SourcePatch.find(installed)
    patch.apply()
    first = patch.files[0].path
    shutil.copy2(wheel / first, patch.site_packages / first)
    assert patch.state() == "mixed"
    assert patch.apply() and patch.state() == "patched"
    shutil.copy2(wheel / first, patch.site_packages / first)
    assert patch.revert() and contents(installed) == before


def test_git_applies_the_same_patch_to_the_same_result(installed):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    patch = SourcePatch.find(installed)
    command = ["git", "apply", "-p2", str(shipped_patches()[VERSION])]
    ceiling = {"GIT_CEILING_DIRECTORIES": str(patch.site_packages.parent), "PATH": "/usr/bin:/bin"}
    subprocess.run(command, cwd=patch.site_packages, check=True, env=ceiling)
    assert patch.state() == "patched"


def test_versions_without_a_patch_are_told_what_to_do(tmp_path):
    (tmp_path / "sglang").mkdir()
    for version, words in (
        ("0.5.23", "without a patch"),
        ("0.5.24.post1", "without a patch"),
        ("0.4.9", "no patch for"),
    ):
        info = tmp_path / f"sglang-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n")
        with pytest.raises(UserError, match=words):
            SourcePatch.find(tmp_path)
        shutil.rmtree(info)


def test_a_folder_without_sglang_is_one_sentence(tmp_path, capsys):
    assert main(["patch", "apply", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"dflash: There is no SGLang in '{tmp_path}': give an environment's folder or its site-packages.\n"


@pytest.mark.parametrize(
    "damage", [(b"index ", b"index x"), (b"--- a/", b"rename from a/"), (b"\n@@ ", b"\n\\ No newline\n@@ ")]
)
def test_a_patch_that_is_not_understood_is_never_half_read(damage):
    text = shipped_patches()[VERSION].read_bytes()
    with pytest.raises(ValueError, match="not understood"):
        list(parse_patch(text.replace(*damage)))
