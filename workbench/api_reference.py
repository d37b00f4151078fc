"""docs/api.md, written from the endpoints that the app has: `python -m workbench.api_reference > docs/api.md`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_INTRODUCTION = """# The workbench's API

Whatever a page can do has a named endpoint. Start the workbench (`make app`) and ask it from Python:

```python
from gradio_client import Client

client = Client("http://127.0.0.1:7860/")  # auth=("user", "password") where it asks for one
result = client.predict("Count to three.", max_new_tokens=32, api_name="/decode")
print(result["speedup"], result["identical"])
```

Arguments may be given by name. Mistakes come back as `gradio_client.exceptions.AppError` with the sentence that the
page would show. What computes with the target (decoding, layouts, leak test, layer check) waits for its turn: one at a
time on one machine. `client.submit(...)` gives a job whose `cancel()` ends such work at its next step, as going away
does. Links to pages (`/runs?run=NAME`, `/?prompt=...`) hold all they need and survive a restart.

This file is written by `python -m workbench.api_reference > docs/api.md`; a test compares it with the app.
"""
# Values for the examples, by the name of the parameter; anything else takes what fits its type.
_SAMPLES: dict[str, Any] = {
    "name": "my-run",
    "names": ["my-run", "other-run"],
    "prompt": "Count to three.",
    "origin": "smollm2-135m-cpu",
    "text": "gamma 4 instead of 2.5",
    "prompt_sets": ["dialogue"],
    "tau": 2.1,
    "t_target": 40.0,
    "t_draft": 4.0,
    "t_verify": 46.0,
    "t_overhead": 1.0,
    "query": 5,
    "key": 12,
    "result": "my-run-step-1000",
    "first": "my-run-step-1000",
    "second": "other-run-step-1000",
    "job": "eval-my-run",
    "trace_id": "0123456789abcdef",
}
_FROM_ABOVE = {"trace": "result"}  # what the introduction's example returned
_BY_TYPE: dict[str, Any] = {"str": "", "int": 1, "float": 1.0}


def reference(endpoints: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown. `endpoints`: the `named_endpoints` of Gradio's API description."""
    rows = [f"| [`{name}`](#{name.lstrip('/')}) | {_first_sentence(info)} |" for name, info in endpoints.items()]
    parts = [_INTRODUCTION, "| endpoint | what it does |\n|---|---|\n" + "\n".join(rows) + "\n"]
    parts += [_section(name, info) for name, info in endpoints.items()]
    return "\n".join(parts)


def main() -> None:
    """Print the reference of an app on the embedded target; no model is loaded."""
    from dflash.embedded import EMBEDDED_NAME
    from workbench.app import build_app
    from workbench.bench import Bench

    app = build_app(Bench(EMBEDDED_NAME, "", Path("runs"), device="cpu"))
    sys.stdout.write(reference(app.get_api_info()["named_endpoints"]))


def _section(name: str, info: Mapping[str, Any]) -> str:
    parameters = info["parameters"]
    parts = [f"## {name.lstrip('/')}\n", f"{info.get('description', '').strip()}\n"]
    if parameters:
        parts.append("| argument | type | default |\n|---|---|---|\n" + "\n".join(map(_row, parameters)) + "\n")
    parts.append(f"Returns `{_type(info['returns'][0])}`.\n" if info["returns"] else "Returns nothing.\n")
    parts.append(f"```python\nclient.predict({_arguments(name, parameters)})\n```\n")
    return "\n".join(parts)


def _row(parameter: Mapping[str, Any]) -> str:
    default = f"`{parameter['parameter_default']!r}`" if parameter["parameter_has_default"] else "required"
    kind = _type(parameter).replace("|", "\\|")
    return f"| `{parameter['parameter_name']}` | `{kind}` | {default} |"


def _arguments(name: str, parameters: Sequence[Mapping[str, Any]]) -> str:
    needed = [parameter for parameter in parameters if not parameter["parameter_has_default"]]
    given = [f"{parameter['parameter_name']}={_sample(parameter)}" for parameter in needed]
    return ", ".join([*given, f'api_name="{name}"'])


def _sample(parameter: Mapping[str, Any]) -> str:
    name = parameter["parameter_name"]
    if name in _FROM_ABOVE:
        return _FROM_ABOVE[name]
    return json.dumps(_SAMPLES[name] if name in _SAMPLES else _BY_TYPE.get(_type(parameter), []))


def _type(value: Mapping[str, Any]) -> str:
    return value["python_type"]["type"]


def _first_sentence(info: Mapping[str, Any]) -> str:
    text = info.get("description", "").strip()
    end = min((place for place in (text.find(". "), text.find("; ")) if place > 0), default=len(text))
    return text[:end].rstrip(".").replace("|", "\\|") + "."


if __name__ == "__main__":
    main()
