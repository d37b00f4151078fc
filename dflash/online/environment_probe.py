"""Run inside an engines' environment: says as JSON, on the last line of its output, what works there.

python -I -m dflash.online.environment_probe
"""

import importlib.metadata
import json
import os
import sys


def main() -> None:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("sglang", "torch", "transformers", "dflash-workbench"):
        found[name] = _version(name)
    found["mooncake"] = _version("mooncake-transfer-engine") or _version("mooncake-transfer-engine-non-cuda")
    found["mooncake_error"] = _mooncake_error()
    found["plugin_error"] = _plugin_error()
    print(json.dumps(found))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _mooncake_error() -> str | None:
    try:
        import mooncake.store  # noqa: F401  # loads its shared libraries
    except ImportError as error:
        return str(error)
    return None


def _plugin_error() -> str | None:
    """Load SGLang's plugins as its scheduler does, and look whether each hook found its function."""
    from dflash.online import capture_plugin
    from dflash.online.capture_settings import CaptureSettings

    os.environ.update(CaptureSettings("127.0.0.1:1").environment())  # nothing connects before a scheduler is built
    try:
        from sglang.srt.plugins import load_plugins

        load_plugins()
    except Exception as error:  # a broken environment fails in any way it likes; the reason is the answer
        return f"{type(error).__name__}: {error}"
    if capture_plugin.settings() is None:
        return "SGLang does not load it"
    missing = capture_plugin.missing_hooks()
    return f"this SGLang has no {', '.join(missing)}" if missing else None


if __name__ == "__main__":
    main()
