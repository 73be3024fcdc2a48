"""Reward models that a server's backbone can be put under, and a server that answers as vLLM 0.32 was seen to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel

import toys
from karat.engine.remote import LastNorm, RemoteEngine
from karat.models import checkpoint
from karat.rewards._local import golden_values
from karat.types import Reward

# Heads of 32 numbers: vLLM's attention on a CPU takes no smaller ones.
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
STEPS = {"kind": "process", "head": "lm_logits:+,-", "activation": "softmax", "output": 0, "step_token": "\n"}
OBJECTIVES = 3


def normed(model, seed=1):
    """Norms with weights that differ, as those of trained models do."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.copy_(1 + 0.3 * torch.randn(tensor.shape, generator=chance))
    return model


def family(folder: Path, seed=0) -> dict[str, Path]:
    """A language model, and a classifier, a gated model and one that karat saved, with heads on the same backbone."""
    whole = normed(toys.causal_model(seed=seed, **SIZES), seed + 1)
    model = toys.reward_model(seed=seed, **SIZES)
    model.model.load_state_dict(whole.model.state_dict())
    found = {"language": toys.save(folder / "language", whole), "classifier": toys.save(folder / "classifier", model)}
    parts = checkpoint.load(found["classifier"])
    checkpoint.save(parts, folder / "saved", golden_values)
    return {**found, "saved": folder / "saved", "gated": gated(folder / "gated", whole.model)}


def gated(folder: Path, backbone) -> Path:
    """ArmoRM's published layout: objectives at the last token, their weights at the prompt's end."""
    toys.save(folder, backbone)
    chance, width, hidden = torch.Generator().manual_seed(1), 8, SIZES["hidden_size"]

    def random(*shape):
        return torch.randn(*shape, generator=chance) * shape[-1] ** -0.5

    tensors = {"regression_layer.weight": random(OBJECTIVES, hidden)}
    tensors |= {"reward_transform_matrix": random(OBJECTIVES, OBJECTIVES), "gating.logit_scale": torch.tensor([1.3])}
    for i, shape in enumerate([(width, hidden), (OBJECTIVES, width)]):
        tensors |= {f"gating.layers.{i}.weight": random(*shape), f"gating.layers.{i}.bias": random(shape[0])}
    own = {f"model.{name}": tensor for name, tensor in backbone.state_dict().items()}
    save_file({**own, **tensors}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForRewardModelWithGating"], "num_objectives": OBJECTIVES}
    config |= {"gating_n_hidden": 1, "gating_temperature": 10.0, "gating_hidden_dim": width}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def attached(outline, url, path="classifier", **options) -> RemoteEngine:
    """An engine under what is known of a model."""
    return RemoteEngine(url, outline.parts.backbone, LastNorm(outline.norm, outline.width), path, **options)


def alike(remote, local, rows) -> float:
    """The largest difference of any number of two models' results, of max(1, the number)."""
    worst = 0.0
    for a, b in zip(remote.score_many(rows), local.score_many(rows), strict=True):
        for got, wanted in zip(numbers(a), numbers(b), strict=True):
            worst = max(worst, abs(got - wanted) / max(1.0, abs(wanted)))
    return worst


def numbers(result):
    assert isinstance(result, Reward), result
    return [result.value, *(result.steps or ()), *(result.objectives or {}).values(), *(result.gate or {}).values()]


def rows(count, steps=False):
    """Prompts of several lengths, with two answers to each."""
    answers = [{"steps": ["7*8=56.", "So it is 56."]}, {"steps": ["8.", "9."]}] if steps else []
    answers = answers or [{"response": "It is 56."}, {"response": "54, or so; who knows?"}]
    return [{"prompt": f"What is 7*8{'?' * (1 + i * 7 % 40)}", **answers[i % 2]} for i in range(count)]


class FakeVllm(ThreadingHTTPServer):
    """/v1/models and /pooling of one backbone. What it does wrong is set by the test."""

    daemon_threads = True

    def __init__(self, folder: Path, task: str = "embed"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.backbone = AutoModel.from_pretrained(folder).eval()
        self.task, self.names, self.longest = task, [folder.name], 512
        self.failing: list[int] = []  # statuses of the next replies
        self.spoil = lambda array, ids: array
        self.change = lambda metadata, body: (metadata, body)
        self.lock, self.requests, self.most = threading.Lock(), [], 0
        self.key = ""
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, *_):
        """A client that has gone is none of this server's."""

    @torch.no_grad()
    def array(self, ids):
        with self.lock:
            states = self.backbone(torch.tensor([ids])).last_hidden_state[0]
        return self.spoil(states if self.task == "token_embed" else states[-1], ids)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        listed = [{"id": name, "root": name, "max_model_len": self.server.longest} for name in self.server.names]
        self.reply(200, json.dumps({"object": "list", "data": listed}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self.error(401, "Unauthorized")
        if self.server.failing:
            return self.error(self.server.failing.pop(0), "no")
        if max(map(len, asked["input"])) > self.server.longest:
            return self.error(400, f"This model's maximum context length is {self.server.longest} tokens.")
        arrays = [self.server.array(ids) for ids in asked["input"]]
        items, end = [], 0
        for index, array in enumerate(arrays):
            start, end = end, end + 4 * array.numel()
            about = {"index": index, "embed_dtype": "float32", "endianness": "little", "shape": [*array.shape]}
            items.append({**about, "start": start, "end": end})
        tokens = sum(map(len, asked["input"]))
        metadata = {"id": "pool-1", "model": asked["model"], "data": items, "usage": {"prompt_tokens": tokens}}
        body = b"".join(array.float().numpy().tobytes() for array in arrays)
        metadata, body = self.server.change(metadata, body)
        self.reply(200, body, {"metadata": json.dumps(metadata)} if metadata else {})

    def error(self, code, message):
        self.reply(code, json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode())

    def reply(self, code, body, headers=()):
        self.send_response(code)
        for name, value in {**dict(headers), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""
