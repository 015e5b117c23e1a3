"""Every example in the README, in docs/ and in the package's docstrings runs and prints what it says.

Run as a program, this file writes docs/5-ops.md anew.
"""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
from undrawn import leave_pictures_empty

import minigan as mg
from minigan import registry

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = ROOT / "docs" / "5-ops.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Left out: their import needs Numba, and what they have to show is generated code.
NUMBA = ("interpreter", "memory", "product", "vector", "workers")
MODULES = [
    name
    for name in ["minigan", *(module.name for module in pkgutil.walk_packages(mg.__path__, "minigan."))]
    if name not in ("minigan.__main__", *[f"minigan.kernels.{module}" for module in NUMBA])
]


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """Line number and text of each code block of a language."""
    text = path.read_text()
    return [(text.count("\n", 0, m.start(2)), m[2]) for m in FENCE.finditer(text) if m[1] == language]


def run(test: doctest.DocTest) -> None:
    """Run the examples; a failure's message says what they should have printed."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(test, out=report.append).failed
    assert not failed, "".join(report)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_sessions_in_documents(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    leave_pictures_empty(monkeypatch.setattr)
    parser = doctest.DocTestParser()
    examples = []
    for line, text in blocks(path, "python"):
        for example in parser.get_examples(text):
            example.lineno += line
            examples.append(example)
    run(doctest.DocTest(examples, {"__name__": path.stem}, path.name, str(path), 0, None))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_programs_in_documents(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line, text in blocks(path, "python"):
        if ">>>" not in text:
            short = re.sub(r"steps=[\d_]+", "steps=3", text)  # a program of a minute runs in a second
            exec(compile("\n" * line + short, str(path), "exec"), {"__name__": path.stem})  # noqa: S102


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_excerpts_are_the_code(path: Path) -> None:
    code = "\n".join(source.read_text() for source in Path(mg.__file__).parent.rglob("*.py"))
    assert [text for _, text in blocks(path, "py") if text not in code] == []


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module):
        run(test)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", path.read_text()))
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not (path.parent / target).exists()] == []


PREFACE = """\
# 5. The operations, generated from the code

Every primitive of the package, that is, everything that `apply` can be called with. The functions in `mg.ops`
and the operators of `mg.Tensor` are made of these. `python tests/test_docs.py` writes this page, and a test
fails when it is not what the code would give now.

- **formula**: the scalar formula of a pointwise operation, from which its loop is generated. The others have
  a kernel of their own; a *view* moves no data.
- **derivative**: a *rule* is written by hand, in operations; a *reference* is a composition of other
  operations, with which the tests compare the kernel and from which the derivative comes where there is no
  rule. *None* is for masks, indices, random numbers and updates in place.
- **linear in**: the inputs, counted from 0, in which the operation is linear: there its rule is the adjoint.
- **flops**: floating point operations, as the code counts them: of an element, or of a call on inputs of the
  shapes given.

| operation | formula | derivative | linear in | flops |
|---|---|---|---|---|
"""


def table_of_operations() -> str:
    """docs/5-ops.md as the code would have it."""
    lines = []
    for primitive in registry.primitives():
        row = registry.row(primitive)
        formula = (
            f"`{row.formula}`".replace("|", "\\|") if row.formula else "view" if primitive.view else "kernel"
        )
        ways = [name for name in ("vjp", "reference") if getattr(primitive, name) is not None]
        derivative = ", ".join(ways).replace("vjp", "rule") or "none"
        shapes = ", ".join(str(shape) for shape in row.shapes)
        flops = (
            f"{primitive.formula.operations} an element" if primitive.formula else f"{row.flops} for {shapes}"
        )
        linear = ", ".join(f"{position}" for position in primitive.linear)
        lines.append(f"| {primitive.name} | {formula} | {derivative} | {linear} | {flops} |")
    return PREFACE + "\n".join(lines) + "\n"


def test_table_of_operations_is_current() -> None:
    assert TABLE.read_text() == table_of_operations(), "write it anew: python tests/test_docs.py"


if __name__ == "__main__":
    TABLE.write_text(table_of_operations())
