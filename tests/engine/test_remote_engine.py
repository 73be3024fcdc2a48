"""A backbone on a server: the same rewards as in one process, and whatever is not its hidden states is refused."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import served
import torch
from torch import nn

import karat
from karat.cli.base import main
from karat.engine import _pooling, remote
from karat.engine._pooling import EngineLost
from karat.engine.base import EngineError
from karat.engine.remote import LastNorm
from karat.models import checkpoint
from karat.models._alone import write_alone
from karat.types import CheckpointError, Refused, Reward, Sequence, Span, Unscored

KINDS = {"language": served.STEPS, "classifier": {}, "gated": {}, "saved": {}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return served.family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def outline(folders):
    return checkpoint.outline(folders["classifier"])


@pytest.fixture(scope="module")
def servers(folders):
    with (
        served.FakeVllm(folders["classifier"], "embed") as last,
        served.FakeVllm(folders["classifier"], "token_embed") as every,
    ):
        yield {"embed": last, "token_embed": every}


@pytest.fixture
def server(servers, folders, monkeypatch):
    """A server of last states that a test may spoil."""
    own = servers["embed"]
    own.names, own.failing, own.key, own.longest = ["classifier"], [], "", 512
    own.requests.clear()
    monkeypatch.setattr(own, "spoil", own.spoil)
    monkeypatch.setattr(own, "change", own.change)
    monkeypatch.setattr(_pooling, "WAIT", 0.0)
    return own


def opened(folders, server, name="classifier", **options):
    return karat.load(str(folders[name]), engine=f"{server.url}#classifier", **options)


# Equal answers


@pytest.mark.parametrize(
    ("name", "task"), [*((name, "embed") for name in KINDS), ("gated", "token_embed"), ("language", "token_embed")]
)
def test_rewards_are_those_of_one_process(folders, servers, name, task):
    """Steps, objectives and their weights too; none of the backbone's weights is here."""
    far = opened(folders, servers[task], name, **KINDS[name])
    here = karat.load(str(folders[name]), **KINDS[name])
    assert served.alike(far, here, served.rows(6, steps=name == "language")) < 1e-5
    assert all(weight.is_meta for weight in far.parts.backbone.parameters())
    assert far.fingerprint != here.fingerprint and far.engine.every == (task == "token_embed")


def test_other_labels_of_a_language_model_are_read_of_the_file(folders, servers):
    """Rows of the vocabulary's head are there for another question, tied or not."""
    far = opened(folders, servers["embed"], "language", **served.STEPS).with_options(head="lm_logits:y,n")
    here = karat.load(str(folders["language"]), **{**served.STEPS, "head": "lm_logits:y,n"})
    assert served.alike(far, here, served.rows(2, steps=True)) < 1e-5


def test_a_mean_needs_the_states_of_all_tokens(folders, servers):
    """Where the server gives the last alone, that is said of each text."""
    asked = {"kind": "embedding", "pooling": "mean", "normalize": True}
    here = karat.load(str(folders["language"]), **asked).embed(["one", "two, three"])
    assert (
        abs(here - opened(folders, servers["token_embed"], "language", **asked).embed(["one", "two, three"])).max()
        < 1e-5
    )
    with pytest.raises(EngineError, match="token_embed"):
        opened(folders, servers["embed"], "language", **asked).embed(["one"])


def test_prefixes_are_asked_for_once_and_in_the_order_that_a_prefix_cache_wants(outline, server):
    """Equal reads of a call are one row, requests are bounded, and neighbours begin alike."""
    engine = served.attached(outline, server.url)
    server.requests.clear()
    ids = tuple(range(5, 45))
    sequences = [Sequence(ids, {"step": (9, 19, 39)}), Sequence(ids, {"last": (39,)}), Sequence(ids[:20], {"a": (19,)})]
    found = engine.run(sequences)
    assert torch.equal(found[0]["step"][2], found[1]["last"][0])
    assert torch.equal(found[0]["step"][1], found[2]["a"][0])
    (asked,) = server.requests
    assert asked["input"] == [list(ids[:n]) for n in (10, 20, 40)]
    assert asked["use_activation"] is False and asked["model"] == "classifier"
    engine.run([Sequence((own,) * 3, {"last": (2,)}) for own in range(40)])
    assert sorted(len(r["input"]) for r in server.requests[1:]) == [8, 16, 16]
    firsts = sorted(server.requests[1:], key=lambda own: own["input"])
    assert all(a["input"][-1] < b["input"][0] for a, b in pairwise(firsts))


def test_states_of_all_tokens_come_in_requests_of_bounded_size(outline, servers, monkeypatch):
    """By bytes, as a row of a large model has gigabytes of them."""
    engine = served.attached(outline, servers["token_embed"].url)
    servers["token_embed"].requests.clear()
    monkeypatch.setattr(remote, "BYTES", 4 * 64 * 25)
    engine.run([Sequence((own,) * 10, {"mean": Span(0, 10)}) for own in range(6)])
    assert [len(r["input"]) for r in servers["token_embed"].requests] == [2, 2, 2]


def test_the_server_may_take_fewer_tokens_than_the_model(folders, server):
    """What is longer is unscored with the reason, and is not sent."""
    server.longest = 60
    far = opened(folders, server)
    long, short = far.score_many([{"prompt": "x" * 80, "response": "y"}, {"prompt": "x", "response": "y"}])
    assert isinstance(long, Unscored) and "60" in long.reason and isinstance(short, Reward)
    assert max(len(ids) for r in server.requests for ids in r["input"]) <= 60


# What is refused at first


def scaled(array, ids):
    return nn.functional.normalize(array, dim=-1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (scaled, "without its last norm they have size"),
        (lambda array, ids: array.sigmoid(), "size"),
        (lambda array, ids: array * 0.9, "size 0.9 and not 1"),
        (lambda array, ids: array[:1], r"array of \[1\]"),
        (lambda array, ids: torch.cat([array, array]), r"array of \[128\]"),
        (lambda array, ids: array.expand(len(ids) + 1, -1), r"array of \[25, 64\] for 24 tokens"),
    ],
)
def test_what_is_no_hidden_state_is_refused(outline, server, spoil, said):
    """Lengths of 1, sigmoids, scales, scores, projections, and a BOS that was added."""
    server.spoil = spoil
    with pytest.raises(Refused, match=said):
        served.attached(outline, server.url)


def test_other_poolings_are_refused(outline, server, servers):
    """The mean of the states, the first one, and states before the last norm."""
    every = servers["token_embed"]
    for spoil, said in [
        (lambda array, ids: every.array(ids).mean(0), "size"),
        (lambda array, ids: every.array(ids)[0], "end otherwise"),
    ]:
        server.spoil = spoil
        with pytest.raises(Refused, match=said):
            served.attached(outline, server.url)
    server.spoil = lambda array, ids: array
    norm = server.backbone.norm
    server.backbone.norm = nn.Identity()
    with pytest.raises(Refused, match="size"):
        served.attached(outline, server.url)
    server.backbone.norm = norm


def test_a_model_that_looks_ahead_is_refused(outline, servers, monkeypatch):
    """Its states of a prefix are not those of the whole."""
    monkeypatch.setattr(servers["token_embed"], "spoil", lambda array, ids: array.roll(1, 0))
    with pytest.raises(Refused, match="by what follows it"):
        served.attached(outline, servers["token_embed"].url)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda said, body: ({**said, "usage": {"prompt_tokens": 3}}, body), "read 3 tokens where 57 were sent"),
        (lambda said, body: (None, body), "no arrays"),
        (lambda said, body: (said, body[:-4]), "no arrays"),
        (lambda said, body: ({**said, "data": said["data"][:1]}, body[: said["data"][0]["end"]]), "1 arrays for 3"),
        (
            lambda said, body: ({**said, "data": [{**o, "embed_dtype": "float16"} for o in said["data"]]}, body),
            "no arr",
        ),
        (lambda said, body: ({**said, "data": [{**o, "start": 0} for o in said["data"]]}, body), "no arrays"),
    ],
)
def test_what_vllm_would_not_answer_is_refused(outline, server, change, said):
    """Tokens that were added or cut, a proxy that takes the header, half a body, fewer rows, other bytes."""
    server.change = change
    with pytest.raises(Refused, match=said):
        served.attached(outline, server.url)


def test_another_model_is_refused(folders, outline, server):
    """By its golden scores where there are some, by its norm, and by its name where nothing else tells."""
    with torch.no_grad():
        other = served.normed(nn.ModuleDict({"norm": copy.deepcopy(outline.norm)}), seed=9)["norm"]
    with pytest.raises(Refused, match="size"):
        served.attached(replace(outline, norm=other), server.url)
    state = server.backbone.layers[0].mlp.down_proj.weight.data
    kept = state.clone()
    state.mul_(1.05)
    with pytest.raises(CheckpointError, match="runs another model"):
        opened(folders, server, "saved")
    state.copy_(kept)
    karat.load(str(folders["saved"]), engine=server.url)  # its scores are right, whatever it is called
    for path, url, said in [
        ("language", server.url, "cannot tell that it is language"),
        ("classifier", f"{server.url}#x", "has no model 'x', but classifier"),
    ]:
        with pytest.raises(Refused, match=said):
            served.attached(outline, url, path)
    served.attached(outline, f"{server.url}/v1/", "elsewhere/classifier")
    server.names = ["a", "b"]
    with pytest.raises(Refused, match="has a, b"):
        served.attached(outline, server.url, "saved", known=True)


def test_precision_is_what_the_numbers_say(outline, server):
    """A server that computes in bfloat16 is found out, and refused where float32 is asked for."""
    assert served.attached(outline, server.url, dtype="float32").dtype == torch.float32
    server.spoil = lambda array, ids: array.bfloat16().float()
    assert served.attached(outline, server.url).dtype == torch.bfloat16
    with pytest.raises(Refused, match="computes in bfloat16, not float32"):
        served.attached(outline, server.url, dtype="float32")


def test_what_an_engine_cannot_do_is_refused_in_a_sentence(folders, server, tmp_path):
    """Each before anything is scored."""
    for options, said in [
        ({"device": "cuda"}, "leave device out"),
        ({"deterministic": True}, "leave deterministic out"),
        ({"compiled": True}, "leave compiled out"),
        ({"kind": "implicit"}, "need the vocabulary"),
    ]:
        with pytest.raises(Refused, match=said):
            opened(folders, server, "language", **options)
    with pytest.raises(karat.BadInput, match="begins with http"):
        karat.load(str(folders["classifier"]), engine="localhost:8000")
    encoder = served.toys.save(tmp_path / "bert", served.toys.reward_model("bert"))
    with pytest.raises(Refused, match="no causal language model"):
        karat.load(str(encoder), engine=server.url)


def test_a_key_is_shown(outline, server, monkeypatch):
    """The one of the environment; without it the mend is said."""
    server.key = "secret"
    with pytest.raises(Refused, match="VLLM_API_KEY"):
        served.attached(outline, server.url)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    served.attached(outline, server.url)


# What goes wrong later


def test_a_busy_server_is_asked_again(outline, server):
    """429 and 5xx, as often as is told."""
    server.failing = [429, 503, 500]
    served.attached(outline, server.url)
    assert not server.failing


def test_a_server_that_dies_ends_the_run(folders, server):
    """Nothing is scored as 0, nor left out; once it is lost, a later call tries once, until it is answered."""
    far = opened(folders, server)
    server.failing = [503] * (_pooling.TRIES + 3)
    with pytest.raises(EngineLost, match="answers 503"):
        list(far.score_many(served.rows(4)))
    with pytest.raises(EngineLost):
        far.score("2+2?", ["4"])
    assert len(server.failing) == 2
    server.failing = []
    assert isinstance(far.score("2+2?", ["4"])[0], Reward)


@pytest.mark.full
def test_a_command_goes_on_when_its_server_is_back(folders, server, tmp_path, monkeypatch, capsys):
    """There is no file before all rows have their rewards."""
    data, output = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in served.rows(6)))
    monkeypatch.setattr(remote, "ROWS", 2)
    said = [
        "score",
        str(folders["classifier"]),
        str(data),
        "--output",
        str(output),
        "--engine",
        f"{server.url}#classifier",
    ]
    right = server.spoil
    server.spoil = lambda array, ids: array if len(server.requests) < 4 else array * 2
    server.requests.clear()
    assert run(monkeypatch, *said) == 1 and not output.exists()
    assert "gives no hidden states" in capsys.readouterr().err
    server.spoil = right
    assert run(monkeypatch, *said) == 0
    rewards = [json.loads(line)["reward"] for line in output.read_text().splitlines()]
    here = [r.value for r in karat.load(str(folders["classifier"])).score_many(served.rows(6))]
    assert rewards == pytest.approx(here, abs=1e-5)


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["karat", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_a_text_that_the_server_refuses_has_no_reward_and_the_others_have(folders, server):
    """It is found by halves; a number that is none gives no reward either."""
    far = opened(folders, server)
    long = "z" * 40
    server.longest = 40
    found = list(far.score_many([*served.rows(2), {"prompt": long, "response": long}]))
    assert isinstance(found[2], Unscored) and "maximum context length" in found[2].reason
    server.longest = 512
    server.spoil = lambda array, ids: array * float("nan")
    assert isinstance(far.score("2+2?", ["4"])[0], Unscored)


# Around it


def test_the_size_of_what_a_norm_leaves_is_one_for_every_norm():
    """RMS norms, Gemma's with a weight from 0, and layer norms with a bias."""

    class Gemma(nn.RMSNorm):
        def forward(self, x):
            return nn.functional.rms_norm(x, (64,)) * (1 + self.weight)

    chance = torch.Generator().manual_seed(0)
    for norm in (nn.RMSNorm(64), Gemma(64), nn.LayerNorm(64)):
        for weight in norm.parameters():
            nn.init.normal_(weight, mean=1, std=0.3, generator=chance)
        states = norm(torch.randn(5, 64, generator=chance) * 7).detach()
        last = LastNorm(norm, 64)
        assert torch.allclose(last.size(states), torch.ones(5), atol=1e-3)
        for other in (nn.functional.normalize(states, dim=-1), states.mean(0, keepdim=True), states * 1.1):
            assert ((last.size(other) - 1).abs() > 0.03).all()


def test_a_backbone_alone_has_its_tensors_and_no_head(folders, tmp_path, monkeypatch, capsys):
    """What vLLM loads: a language model's class, no tensor that it does not know, untouched files as links."""
    for name in ("gated", "saved"):
        assert run(monkeypatch, "convert", str(folders[name]), str(tmp_path / name), "--backbone") == 0
        model, report = served.AutoModel.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"] and not (tmp_path / name / "reward_spec.json").exists()
        wanted = checkpoint.load(folders[name]).backbone.state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(Refused, match="there already"):
        write_alone(folders["saved"], tmp_path / "gated")
    write_alone(tmp_path / "gated", tmp_path / "again")
    first, second = (next((tmp_path / name).glob("*.safetensors")) for name in ("gated", "again"))
    assert first.samefile(second)


@pytest.mark.full
def test_a_model_made_of_several_has_no_engine(folders, server, tmp_path, monkeypatch, capsys):
    """One server runs one backbone."""
    members = [str(folders["classifier"]), str(folders["saved"])]
    assert run(monkeypatch, "ensemble", *members, "--output", str(tmp_path / "both")) == 0
    with pytest.raises(Refused, match="made of several models"):
        karat.load(str(tmp_path / "both"), engine=f"{server.url}#classifier")
