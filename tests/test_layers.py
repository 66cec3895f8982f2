import ast
from functools import cache

from conftest import ROOT

PACKAGE = ROOT / "rst_hub"
ROOMS = {
    "networks": {""},
    "attacks": {""},
    "masks": {"", "networks"},
    "data": {"", "networks"},
    "evaluation": {"", "attacks"},
    "tickets": {"", "networks", "masks", "attacks", "evaluation"},
    "cards": {"", "networks", "masks", "attacks", "evaluation", "tickets"},
    "hub": {"", "networks", "masks", "attacks", "evaluation", "tickets", "cards"},
    "runs": {"", "networks", "masks", "data", "attacks", "evaluation", "tickets", "cards", "hub", "cli"},
}
"""What each room may import beside its own files; "" are the files beside the rooms. Lowest first."""
LATE = {("tickets.ticket", "hub.loading"): "Ticket.from_pretrained, which users look for on the class"}
"""Imports against that order: each inside of a function, so that its file is imported without the other, and why."""
BESIDE = {"": {""}, "__init__": {"", *ROOMS}, "cli": {"", *ROOMS}}
ONLY_IN = {
    "timm": {"networks", "hub"},
    "datasets": {"data"},
    "sklearn": {"data"},
    "accelerate": {"runs"},
    "huggingface_hub": {"cards", "hub"},
    "pyautoattack": {"attacks"},
}
SAFETENSORS = {"networks/dense", "tickets/ticket", "tickets/export"}
LONGEST = 430


@cache
def imports():
    """Return, by module ("data.images"), what each imports, also inside functions: modules of ours, and libraries.

    Those of LATE are left out, and have a test of their own.
    """
    return {
        module: ({one for one in ours if (module, one) not in LATE}, others)
        for module, (ours, others) in all_imports().items()
    }


@cache
def all_imports(within=ast.walk):
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        ours, others = set(), set()
        for node in within(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                others |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                others.add(node.module.split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                above = parts[: len(parts) - node.level]
                base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
                named = [f"{base}.{alias.name}".strip(".") for alias in node.names]
                ours |= {one if (PACKAGE / (one.replace(".", "/") + ".py")).exists() else base for one in named}
        found[".".join(parts)] = ours, others
    return found


def room_of(module):
    """Return the room of a module, or "" for one beside the rooms."""
    first = module.split(".")[0]
    return first if first in ROOMS else ""


def test_rooms_import_one_way():
    inner = 0
    for module, (ours, _) in imports().items():
        allowed = {room_of(module)} | ROOMS.get(room_of(module), BESIDE.get(module, BESIDE[""]))
        for target in ours:
            assert room_of(target) in allowed, f"{module} imports {target}"
            inner += 1
    assert inner > 150
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)


def test_no_import_goes_round_in_a_circle():
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(imports().get(module, ((), ()))[0]):
                visit(target, [*path, module])
            done.add(module)

    files = [module for module in imports() if not module.endswith("__init__")]
    for module in files:
        visit(module, [])
    assert len(done) >= len(files) > 60


def test_the_only_imports_upward_are_made_when_they_are_needed():
    at_once = all_imports(ast.iter_child_nodes)
    for module, target in LATE:
        assert target in all_imports()[module][0], f"{module} no longer imports {target}: take it out of LATE"
        assert target not in at_once[module][0], f"{module} imports {target} at once"
    assert len(LATE) == 1
    assert "masks.packed" in at_once["tickets.ticket"][0]


def test_each_library_has_its_place():
    found = {library: set() for library in ONLY_IN}
    for module, (_, others) in imports().items():
        for library in others & set(found):
            found[library].add(room_of(module))
    assert found == ONLY_IN
    assert {m.replace(".", "/") for m, (_, others) in imports().items() if "safetensors" in others} == SAFETENSORS


def test_every_room_says_what_it_is_for_and_has_tests():
    for room in ROOMS:
        said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
        assert "May import:" in said, room
        assert list((ROOT / "tests" / room).glob("test_*.py")), room
    assert len(ROOMS) == 9


def test_no_file_is_long():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path): count for path, count in lines.items() if count > LONGEST} == {}
    assert len(lines) > 70


def test_recipes_are_scripts_of_a_page():
    scripts = sorted((ROOT / "recipes").glob("*.py"))
    assert [path.stem for path in scripts] == ["benchmark", "publish", "search", "train", "transfer"]
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 30, path
        starts = "from rst_hub.runs.publish import main" if path.stem == "publish" else f'leave("{path.stem}")'
        assert starts in text
