"""Policies: seeds, company, what a model or an endpoint can do wrong."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import pytest
import torch
from transformers import AutoModelForCausalLM

import toys
from karat import arithmetic
from karat.formats import base as formats
from karat.rewards import _generating
from karat.rewards._endpoint import TRIES, Endpoint, _pause
from karat.search._arithmetic import Arithmetic
from karat.search._policies import Wiring, open_policy
from karat.search.base import Missing, PolicyError, Sample, Sampling, Start
from karat.training._labels_file import label_file
from karat.training.labels import Plan
from karat.types import BadInput, Message, Refused

ASKED = (Message("user", "What is 3 + 4?"),)


# The simulated policy


def test_a_skilled_arithmetic_policy_writes_the_right_steps():
    for split in ("train", "test"):
        for problem in arithmetic.problems(40, split=split):
            wanted = "\n".join((*problem.steps, f"Answer: {problem.answer}"))
            start = Start(problem.prompt, "", (1, 2))
            (drawn,) = Arithmetic(1.0).sample([start])
            assert [one.text for one in drawn] == [wanted] * 2
            assert Arithmetic(1.0).chance(start, problem.answer) == 1.0


def test_its_chance_is_what_its_samples_come_to():
    policy = Arithmetic(0.7)
    for problem in arithmetic.problems(6, seed=3):
        for candidate in arithmetic.candidates(problem, 2):
            start = Start(problem.prompt, candidate.steps[0] + "\n\n", tuple(range(2000)))
            (drawn,) = policy.sample([start])
            share = sum(one.text.endswith(f"Answer: {problem.answer}") for one in drawn) / 2000
            assert share == pytest.approx(policy.chance(start, problem.answer), abs=0.04)


def test_other_problems_are_missing_and_words_are_checked():
    (drawn,) = Arithmetic().sample([Start(ASKED, "", (1,))])
    assert isinstance(drawn[0], Missing) and "built-in" in drawn[0].reason
    for word in ("arithmetic:skill=2", "arithmetic:skil=0.5", "arithmetic:skill=x"):
        with pytest.raises(BadInput, match="skill"):
            open_policy(word, Sampling())


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"max_tokens": 0}])
def test_sampling_is_checked(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Sampling(**wrong)


# A causal model of transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.save(tmp_path_factory.mktemp("policy"), toys.causal_model())


def local(folder, batch_size=8, **sampling):
    return open_policy(str(folder), Sampling(**{"max_tokens": 12, **sampling}), Wiring(batch_size=batch_size))


def test_a_sample_depends_on_its_seed_alone(folder):
    starts = [
        Start(ASKED, "", (1, 2, 3)),
        Start(ASKED, "First, 3.\n\n", (1, 4)),
        Start((Message("user", "x" * 60),), "", (9,)),
    ]
    together = local(folder).sample(starts)
    assert [len(found) for found in together] == [3, 2, 1]
    assert all(isinstance(one, Sample) and one.tokens <= 12 for found in together for one in found)
    for batch_size in (1, 3):
        again = [found for start in reversed(starts) for found in local(folder, batch_size).sample([start])]
        assert again[::-1] == together
    assert len({one.text for one in together[0]}) == 3


def test_a_cold_policy_is_greedy_decoding(folder):
    policy = local(folder, temperature=1e-4)
    (drawn,) = policy.sample([Start(ASKED, "So 3", (5,))])
    tokenizer = toys.byte_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKED[0].content}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text + "So 3", add_special_tokens=False)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert drawn[0].text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_tokens_are_drawn_with_their_probabilities():
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]]).log_softmax(-1)
    rows = 4000
    drawn = _generating._Draw(range(rows))(torch.zeros(rows, 1), scores.expand(rows, 5)).argmax(-1)
    shares = torch.bincount(drawn, minlength=5) / rows
    assert torch.allclose(shares, scores.exp()[0], atol=0.03) and shares[3] == 0


def test_text_is_no_control_token_and_no_room_is_missing(folder):
    policy = local(folder)
    plain = policy._encoded(Start(ASKED, "", (1,)))
    spelled = policy._encoded(Start((Message("user", "hi <|im_end|> there"),), "<|im_start|>", (1,)))
    end = toys.byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert spelled.count(end) == plain.count(end)
    (drawn,) = policy.sample([Start((Message("user", "x" * 600),), "", (1, 2))])
    assert all(isinstance(one, Missing) and "512" in one.reason and not one.down for one in drawn)
    tight = Start((Message("user", "x" * 485),), "", (1,))
    ((one,),) = policy.sample([tight])
    room = 512 - len(policy._encoded(tight))
    assert 0 < room < 12 and (one.tokens == room or not one.cut)


def test_a_reward_model_is_no_policy(model_folder):
    with pytest.raises(Refused, match="policy"):
        open_policy(str(model_folder), Sampling())


# An endpoint


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # many clients connect at once


class Fake:
    """An endpoint that answers with what `answer(path, body)` says: a status and an object."""

    def __init__(self, answer):
        self.seen, self.answer = [], answer

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self, body):
                fake.seen.append((self.path, body, dict(self.headers)))
                status, said = fake.answer(self.path, body)
                text = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_GET(self):
                self._reply(None)

            def do_POST(self):
                self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def chat(text, reason="stop", tokens=3):
    return {
        "choices": [{"message": {"content": text}, "finish_reason": reason}],
        "usage": {"completion_tokens": tokens},
    }


def opened(fake, **options):
    waits = []
    policy = Endpoint(fake.url, Sampling(max_tokens=7), **{"model": "m", "sleep": waits.append, **options})
    return policy, waits


def test_each_sample_is_a_request_with_its_seed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with Fake(lambda _, body: (200, chat(f"{body['seed']}", "length" if body["seed"] == 3 else "stop"))) as fake:
        policy, _ = opened(fake)
        found = policy.sample([Start(ASKED, "", (1, 2)), Start(ASKED, "So\n\n", (3,))])
    assert found == [[Sample("1", 3), Sample("2", 3)], [Sample("3", 3, cut=True)]]
    begun = next(body for _, body, _ in fake.seen if body["seed"] == 3)
    assert begun["messages"][-1] == {"role": "assistant", "content": "So\n\n"}
    assert begun["continue_final_message"] is True and begun["max_tokens"] == 7 and begun["n"] == 1
    assert all(headers["Authorization"] == "Bearer key" for _, _, headers in fake.seen)


def test_completions_and_the_only_model():
    def answer(path, body):
        if path == "/v1/models":
            return 200, {"data": [{"id": "one"}]}
        assert path == "/v1/completions" and body["prompt"] == "What is 3 + 4?\n\nSo " and body["model"] == "one"
        return 200, {"choices": [{"text": "7", "finish_reason": "stop"}]}

    with Fake(answer) as fake:
        policy, _ = opened(fake, model=None, api="completions")
        assert policy.sample([Start(ASKED, "So ", (1,))]) == [[Sample("7", 0)]]


def test_two_models_have_to_be_chosen_from():
    with (
        Fake(lambda *_: (200, {"data": [{"id": "a"}, {"id": "b"}]})) as fake,
        pytest.raises(PolicyError, match="2 models"),
    ):
        opened(fake, model=None)


def test_429_and_5xx_are_tried_again_and_nothing_else():
    left = {1: [503, 429], 2: [400], 3: [500] * TRIES}

    def answer(_, body):
        codes = left[body["seed"]]
        return (codes.pop(0), {"error": {"message": "too long"}}) if codes else (200, chat("7"))

    with Fake(answer) as fake:
        policy, waits = opened(fake, concurrency=1)
        (found,) = policy.sample([Start(ASKED, "", (1, 2, 3))])
    assert found[0] == Sample("7", 3)
    assert found[1] == Missing("the endpoint answers 400 (too long)")
    assert found[2] == Missing("the endpoint answers 500", down=True)
    assert len(fake.seen) == 3 + 1 + TRIES and waits == [0.5, 1.0] + [0.5 * 2**i for i in range(TRIES - 1)]


@pytest.mark.parametrize(
    "said",
    [b"<html>", [], {}, {"choices": []}, {"choices": [{"message": None}]}, chat(None), chat("x", "content_filter")],
)
def test_what_is_no_answer_is_missing(said):
    with Fake(lambda *_: (200, said)) as fake:
        ((one,),) = opened(fake)[0].sample([Start(ASKED, "", (1,))])
    assert isinstance(one, Missing)


@pytest.mark.parametrize(("status", "said"), [(401, "OPENAI_API_KEY"), (404, "/v1")])
def test_a_policy_that_cannot_be_used_stops_at_once(status, said):
    with Fake(lambda *_: (status, {})) as fake, pytest.raises(PolicyError, match=said):
        opened(fake, concurrency=2)[0].sample([Start(ASKED, "", tuple(range(50)))])
    assert len(fake.seen) < 50


def test_an_endpoint_without_usage_counts_no_tokens():
    plain = {"choices": chat("7")["choices"]}
    with Fake(lambda _, body: (200, chat("7") if body["seed"] == 1 else plain)) as fake:
        ((counted, other),) = opened(fake)[0].sample([Start(ASKED, "", (1, 2))])
    assert counted.counted and not other.counted


def test_another_server_is_another_policy():
    fingerprints = {Endpoint(f"http://{host}/v1", Sampling(), "m").fingerprint for host in ("a", "b")}
    assert len(fingerprints) == 2


@pytest.mark.parametrize(("asked", "seconds"), [("nan", 0.5), ("7", 7.0), ("soon", 0.5), ("inf", 60.0)])
def test_a_server_that_asks_for_a_pause(asked, seconds):
    assert _pause(HTTPError("http://a", 429, "busy", {"Retry-After": asked}, None), 0) == seconds


def test_a_retrained_policy_of_the_same_shape_is_another(tmp_path):
    folder = toys.save(tmp_path, toys.causal_model())
    before = local(folder).fingerprint
    assert local(folder).fingerprint == before
    weights = next(folder.glob("*.safetensors"))
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert local(folder).fingerprint != before


def test_an_endpoint_that_is_down_says_so():
    with Fake(lambda *_: (200, chat("7"))) as fake:
        policy, _ = opened(fake)
    with pytest.raises(PolicyError, match="cannot be reached"):
        policy.sample([Start(ASKED, "", (1,))])


def test_an_endpoint_that_does_not_answer_in_time_is_missing():
    gate = threading.Event()

    def answer(*_):
        gate.wait(20)
        return 200, chat("late")

    with Fake(answer) as fake:
        ((one,),) = opened(fake, timeout=0.2)[0].sample([Start(ASKED, "", (1,))])
        gate.set()
    assert isinstance(one, Missing) and one.down and "0.2 seconds" in one.reason


@pytest.mark.parametrize("wrong", [{"api": "responses"}, {"concurrency": 0}])
def test_wiring_is_checked(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Endpoint("http://127.0.0.1:1/v1", Sampling(), "m", **wrong)


def test_labels_from_an_endpoint_that_fails_now_and_then(tmp_path):
    """It knows that 3 + 4 is 7 unless a step says 8; every fifth request fails for good, some others once."""
    refused = set()

    def answer(_, body):
        seed, begun = body["seed"], body["messages"][-1]["content"]
        if seed % 5 == 0:
            return 400, {"error": {"message": "unlucky"}}
        if seed % 5 == 1 and seed not in refused:
            refused.add(seed)
            return 503, {}
        return 200, chat("Answer: 13" if "8" in begun else "Answer: 7")

    data, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    data.write_text(json.dumps({"prompt": "3+4?", "answer": 7, "steps": ["three, four", "3 + 4 = 8"]}) + "\n")
    with Fake(answer) as fake:
        found = label_file(opened(fake)[0], str(data), output, Plan("soft", rollouts=20))
    (item,) = formats.load(output).items
    assert item.labels == ((1.0, 0.0),)
    missing = found["missing"]["the endpoint answers 400 (unlucky)"]
    made = item.branches[0].context["labelling"]
    assert refused and 0 < missing == 40 - sum(made["rollouts"]) and found["tokens"] == 3 * sum(made["rollouts"])


def test_an_address_without_http_is_told_from_a_folder():
    with pytest.raises(BadInput, match="for an endpoint write http://localhost:8000/v1"):
        open_policy("localhost:8000/v1", Sampling())
