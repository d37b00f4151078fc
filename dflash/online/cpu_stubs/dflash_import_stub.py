"""Modules that can be imported and looked into, but whose functions cannot be called.

SGLang imports `sgl_kernel` and `torchvision` at start, in whatever depth, and calls neither for plain prefill and
decode of text models on a CPU. The wheel of the first needs a GPU; the second would bring a CUDA build of torch along.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType


class _PlaceholderType(type):
    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _placeholder(f"{cls.__module__}.{cls.__qualname__}.{name}")
        setattr(cls, name, value)
        return value

    def __call__(cls, *_args, **_kwargs):
        raise NotImplementedError(
            f"{cls.__module__}.{cls.__qualname__} is a stand-in of DFlash Workbench for servers without a GPU: "
            "what was asked for needs the real package."
        )


def _placeholder(path: str):
    """A class of that name: it may be a default value, an annotation, a dictionary's key or a base to look at."""
    module, _, name = path.rpartition(".")
    return _PlaceholderType(name, (), {"__module__": module, "__qualname__": name})


class _StubModule(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _placeholder(f"{self.__name__}.{name}")
        setattr(self, name, value)  # the same one every time, so that comparisons by identity hold
        return value


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every submodule of the given packages, however deep."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname.startswith(f"{self.package}."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StubModule(spec.name)

    def exec_module(self, module) -> None:
        pass  # there is nothing in it


def stub(package: str) -> None:
    """Make the package that calls this, and everything below it, a stand-in."""
    sys.modules[package].__class__ = _StubModule
    sys.meta_path.append(_StubFinder(package))
