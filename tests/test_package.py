"""The package as a whole: what importing it loads, what it promises, and what its source never does."""

import ast
import importlib.resources
import inspect
import io
import json
import subprocess
import sys
import tokenize
import types
from pathlib import Path

import pytest

import minigan as mg

ROOT = Path(mg.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
LINES_OF_CODE = 400

PUBLIC = {
    "CheckpointError",
    "CollapseError",
    "ConfigError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "ExtraError",
    "GAN",
    "Game",
    "GraphError",
    "MiniganError",
    "NonFiniteError",
    "ShapeError",
    "Tensor",
    "__version__",
    "analysis",
    "asarray",
    "check_grad",
    "compile",
    "data",
    "grad",
    "hvp",
    "jvp",
    "load",
    "losses",
    "metrics",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "penalties",
    "save",
    "set_threads",
    "tensor",
    "vjp",
}


def run(code: str, **environment: str) -> str:
    """The output of `code` in a process of its own, in which any warning is printed too."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def names_in(path: Path) -> list[tuple[int, str]]:
    """Line and name of every name, attribute, keyword argument and imported module in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.keyword) and node.arg:
            found.append((node.value.lineno, node.arg))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(node.lineno, part) for name in modules for part in name.split(".")]
            found += [(node.lineno, part) for alias in node.names for part in alias.name.split(".")]
    return found


def test_import_is_light() -> None:
    heavy = {"numba", "llvmlite", "cupy", "scipy", "safetensors", "hashlib", "ssl"}
    heavy |= {"matplotlib", "rich", "typer", "tomli_w", "PIL", "json", "decimal", "urllib"}
    loaded = json.loads(run("import sys, json, minigan; print(json.dumps(sorted(sys.modules)))"))
    before = json.loads(run("import sys, json, numpy; print(json.dumps(sorted(sys.modules)))"))
    assert heavy.intersection(loaded) - set(before) == set()


def test_importing_changes_nothing_global() -> None:
    code = (
        "import sys, numpy, minigan; print(sys.getrecursionlimit(), numpy.geterr(), numpy.get_printoptions())"
    )
    assert run(code) == run(code.replace(", minigan", ""))


def test_works_without_home_folder() -> None:
    code = (
        "import minigan as mg; x = mg.tensor([2.0]); print(mg.grad((mg.ops.tanh(x) * x).sum(), x)[0].shape)"
    )
    # /dev/null is no folder, so nothing can be written below it, not even by root.
    printed = run(
        f"import warnings; warnings.simplefilter('always'); {code}", HOME="/dev/null", PATH="/usr/bin"
    )
    assert printed.startswith("(1,)\n")
    assert printed.count("RuntimeWarning: compiled kernels are not kept") == 1


def test_works_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None; import minigan as mg; print(mg.ops.exp(mg.tensor([0.0])))"
    )
    printed = run(code, HOME="/dev/null", PATH="/usr/bin")
    assert printed.startswith("Tensor([1.], dtype=float32)\n")
    assert printed.count("RuntimeWarning: Numba cannot be imported") == 1


def test_public_names() -> None:
    assert set(mg.__all__) == PUBLIC
    assert len(mg.__all__) == len(PUBLIC)
    assert all(hasattr(mg, name) for name in PUBLIC)


def test_errors_are_the_built_in_ones_too() -> None:
    built_in = {
        mg.ShapeError: ValueError,
        mg.DTypeError: TypeError,
        mg.GraphError: RuntimeError,
        mg.NonFiniteError: FloatingPointError,
        mg.CheckpointError: OSError,
        mg.DataError: ValueError,
        mg.ConfigError: ValueError,
        mg.DeviceError: RuntimeError,
        mg.ExtraError: ImportError,
    }
    assert all(
        issubclass(error, mg.MiniganError) and issubclass(error, also) for error, also in built_in.items()
    )


def public_objects() -> list[tuple[str, object]]:
    """Every public function and class of minigan and of its public modules, with their public methods."""
    found: dict[str, object] = {}
    spaces = [("mg", mg, mg.__all__)]
    for name in mg.__all__:
        module = getattr(mg, name)
        if isinstance(module, types.ModuleType):
            names = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
            spaces.append((f"mg.{name}", module, names))
    for prefix, space, names in spaces:
        for name in names:
            thing = getattr(space, name)
            if not getattr(thing, "__module__", "").startswith("minigan"):
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{prefix}.{name}"] = thing
            if inspect.isclass(thing):
                members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
                found |= {
                    f"{prefix}.{name}.{key}": value
                    for key, value in members.items()
                    if inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
                }
    return sorted(found.items())


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*pair, id=pair[0]) for pair in public_objects()])
def test_public_docstrings(name: str, thing: object) -> None:
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    first = text.split("\n\n")[0]
    assert "\n" not in first, f"{name}: the docstring does not begin with one line of its own"
    assert not first.startswith(f"{name.rsplit('.', 1)[-1]}("), f"{name} has only a generated docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source(path: Path) -> None:
    forbidden = {"pickle", "marshal", "dill", "joblib", "eval", "allow_pickle", "NotImplementedError"}
    if path != ROOT / "kernels" / "launch.py":
        forbidden.add("exec")
    bad = [f"line {line}: {name}" for line, name in names_in(path) if name in forbidden]
    tree = ast.parse(path.read_text())
    bad += [f"line {node.lineno}: assert" for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert bad == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_length(path: Path) -> None:
    text = path.read_text()
    documentation: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documentation |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spans = [range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in layout | {tokenize.COMMENT}]
    code = {line for span in spans for line in span}
    assert len(code - documentation) <= LINES_OF_CODE


def test_data_files_are_installed() -> None:
    files = importlib.resources.files("minigan")
    for name in ("py.typed", "data/digits.csv.gz", "data/NOTICE"):
        assert files.joinpath(*name.split("/")).is_file(), name
    assert "10.24432/C50P49" in files.joinpath("data", "NOTICE").read_text()
