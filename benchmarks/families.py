"""Who reads published layouts right: karat, transformers' Auto class and vLLM on the same small folders.

    python benchmarks/families.py                            # karat and transformers, a Markdown table
    python benchmarks/families.py --work DIR --vllm          # vLLM as well: a process and about a minute for each
    python benchmarks/families.py --work DIR --vllm "GRM-sftreg"          # of these alone; finished ones are kept
    python benchmarks/families.py --work DIR --write docs/families.md     # puts the table between the page's marks

The folders are those of the tests, each in a published layout and written from its tensors alone. A tool is right where
what it gives, read as the authors read it (which output, which activation), is what a few lines over these tensors
give. Nobody is told more than the folder; karat asks where it is not enough, and that counts where the answer to its
question gives the number. DIR/vllm.json keeps what vLLM gave, so that a stopped run goes on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "rewards")]

import toys  # noqa: E402

toys.SIZES |= {"hidden_size": 128, "head_dim": 32}  # vLLM's attention on a CPU takes no smaller heads

import pytest  # noqa: E402
import torch  # noqa: E402
from layout_base import Layout, Written, by_transformers  # noqa: E402
from layouts import LAYOUTS  # noqa: E402

import karat  # noqa: E402
from karat.types import KaratError  # noqa: E402

VLLM = ROOT / ".peers" / "vllm" / "bin" / "python"
WORDS = ("right", "asks", "refused", "silently wrong", "not run")
TOOLS = ("karat", "transformers", "vLLM")
START, END = "<!-- made by benchmarks/families.py -->", "<!-- end -->"
SECONDS = 900  # that vLLM may take for a folder
# What stops vLLM on this machine and says nothing of the folder.
ENVIRONMENT = (
    "max_model_len",
    "head_size",
    "head size",
    "No module named",
    "out of memory",
    "Cannot allocate memory",
    "No space left",
    "Free memory on device",
    "Permission denied",
    "compiler",
)


class Cell(NamedTuple):
    """What a tool makes of a folder, and why."""

    word: str
    reason: str = ""


def by_karat(folder: Path, layout: Layout, written: Written) -> Cell:
    """What `karat.load` gives without an option, and where it asks, with the answer."""
    try:
        return Cell(_compared(written.by(karat.load(str(folder))), written))
    except KaratError as error:
        asked = str(error)
    if not layout.answer or layout.says not in asked:
        return Cell("refused", asked)
    try:
        word = _compared(written.by(karat.load(str(folder), **layout.answer)), written)
    except KaratError as error:
        return Cell("refused", str(error))
    return Cell("asks" if word == "right" else word, asked)


def _compared(found: Sequence[float], written: Written) -> str:
    close = pytest.approx(list(written.wanted), abs=1e-3 * max(1.0, *map(abs, written.wanted)))
    return "right" if list(found) == close else "silently wrong"


def by_vllm(folder: Path, written: Written) -> Cell:
    """What vLLM gives for finished ids, or for two segments, its activation off."""
    tasks = ["token_classify"] if written.reads else ["classify", "token_classify"]
    tasks = ["embed"] if written.vector else ["score", *tasks] if written.texts else tasks
    start: dict[str, Any] = {"model": str(folder), "dtype": "float32", "caching": False, "positions": None}
    # Of steps all tokens are wanted: vLLM looks for Qwen's own number of <extra_0>, which a toy does not have.
    pooler = {"use_activation": False, **({"tok_pooling_type": "ALL"} if written.reads else {})}
    start |= {"pooler": None if written.vector else pooler}
    asked = {"read": list(written.ids), "texts": written.texts, "tasks": tasks}
    try:
        done = subprocess.run(
            [str(VLLM), str(Path(__file__).with_name("_vllm_worker.py"))],
            input="".join(json.dumps(line) + "\n" for line in (start, asked)),
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Cell("not run", f"more than {SECONDS} s")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if (rows := next((line["rows"] for line in lines if "rows" in line), None)) is not None:
        return Cell(_of_rows(rows, written))
    told = next((line["error"] for line in lines if "error" in line), "") or _cause(done.stderr)
    if not told or any(word in told for word in ENVIRONMENT):
        return Cell("not run", told[:300] or f"ended with {done.returncode}: {done.stderr[-200:]}")
    return Cell("refused", told[:300])


def _of_rows(rows: list[list[float]], written: Written) -> str:
    """A reward from outputs of the whole text [1, k] or of its tokens [L, k]; a vector as it is."""
    if written.vector:
        return _compared(rows[0], written)
    places = list(written.reads) or [-1]
    try:
        return _compared(written.reward(torch.tensor(rows)[places]).tolist(), written)
    except (IndexError, RuntimeError):  # fewer outputs or tokens than there are
        return "silently wrong"


def _cause(log: str) -> str:
    """The first error of a log, which the others follow from."""
    errors = [line.rpartition("] ")[2] for line in log.splitlines() if "Error: " in line or "  Value error, " in line]
    errors = [line.strip() for line in errors if "validation error for" not in line]  # the next line says which
    return next((line for line in errors if not line.startswith("RuntimeError: Engine core")), (errors or [""])[0])


def judged(work: Path | None, vllm: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """By layout, what each tool makes of it; a tool that was not asked is missing."""
    kept = Kept(work / "vllm.json") if work else None
    found: dict[str, dict[str, Cell]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, layout) in enumerate(LAYOUTS.items()):
            folder = Path(scratch) / str(number)
            written = layout.write(folder)
            own = {"karat": by_karat(folder, layout, written), "transformers": Cell(by_transformers(folder, written))}
            if name in vllm and (kept is None or name not in kept.cells):
                own["vLLM"] = by_vllm(folder, written)
                if kept is not None and own["vLLM"].word != "not run":
                    kept.keep(name, own["vLLM"])
            elif kept is not None and name in kept.cells:
                own["vLLM"] = kept.cells[name]
            found[name] = own
            print(f"{number + 1} of {len(LAYOUTS)} {name}: {own}"[:600], file=sys.stderr, flush=True)
    return found


class Kept:
    """Finished cells in a file, written after each."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.cells = {name: Cell(*cell) for name, cell in held.items() if name in LAYOUTS}

    def keep(self, name: str, cell: Cell) -> None:
        """Add one."""
        self.cells[name] = cell
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(self.cells, indent=1, ensure_ascii=False), encoding="utf-8")
        partial.replace(self._path)


def table(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """Markdown: a row for each layout, and counts."""
    lines = [f"| layout | {' | '.join(TOOLS)} |", "|---" * (len(TOOLS) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(own[t].word if t in own else '' for t in TOOLS)} |" for name, own in found.items()
    ]
    for word in WORDS:
        counts = [Counter(own[tool].word for own in found.values() if tool in own) for tool in TOOLS]
        if any(count[word] for count in counts):
            cells = " | ".join(f"**{count[word]}** of {count.total()}" for count in counts)
            lines.append(f"| **{word}** | {cells} |")
    return "\n".join(lines)


def put(page: Path, text: str) -> None:
    """The text between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    if not rest:
        sys.exit(f"{page} has no {START}")
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Read every folder by every tool, and print or write the table."""
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", nargs="*", choices=list(LAYOUTS), metavar="LAYOUT", help="these, or all")
    parser.add_argument("--work", type=Path, help="folder that keeps what vLLM gave")
    parser.add_argument("--write", type=Path, help="page to put the table into")
    asked = parser.parse_args()
    print(f"transformers {version('transformers')}", file=sys.stderr)
    text = table(judged(asked.work, [] if asked.vllm is None else asked.vllm or list(LAYOUTS)))
    if asked.write:
        put(asked.write, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
