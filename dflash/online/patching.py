"""Changing an installed SGLang as a patch of `patches/` says, all files or none, and changing it back byte for byte.

A patch names each file's content before and after (git's blob ids), so that a file is either the original, or patched,
or refused: nothing is applied "approximately".
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dflash.errors import UserError

NATIVE = (0, 5, 23)  # the first SGLang that captures without a patch
_SOURCE_FOLDER = Path(__file__).resolve().parents[2] / "patches"
_DISTRIBUTION = "dflash-workbench"
_PARTIAL = ".dflash-partial"

State = Literal["original", "patched", "mixed"]


@dataclass(frozen=True)
class Hunk:
    """Lines that replace others. Line numbers count from 0 in the file before and in the file after."""

    before_at: int
    after_at: int
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]


@dataclass(frozen=True)
class FilePatch:
    """The change of one file; `path` is relative to site-packages."""

    path: str
    before_id: str  # git's blob id of the whole file
    after_id: str
    hunks: tuple[Hunk, ...]

    def change(self, content: bytes, *, back: bool) -> bytes:
        """The file's other content. `content` must be that of the blob the change starts from."""
        lines = content.splitlines(keepends=True)
        for hunk in reversed(self.hunks):  # from the end, so that earlier line numbers stay right
            start, old, new = (
                (hunk.after_at, hunk.after, hunk.before) if back else (hunk.before_at, hunk.before, hunk.after)
            )
            lines[start : start + len(old)] = new
        changed = b"".join(lines)
        if blob_id(changed) != (self.before_id if back else self.after_id):
            raise ValueError(f"the patch of {self.path} does not give the content it promises")
        return changed


class SourcePatch:
    """A patch for one version of SGLang, on one installation of it."""

    def __init__(self, site_packages: Path, files: list[FilePatch]) -> None:
        self.site_packages, self.files = site_packages, files

    @classmethod
    def find(cls, place: Path) -> "SourcePatch":
        """The shipped patch that fits the SGLang in an environment, or in a site-packages folder.

        Raises:
            UserError: there is no SGLang, or one that needs no patch, or one for which there is none.
        """
        site_packages = _site_packages(place)
        version = _installed_version(site_packages)
        patches = shipped_patches()
        if version not in patches:
            native = ".".join(map(str, NATIVE))
            if version == native:
                raise UserError(
                    f"SGLang {version} in {str(site_packages)!r} captures without a patch: nothing is to be done."
                )
            if _as_numbers(version) >= NATIVE:
                raise UserError(
                    f"SGLang {version} in {str(site_packages)!r} is untested: use {native}, which captures without a "
                    "patch."
                )
            known = ", ".join(sorted(patches)) or "none is shipped"
            raise UserError(
                f"There is no patch for SGLang {version} in {str(site_packages)!r} (there are for: {known}): use one "
                f"of those, or {native}, which needs none."
            )
        return cls(site_packages, list(parse_patch(patches[version].read_bytes())))

    def state(self) -> State:
        """What the files are; "mixed" when an earlier change was cut off between two of them.

        Raises:
            UserError: a file is neither the original nor the patched one, or is missing.
        """
        patched = [self._is_patched(file) for file in self.files]
        return "patched" if all(patched) else "mixed" if any(patched) else "original"

    def apply(self) -> bool:
        """Patch every file; returns whether there was anything to do. Raises UserError as `state` does."""
        return self._change(back=False)

    def revert(self) -> bool:
        """Bring every file back to its original bytes; returns whether there was anything to do."""
        return self._change(back=True)

    def _change(self, *, back: bool) -> bool:
        pending = [file for file in self.files if self._is_patched(file) == back]  # refuses before anything is written
        originals = {self.site_packages / file.path: (self.site_packages / file.path).read_bytes() for file in pending}
        changed = {
            path: file.change(content, back=back)
            for file, (path, content) in zip(pending, originals.items(), strict=True)
        }
        replaced: list[Path] = []
        try:
            for path, content in changed.items():  # all of them on the disk before the first is replaced
                _write_beside(path, content)
            for path in changed:
                os.replace(f"{path}{_PARTIAL}", path)
                replaced.append(path)
        except BaseException:
            for path in replaced:
                _write_beside(path, originals[path])
                os.replace(f"{path}{_PARTIAL}", path)
            raise
        finally:
            for path in changed:
                Path(f"{path}{_PARTIAL}").unlink(missing_ok=True)
        return bool(changed)

    def _is_patched(self, file: FilePatch) -> bool:
        path = self.site_packages / file.path
        if not path.is_file():
            raise UserError(f"File {str(path)!r} is missing: install this SGLang again, then patch it.")
        found = blob_id(path.read_bytes())
        if found not in (file.before_id, file.after_id):
            raise UserError(
                f"File {str(path)!r} was changed by someone else: install this SGLang again, then patch it."
            )
        return found == file.after_id


def parse_patch(text: bytes) -> Iterator[FilePatch]:
    """The files of a patch in git's format with full blob ids. Paths start with "a/python/", as in SGLang's repository.

    Raises:
        ValueError: it creates, removes or renames files, or has something else in it that is not understood.
    """
    for part in re.split(rb"^(?=diff --git )", text, flags=re.MULTILINE)[1:]:
        header, *hunks = re.split(rb"^(?=@@ )", part, flags=re.MULTILINE)
        found = re.fullmatch(
            rb"diff --git a/python/(\S+) b/python/\1\nindex ([0-9a-f]{40})\.\.([0-9a-f]{40}) \d+\n"
            rb"--- a/python/\1\n\+\+\+ b/python/\1\n",
            header,
        )
        if found is None or not hunks:
            raise ValueError(f"not understood: {header.decode(errors='replace')!r}")
        path, before_id, after_id = (group.decode() for group in found.groups())
        yield FilePatch(path, before_id, after_id, tuple(_parse_hunk(hunk) for hunk in hunks))


def _parse_hunk(text: bytes) -> Hunk:
    head, *lines = text.splitlines(keepends=True)
    before_at, after_at = re.match(rb"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@", head).groups()
    if any(line[:1] not in (b" ", b"-", b"+") for line in lines):
        raise ValueError(f"not understood: {text.decode(errors='replace')!r}")
    return Hunk(
        int(before_at) - 1,
        int(after_at) - 1,
        tuple(line[1:] for line in lines if line[:1] != b"+"),
        tuple(line[1:] for line in lines if line[:1] != b"-"),
    )


def blob_id(content: bytes) -> str:
    """git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def shipped_patches() -> dict[str, Path]:
    """The patches that come with this package, by SGLang's version: from the source tree, or from a normal install."""
    if _SOURCE_FOLDER.is_dir():
        files = list(_SOURCE_FOLDER.glob("*.patch"))
    else:
        try:
            listed = importlib.metadata.files(_DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            listed = []
        files = [Path(f.locate()).resolve() for f in listed if f.parent.name == "patches" and f.suffix == ".patch"]
    return {path.stem.removeprefix("sglang-"): path for path in sorted(files)}


def _site_packages(place: Path) -> Path:
    candidates = [place, *place.glob("lib/python3*/site-packages")]
    for folder in candidates:
        if (folder / "sglang").is_dir():
            return folder
    raise UserError(f"There is no SGLang in {str(place)!r}: give an environment's folder or its site-packages.")


def _installed_version(site_packages: Path) -> str:
    for distribution in importlib.metadata.distributions(name="sglang", path=[str(site_packages)]):
        return distribution.version
    raise UserError(f"The SGLang in {str(site_packages)!r} has no version: install it from a wheel.")


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split("."))


def _write_beside(path: Path, content: bytes) -> None:
    partial = Path(f"{path}{_PARTIAL}")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    shutil.copymode(path, partial)
