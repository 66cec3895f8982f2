"""The rooms of the package as a table: each file with its lines and the first sentence of its docstring.

python benchmarks/rooms.py                  print it
python benchmarks/rooms.py docs/design.md   replace the table there
"""

import ast
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "rst_hub"


def table() -> str:
    """Return the table in Markdown."""
    rows = ["| file | lines | what it is |", "|---|---|---|"]
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent != PACKAGE, path.parent, path.name)):
        text = path.read_text(encoding="utf-8")
        said = " ".join((ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].split())
        rows.append(f"| {path.relative_to(PACKAGE).as_posix()} | {len(text.splitlines())} | {said} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table, or write it into a page."""
    if len(sys.argv) < 2:
        print(table())
        return
    page = Path(sys.argv[1])
    text = page.read_text(encoding="utf-8")
    made = re.sub(r"TABLE|\| file \| lines .*?(?=\n\n)", lambda _: table(), text, count=1, flags=re.S)
    page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
