"""The house: who may import whom, and what belongs in one room only, read from the source itself."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import refgpt
from refgpt import _moved

ROOT = Path(__file__).parents[1]

#: From the ground up. A room imports from the rows above it in this list and from itself: never sideways, never up.
FLOORS = [
    {"_common", "_moved"},
    {"numbers"},
    {"spec"},
    {"tokenizers"},
    {"kernels", "checkpoints"},
    {"runtime"},
    {"conversion"},
    {"generation"},
    {"tracing"},
    {"plotting", "evaluation", "training", "batches"},
    {"_model", "_open"},
    {"_load"},
    {"_new_model"},
    {"__init__"},
    {"inspect", "cluster"},
    {"server"},
    {"cli"},
    {"__main__"},
]

#: One file each in ``spec`` and ``runtime``, none of which knows another.
FAMILIES = {"gpt2", "gpt_neo", "gptj", "gpt_neox"}

#: The same within the large rooms, whose ``__init__`` is above all of a room's own.
INNER_FLOORS = {
    "numbers": [
        {"dtypes", "encoded"},
        {"leaves", "finite"},
        {"casting", "checksums", "panels"},
        {"mapped", "tree", "quantisation", "cached"},
        {"adapted", "compensated", "packing"},
        {"fingerprints"},
    ],
    "spec": [{"config", "masks", "ops", "positions", "taps"}, {"ids"}, FAMILIES, {"families"}, {"bounds", "gradients"}],
    "checkpoints": [{"checkpoint", "files", "mask"}, {"families"}, {"layouts", "adapters"}, {"open", "hub"}],
    "runtime": [
        {"adopting", "engine", "activation", "batch", "buffers", "cache", "identity", "rotation", "taps"},
        {"attend", "mixing", "recorded", "saved", "states"},
        {"spec_engine"},
        FAMILIES,
        {"families"},
        {"blockwise", "gradients", "session"},
        {"kernel_engine"},
    ],
    "generation": [
        {"sampling_params", "stopping", "prompt_lookup", "draft_pace", "prefix_cache", "prompt_file", "chat_templates"},
        {"constraint", "other_names"},
        {"matching"},
        {"processing"},
        {"filters", "mesh_random"},
        {"sampling"},
        {"params"},
        {"prompts", "results"},
        {"room", "sequence", "openai"},
        {"beams", "best_of", "drafting", "identity", "openai_answers", "reading", "scored"},
        {"scheduler"},
        {"loop"},
        {"scoring"},
    ],
    "evaluation": [
        {"metrics", "published", "requests", "speed", "tables", "templates"},
        {"answering", "classification", "demos", "raft_tasks", "rows"},
        {"measures"},
        {"perplexity", "raft", "runner", "summaries", "zero_shot"},
        {"lm_eval", "reports"},
    ],
    "cluster": [
        {"compression", "connect", "host_worker", "rounds", "saving", "simulation"},
        {"feedback", "hosts", "messages", "bill"},
        {"answering", "coordinator", "worker"},
        {"local"},
        {"on_ray"},
        {"run"},
    ],
    "server": [
        {"settings", "errors", "metrics", "pieces", "texts", "watch"},
        {"jobs", "aside", "predictions", "security", "fields", "constraints"},
        {"core"},
        {"exchange", "state"},
        {"plain", "logs", "page_files", "protocol"},
        {"completions", "information", "kobold", "looking", "mesh"},
        {"app"},
        {"running"},
    ],
    "training": [
        {"batch", "optimiser", "output", "packing", "parameters", "schedule"},
        {"dropout", "examples"},
        {"data", "evaluating", "gradients", "lora", "state"},
        {"trainer"},
        {"run"},
    ],
}

#: Rooms that a package from elsewhere may enter; NumPy may go anywhere, anything else nowhere.
GUESTS = {
    "_refgpt_kernels": {"kernels", "_common"},
    "tokenizers": {"tokenizers"},
    "sentencepiece": {"tokenizers"},
    "tqdm": {"_common", "cli"},
    "huggingface_hub": {"checkpoints"},
    "zstandard": {"checkpoints"},
    "matplotlib": {"plotting"},
    "llguidance": {"generation"},
    "lm_eval": {"evaluation", "cli"},
    "ftfy": {"evaluation"},
    "pyarrow": {"evaluation"},
    "rouge_score": {"evaluation"},
    "ray": {"cluster"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "h11": {"server"},
    "compression": {"checkpoints"},  # the standard library's, from Python 3.14
}

MOST_LINES = 500


def floor_of(room: str, floors: list[set[str]]) -> int:
    return next((n for n, rooms in enumerate(floors) if room in rooms), -1)


def rooms_in(package: Path) -> dict[str, list[Path]]:
    """The modules and subpackages directly inside a package, each with its source files."""
    rooms = {path.stem: [path] for path in sorted(package.glob("*.py"))}
    return rooms | {
        path.parent.name: sorted(path.parent.rglob("*.py")) for path in sorted(package.glob("*/__init__.py"))
    }


def imported(source: str, packages: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, wherever it does: at its top, in a function, for types only.

    ``from package import x`` counts as ``package.x``; relative imports count as "." and what follows.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{name.name}" for name in node.names] if module in packages else [module]
            yield from ((node.lineno, name) for name in names)


def faults_in(package: Path, floors: list[set[str]], name: str = "") -> list[str]:
    """Every import within a package that goes up or sideways, and every room that has no floor.

    Parameters
    ----------
    name : str, optional
        The package's dotted name, if its folder's is not all of it.
    """
    name, rooms = name or package.name, rooms_in(package)
    faults = [f"{room}: on no floor" for room in rooms if floor_of(room, floors) < 0]
    for room, paths in rooms.items():
        for path in paths:
            for line, target in imported(path.read_text(encoding="utf-8"), {name}):
                where = f"{path.relative_to(package)}:{line}"
                if target.startswith("."):
                    faults.append(f"{where}: relative import {target}")
                elif target == name or target.startswith(f"{name}."):
                    inner = target.removeprefix(name).lstrip(".").partition(".")[0]
                    inner = inner if inner in rooms else "__init__"
                    if inner != room and floor_of(inner, floors) >= floor_of(room, floors):
                        faults.append(f"{where}: {room} may not import {inner}")
    return faults


def guests_in(package: Path) -> list[str]:
    """Every import of a package from elsewhere in a room that it may not enter."""
    return [
        f"{path.relative_to(package)}:{line}: {top} may not enter {room}"
        for room, paths in rooms_in(package).items()
        for path in paths
        for line, target in imported(path.read_text(encoding="utf-8"), {package.name})
        if (top := target.partition(".")[0]) not in sys.stdlib_module_names | {"numpy", package.name, ""}
        and room not in GUESTS.get(top, ())
    ]


def test_imports_go_down() -> None:
    assert faults_in(ROOT / "refgpt", FLOORS) == []
    assert guests_in(ROOT / "refgpt") == []


@pytest.mark.parametrize("room", INNER_FLOORS)
def test_imports_go_down_within_large_rooms(room: str) -> None:
    assert faults_in(ROOT / "refgpt" / room, [*INNER_FLOORS[room], {"__init__"}], f"refgpt.{room}") == []


def test_the_root_is_no_corridor() -> None:
    assert len(list((ROOT / "refgpt").glob("*.py"))) <= 6


def loaded_by(code: str) -> list[str]:
    """The modules that a new process has imported after ``code``."""
    shown = f"import sys; {code}; print('modules:', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.rpartition("modules:")[2].split()


def rooms_of(modules: list[str]) -> set[str]:
    return {name.split(".")[1] for name in modules if name.startswith("refgpt.")}


def test_importing_the_package_loads_its_errors_and_what_each_name_needs_when_it_is_used() -> None:
    assert rooms_of(loaded_by("import refgpt")) == {"_common", "_moved"}
    loaded = loaded_by("import refgpt; refgpt.load")
    assert "refgpt._load" in loaded and len([name for name in loaded if name.startswith("refgpt")]) <= 60
    slow = {"evaluation", "plotting", "tracing", "conversion", "inspect", "cli", "kernels", "training", "server"}
    assert not rooms_of(loaded) & slow
    # Slow to import, and of no use before something is loaded or asked for.
    assert not {"importlib.metadata", "tempfile", "sentencepiece", "tokenizers", "tqdm", "email"} & set(loaded)


def test_names_that_are_imported_when_used_are_the_packages_own() -> None:
    """Type checkers and editors read the imports, and users call what ``__getattr__`` finds: both are the same."""
    source = ast.parse((ROOT / "refgpt" / "__init__.py").read_text(encoding="utf-8"))
    (guarded,) = (node for node in source.body if isinstance(node, ast.If))
    seen = {
        name.asname or name.name: f"{node.module}.{name.name}"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen == {name: f"refgpt.{place}" for name, place in refgpt.LAZY_NAMES.items()}
    assert {*refgpt.__all__, *refgpt.LAZY_PACKAGES} <= set(dir(refgpt))
    assert all(hasattr(refgpt, name) for name in dir(refgpt))


def test_a_command_imports_what_it_uses_alone() -> None:
    loaded = loaded_by("from refgpt.cli import main; main(['generate', '-q', '-n', '1', '--seed', '1', 'Once'])")
    unused = {"batches", "conversion", "evaluation", "inspect", "cluster", "server", "tracing", "training", "plotting"}
    assert "refgpt.generation.scheduler" in loaded and not rooms_of(loaded) & unused
    assert [name for name in loaded if name.startswith("refgpt.cli.") and name.endswith((".batch", ".serve"))] == []
    assert not {"tokenizers", "numpy.ma", "numpy.typing", "tarfile"} & set(loaded)


def test_blas_threads_are_configured_before_numpy_is_imported() -> None:
    code = [sys.executable, "-X", "importtime", "-c", "import refgpt.cli"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
    order = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert order.index("refgpt.cli.blas_threads") < order.index("numpy")


def test_tests_need_no_torch() -> None:
    """PyTorch's word is in the goldens; only what records them (``tests/goldens/recorders``) imports it."""
    modules = [path for path in (ROOT / "tests").rglob("*.py") if path.parent.name != "recorders"]
    for path in modules:
        tops = {name.partition(".")[0] for _, name in imported(path.read_text(encoding="utf-8"), {"refgpt"})}
        assert not tops & {"torch", "transformers"}, path


def test_contributing_shows_the_same_floors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (`.*) \|$", text, re.MULTILINE)
    table = {int(floor): set(re.findall(r"`(\w+)`", rooms)) for floor, rooms in rows}
    assert table == dict(enumerate(FLOORS))


def test_every_place_in_the_plan_is_built() -> None:
    assert set().union(*FLOORS) == rooms_in(ROOT / "refgpt").keys()


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("_common/errors.py", "import refgpt.cli", "_common may not import cli"),
        ("spec/gptj.py", "from refgpt.kernels import linear", "spec may not import kernels"),
        ("spec/gptj.py", "from refgpt import kernels", "spec may not import kernels"),
        ("tokenizers/base.py", "from refgpt.kernels import linear", "tokenizers may not import kernels"),
        ("runtime/engine.py", "from refgpt import load", "runtime may not import __init__"),
        ("runtime/engine.py", "import refgpt", "runtime may not import __init__"),
        ("spec/gptj.py", "import scipy.special", "scipy may not enter spec"),
        ("cli/main.py", "def f():\n    import torch", "torch may not enter cli"),
        ("_model.py", "if TYPE_CHECKING:\n    from refgpt.cli import main", "_model may not import cli"),
        ("runtime/gptj.py", "from _refgpt_kernels import lib", "_refgpt_kernels may not enter runtime"),
        ("spec/gptj.py", "from .masks import causal_mask", "relative import .masks"),
        ("attic.py", "", "attic: on no floor"),
        ("attic/__init__.py", "", "attic: on no floor"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, source: str, fault: str) -> None:
    package = tmp_path / "refgpt"
    rooms = ("_model", "_common/errors", "spec/gptj", "tokenizers/base", "kernels/ops", "runtime/gptj", "cli/main")
    for room in rooms:
        for file in (package / f"{room}.py", *([package / Path(room).parent / "__init__.py"] if "/" in room else [])):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("import json\nimport numpy as np\n")
    assert faults_in(package, FLOORS) + guests_in(package) == []
    (package / path).parent.mkdir(exist_ok=True)
    (package / path).write_text(source)
    (found,) = faults_in(package, FLOORS) + guests_in(package)
    assert fault in found


def test_a_forbidden_import_within_a_room_is_found(tmp_path: Path) -> None:
    room = tmp_path / "refgpt" / "spec"
    room.mkdir(parents=True)
    (room / "masks.py").write_text("from refgpt.spec import gptj\n")
    (room / "gptj.py").write_text("from refgpt.spec.masks import causal_mask\n")
    (found,) = faults_in(room, [{"masks"}, {"gptj"}], "refgpt.spec")
    assert found == "masks.py:1: masks may not import gptj"


SHARED_C = sorted((ROOT / "csrc").glob("*.[ch]"))
KERNEL_BODIES = [path for room in ("ops", "simd") for path in sorted((ROOT / "csrc" / room).glob("*.h"))]


def holders(pattern: str, files: list[Path]) -> list[str]:
    """Names of the files whose code, comments aside, has the pattern."""
    code = {
        path: re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) for path in files
    }
    return [path.name for path in files if re.search(pattern, code[path])]


def test_one_file_knows_of_threads() -> None:
    assert holders(
        r"\bomp_|\bomp\.h|_OPENMP|#\s*pragma\s+omp|\bpthread|\bthreads\.h|\b_Atomic\b|\batomic_",
        SHARED_C + KERNEL_BODIES,
    ) == ["parallel.c"]


def test_kernels_do_nothing_but_compute() -> None:
    assert len(KERNEL_BODIES) > 20
    assert holders(r"\b(malloc|calloc|realloc|free|exit|abort|\w*printf|getenv)\s*\(", KERNEL_BODIES) == []


def test_kernels_round_alike_everywhere() -> None:
    """libm's transcendental functions differ between machines, and these flags change what a float is."""
    assert holders(r"\b(exp|exp2|expm1|log|log2|tanh|sin|cos|pow|erf)f?\s*\(", SHARED_C + KERNEL_BODIES) == []
    build = (ROOT / "csrc" / "build.py").read_text(encoding="utf-8")
    given = re.findall(r"^\w*(?:FLAGS|ISAS)\S* .*= .*$", build, re.MULTILINE)
    flags = [word for line in given for word in line.split('"')]
    assert {"-ffp-contract=off", "-fno-fast-math", "-mavx2", "-march=armv8.2-a+dotprod"} <= set(flags)
    assert not re.search(r"-ffast-math|-Ofast|-funsafe|-march=native|-mtune=native", " ".join(flags))


def test_no_file_has_a_second_subject() -> None:
    """A file this long holds two: find the second. (Never cut one algorithm to please the ruler.)"""
    files = [path for folder in ("refgpt", "csrc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")]
    sources = [path for path in files if path.suffix in {".py", ".c", ".h"}]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert len(lengths) > 50
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


@pytest.mark.parametrize("former", _moved.MOVED)
def test_former_names_can_still_be_imported(former: str) -> None:
    module = importlib.import_module(f"refgpt.{former}")
    for place in _moved.MOVED[former]:
        there = importlib.import_module(f"refgpt.{place}".rstrip("."))
        for name in vars(there):
            if not name.startswith("_"):
                assert hasattr(module, name)
    with pytest.raises(AttributeError, match=f"refgpt.{former}"):
        _ = module.no_such_name


def test_former_names_give_what_is_there_now() -> None:
    from refgpt.config import ModelConfig
    from refgpt.model import Model, default_model_path
    from refgpt.params import Params, check, widen

    assert ModelConfig is refgpt.ModelConfig and Model is refgpt.Model
    assert default_model_path is refgpt.default_model_path
    assert Params is refgpt.spec.gptj.Params and check is refgpt.checkpoints.check_params
    assert widen(np.zeros(2, np.float16)).dtype == np.float32


#: What reads a clock, and limits in seconds that a busy machine may reach; ``tests/helpers/work.py`` has what is right.
CLOCKS = re.compile(
    r"\b(process_time|perf_counter|monotonic|thread_time|time\.time)(_ns)?\b|\btimeout\s*=\s*[\d.]|"
    r"\b(wait|join)\(\s*[\d.]|\bdeadline\s*=\s*[\d.]|\balarm\(|\bsetitimer\("
)


def test_no_test_counts_seconds() -> None:
    mine = {Path(__file__).resolve(), ROOT / "tests" / "helpers" / "work.py"}
    found = [
        f"{path.relative_to(ROOT)}:{n}: {line.strip()}"
        for path in (ROOT / "tests").rglob("*.py")
        if path.resolve() not in mine
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if CLOCKS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "start = time.perf_counter()",
        "from time import process_time",
        "if time.time() - start < 1:",
        "began = monotonic_ns()",
        "run = subprocess.run(command, timeout=30)",
        "process.wait(5)",
        "@settings(deadline=200)",
    ],
)
def test_a_clock_in_a_test_is_found(line: str) -> None:
    assert CLOCKS.search(line)


def test_what_waits_until_it_hangs_is_no_clock() -> None:
    for line in ("run = subprocess.run(command, timeout=HANGS)", "process.wait()", "deadline=None", "time.sleep(0.1)"):
        assert not CLOCKS.search(line)


def test_commands_print_and_write_in_one_way() -> None:
    """What files say is escaped before it is printed, and what files hold is kept until it can be replaced."""
    allowed = {
        ("print", "printing.py"),
        ("print", "completion.py"),  # scripts of this project's own
        ("print", "json_output.py"),  # in ASCII
        ("open", "__init__.py"),  # the null device
        ("open", "prompts.py"),  # to read
        ("open", "results.py"),
    }
    calls = {
        (node.func.id, path.name)
        for path in (ROOT / "refgpt" / "cli").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "open")
    }
    assert calls == allowed
