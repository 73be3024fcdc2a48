"""karat's server and its peers: how each is started and asked, and which scores it has to give.

karat and vLLM get the same bodies at the same paths. infinity joins a query and a document with nothing between them,
so that it has other scores: those of the same model for its own token ids.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import _memory as memory
from _server_load import Asked, Target, Values

from karat import types
from karat.models.render import Rendered
from karat.rewards._local import LocalModel
from karat.rewards._results import as_result

HERE = Path(__file__).parent
PEERS = HERE.parent / ".peers"
SLOW = 600.0  # seconds that a server may take to be ready
TOGETHER = 512  # sequences that are scored at a time


class Item(NamedTuple):
    """A prompt and answers to it; the finished texts are each the prompt with one answer behind it."""

    prompt: str
    answers: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """What is scored."""
        return [self.prompt + answer for answer in self.answers]


class Dialect(NamedTuple):
    """How a server is asked: path, body, its reply's values, and what these have to be."""

    path: str
    body: Callable[[Item], dict[str, Any]]
    read: Callable[[Any], Values]
    wanted: Callable[[LocalModel, Sequence[Item]], list[Values]]
    tolerance: float = 1e-4


def _input(item: Item) -> Any:
    return item.texts if len(item.answers) > 1 else item.texts[0]


def _chunks(values: Iterable[Any], items: Sequence[Item]) -> list[Any]:
    rest = iter(values)
    return [[next(rest) for _ in item.answers] for item in items]


def rewards(model: LocalModel, rendered: Sequence[Any]) -> list[types.Reward]:
    """Rewards of sequences without a server."""
    found: list[types.Reward] = []
    for first in range(0, len(rendered), TOGETHER):
        part = rendered[first : first + TOGETHER]
        sequences = [one.sequence for one in part]
        numbers_Rk, states = model.numbers(sequences)
        for one, scored in zip(part, model.rewards(numbers_Rk, sequences, states), strict=True):
            result = as_result(one, scored)
            assert isinstance(result, types.Reward), result
            found.append(result)
    return found


def by_text(model: LocalModel, items: Sequence[Item]) -> list[Values]:
    """Rewards of finished texts."""
    texts = [text for item in items for text in item.texts]
    return _chunks((r.value for r in rewards(model, [model.renderer.finished(text) for text in texts])), items)


def by_step(model: LocalModel, items: Sequence[Item]) -> list[Values]:
    """Rewards of all steps of a finished text."""
    found = rewards(model, [model.renderer.finished(item.texts[0]) for item in items])
    return [list(one.steps or ()) for one in found]


def by_pair(model: LocalModel, items: Sequence[Item]) -> list[Values]:
    """Rewards of the ids of a query with those of a document behind them, as infinity tokenises."""
    encode = model.parts.tokenizer.encode
    ids = [
        (*encode(item.prompt.strip()), *encode(a.strip(), add_special_tokens=False)) for item in items for a in item[1]
    ]
    made = [Rendered(types.Sequence(own, {"last": (len(own) - 1,)})) for own in ids]
    return _chunks((r.value for r in rewards(model, made)), items)


CLASSIFY = Dialect(
    "/classify",
    lambda item: {"input": _input(item), "use_activation": False},
    lambda body: [own["probs"][0] for own in body["data"]],
    by_text,
    1e-3,
)
STEPS = Dialect(
    "/pooling",
    lambda item: {"input": item.texts[0], "task": "token_classify"},
    lambda body: [row[1] for row in body["data"][0]["data"]],
    by_step,
    1e-3,
)
NATIVE = Dialect(
    "/v1/reward",
    lambda item: {"items": [{"text": text} for text in item.texts]},
    lambda body: [own["reward"] for item in body["data"] for own in item["candidates"]],
    by_text,
)
BATCHED = Dialect("/score", lambda item: {"texts": item.texts}, lambda body: body["scores"], by_text, 1e-3)
INFINITY = Dialect(
    "/rerank",
    lambda item: {"model": "m", "query": item.prompt, "documents": list(item.answers), "raw_scores": True},
    lambda body: [own["relevance_score"] for own in sorted(body["results"], key=lambda own: own["index"])],
    by_pair,
    1e-3,
)


def asked(dialect: Dialect, model: LocalModel, items: Sequence[Item]) -> list[Asked]:
    """Requests with the scores that they have to get."""
    wanted = dialect.wanted(model, items)
    return [Asked(json.dumps(dialect.body(i)).encode(), w) for i, w in zip(items, wanted, strict=True)]


@dataclass
class Server:
    """A server as a process; while another is measured it stands still."""

    name: str
    command: list[str]
    health: str
    environment: dict[str, str]
    port: int
    ready: float = 0.0  # seconds until it was

    def start(self, log: Path) -> None:
        """Start, and wait until it is ready.

        Raises:
            SystemExit: it ended, or did not answer in time.
        """
        began = time.perf_counter()
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **self.environment}, stdout=said, stderr=said, start_new_session=True
            )
        while not _answers(self.port, self.health):
            if self.process.poll() is not None or time.perf_counter() - began > SLOW:
                raise SystemExit(f"{self.name} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self.ready = time.perf_counter() - began

    def pause(self) -> None:
        """Stand still."""
        self._tell(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._tell(signal.SIGCONT)

    def stop(self) -> None:
        """End it and whatever it started."""
        family = memory.family(self.process.pid)
        self.resume()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _tell(self, what: signal.Signals) -> None:
        for pid in memory.family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, what)

    def cpu_seconds(self) -> float:
        """Of all its processes, as Linux counts them."""
        return sum(_cpu(pid) for pid in memory.family(self.process.pid))

    def target(self, dialect: Dialect) -> Target:
        """Where it is asked."""
        return Target(self.port, dialect.path, dialect.read, dialect.tolerance)


def _cpu(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _answers(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as own:
            own.settimeout(2)
            own.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return own.recv(64).split()[1:2] == [b"200"]
    except OSError:
        return False


def free_port() -> int:
    """One that nothing listens at, below those that the system gives to who asks for any, as other servers do."""
    while True:
        port = random.randrange(20000, 32000)
        with suppress(OSError), socket.socket() as own:
            own.bind(("127.0.0.1", port))
            return port


def python_of(peer: str) -> Path | None:
    """A peer's interpreter, where `make peers` has built its environment."""
    found = PEERS / peer / "bin" / "python"
    return found if found.exists() else None


def karat(folder: Path, *options: str) -> Server:
    """`karat serve`."""
    port = free_port()
    command = [sys.executable, "-m", "karat", "serve", str(folder), "--port", str(port), *options]
    return Server("karat", command, "/livez", {}, port)


def vllm(folder: Path, *options: str) -> Server:
    """VLLM's server for pooling; its prefix cache is on where it can be."""
    port = free_port()
    command = [str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--runner", "pooling", "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--max-num-batched-tokens", "8192", "--max-num-seqs", "256", "--gpu-memory-utilization", "0.3"]
    command += ["--disable-log-stats", "--disable-uvicorn-access-log", *options]
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    return Server("vllm", command, "/health", environment, port)


def infinity(folder: Path, work: Path) -> Server:
    """infinity-emb's server; its transformers reads the tokenizer by an older name."""
    port, own = free_port(), work / "infinity"
    shutil.copytree(folder, own, dirs_exist_ok=True)
    said = json.loads((own / "tokenizer_config.json").read_text())
    said["tokenizer_class"] = "PreTrainedTokenizerFast"
    said["model_input_names"] = ["input_ids", "attention_mask"]
    (own / "tokenizer_config.json").write_text(json.dumps(said))
    command = [str(PEERS / "infinity" / "bin" / "infinity_emb"), "v2", "--model-id", str(own), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32", "--engine", "torch"]
    command += ["--no-bettertransformer", "--no-model-warmup", "--served-model-name", "m", "--log-level", "error"]
    return Server("infinity", command, "/health", {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}, port)


def fastapi_batched(folder: Path) -> Server:
    """FastAPI with the `batched` package."""
    port = free_port()
    command = [str(python_of("batched")), str(HERE / "_server_batched.py"), str(folder), str(port)]
    return Server("fastapi+batched", command, "/health", {"HF_HUB_OFFLINE": "1"}, port)
