import ast
from pathlib import Path

from conftest import ROOT

# Lowest first; a module imports only from those in front of it.
LAYERS = [
    "version",
    "errors",
    "float32",
    "console",
    "files",
    "bits",
    "weights",
    "roles",
    "masking",
    "randomised",
    "attacks",
    "blackbox",
    "adaptive",
    "evaluate",
    "autoattack",
    "suite",
    "flags",
    "cifar",
    "standardised",
    "models",
    "config",
    "folders",
    "decoding",
    "splits",
    "data",
    "ticket",
    "pool",
    "r2s",
    "export",
    "wording",
    "results",
    "gathered",
    "paper",
    "pictures",
    "card",
    "listing",
    "hub",
    "publish",
    "entrypoint",
    "__init__",
    "cli",
]
ONLY_IN = {
    "timm": {"cifar", "standardised", "models", "entrypoint"},
    "datasets": {"splits"},
    "sklearn": {"data"},
    "safetensors": {"models", "ticket", "export"},
    "accelerate": set(),
    "huggingface_hub": {"card", "listing", "hub", "publish"},
    "pyautoattack": {"autoattack"},
}


def imports(path):
    """Yield (top-level package or '.module') of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            yield from ([f".{node.module}"] if node.module else [f".{alias.name}" for alias in node.names])


def test_imports_run_one_way():
    files = {path.stem: path for path in (ROOT / "rst_hub").glob("*.py")}
    assert set(files) == set(LAYERS)
    inner = 0
    for name, path in files.items():
        for target in imports(path):
            if target.startswith("."):
                assert LAYERS.index(target[1:]) < LAYERS.index(name), f"{name} imports {target}"
                inner += 1
    assert inner > 25


def test_each_library_has_its_place():
    found = {library: set() for library in ONLY_IN}
    for path in (ROOT / "rst_hub").glob("*.py"):
        for target in imports(path):
            if target in found:
                found[target].add(path.stem)
    assert found == ONLY_IN


def test_every_module_has_its_test_file():
    modules = {path.stem for path in (ROOT / "rst_hub").glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert tests - modules == {
        *("architectures", "checks", "default_dtype", "described_input", "fitting", "full_disk", "guard", "hostile"),
        *("kills", "launch", "layers", "lifts", "measuring", "own_images", "pixel_model", "r2s_as_one", "recipes"),
        *("size", "timm_registration", "trial", "zoo"),
    }
    assert modules - tests == {"float32", "randomised"}  # whose tests are default_dtype and r2s_as_one


def test_recipes_shadow_no_library():
    import importlib.util
    import sys

    names = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert len(names) == 16
    elsewhere = [folder for folder in sys.path if Path(folder).resolve() != ROOT / "recipes"]
    for name in names:
        assert importlib.machinery.PathFinder.find_spec(name, elsewhere) is None, name
