"""timm knows rst_hub's entrypoint and networks once both are imported, whichever comes first.

timm takes seconds to import, and ``rst-hub --help`` needs nothing of it: rst_hub waits for it instead of importing it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_with_timm() -> None:
    """Register with timm: now if it is imported, else as soon as it is."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _OnceTimmIsImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OnceTimmIsImported())


def _register() -> None:
    importlib.import_module("rst_hub.hub.entrypoint")


class _OnceTimmIsImported(MetaPathFinder):
    """Finds timm as the other finders do, and registers behind its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            loader.exec_module = execute_and_register
        return spec
