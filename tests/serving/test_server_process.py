"""The command as users run it: a process, real sockets, real signals."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import servers

import karat as front
from karat.rewards._local import LocalModel

ANSWERS = ["56", "54", "It is 56.", ""]


@pytest.fixture(scope="module")
def served(model_folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))  # what it begins with
    with servers.process(model_folder) as (url, started):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        yield url, started


@pytest.fixture(scope="module")
def offline(model_folder) -> LocalModel:
    return front.load(str(model_folder))


def test_rewards_over_http_are_those_of_python(served, offline):
    url, _ = served
    reply = httpx.post(f"{url}/v1/reward", json={"prompt": "What is 7*8?", "candidates": ANSWERS})
    assert reply.status_code == 200
    wanted = [r.value for r in offline.score("What is 7*8?", ANSWERS)]
    assert servers.reward(reply) == pytest.approx(wanted, abs=1e-5)
    assert reply.json()["data"][0]["best"] == max(range(4), key=lambda i: wanted[i])
    assert reply.json()["readout"]["template"].startswith("sha256:")
    assert reply.headers["x-request-id"]


def test_many_callers_get_their_own_scores_and_ranks_do_not_flip(served, offline):
    url, _ = served
    prompts = [f"What is {n}*8?" for n in range(120)]
    wanted = [[r.value for r in offline.score(p, [str(i), f"It is {i * 8}."])] for i, p in enumerate(prompts)]
    with httpx.Client() as client, concurrent.futures.ThreadPoolExecutor(16) as threads:

        def ask(i):
            return servers.reward(
                client.post(f"{url}/v1/reward", json={"prompt": prompts[i], "candidates": [str(i), f"It is {i * 8}."]})
            )

        found = list(threads.map(ask, range(len(prompts))))
    for own, right in zip(found, wanted, strict=True):
        assert own == pytest.approx(right, abs=1e-5)
        assert (own[0] > own[1]) == (right[0] > right[1])


def test_health_metrics_and_openapi(served):
    url, _ = served
    assert httpx.get(f"{url}/livez").json() == {"status": "alive"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    assert "karat_batch_sequences_bucket" in httpx.get(f"{url}/metrics").text
    assert "/v1/reward" in httpx.get(f"{url}/openapi.json").json()["paths"]


def raw(url, data, wait=5.0):
    """What comes back for bytes."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), wait) as own:
        own.settimeout(wait)
        found = b""
        try:
            own.sendall(data)
            while part := own.recv(65536):
                found += part
                if b"\r\n\r\n" in found and b"content-length: 0" not in found.lower() and found.endswith(b"}"):
                    break
        except OSError:
            pass
        return found


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000,
        b"GET /" + b"a" * 300_000,
        b"\x00\xff\x00" * 100 + b"\r\n\r\n",
        b"POST /v1/reward HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/reward HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nhello",
        b"POST /v1/reward HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Type: application/json\r\n\r\nzz\r\n",
        b"GET http://evil/v1/models HTTP/1.1\r\nHost: evil\r\n\r\n",
        b"GET /livez HTTP/1.0\r\n\r\n",
    ],
    ids=[
        "endless header",
        "endless path",
        "noise",
        "length below 0",
        "two lengths",
        "bad chunk",
        "absolute",
        "no host",
    ],
)
def test_what_is_no_request_gets_an_error_or_nothing(served, data):
    url, _ = served
    found = raw(url, data)
    assert found == b"" or found.split()[1][:1] == b"4", found[:200]
    if found:
        told = json.loads(found.partition(b"\r\n\r\n")[2])["error"]
        assert told.keys() == {"message", "type", "param", "code"} and told["type"] == "invalid_request_error"
    assert httpx.get(f"{url}/livez").status_code == 200


def fuzz(url, count, seed):
    """Requests with bytes changed, cut out and doubled; the server answers others all the while."""
    chance = random.Random(seed)
    body = b'{"prompt":"a","candidates":["b"]}'
    head = (
        b"POST /v1/reward HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 33\r\n\r\n"
    )
    with httpx.Client() as client:
        for number in range(count):
            data = bytearray(head + body)
            for _ in range(chance.randint(1, 6)):
                at = chance.randrange(len(data))
                change = chance.choice(
                    [bytes([chance.randrange(256)]), b"", bytes(data[at : at + 9]) * 2, b"\r\n", b"\0"]
                )
                data[at : at + chance.randint(0, 2)] = change
            host, _, port = url.removeprefix("http://").partition(":")
            with socket.create_connection((host, int(port)), 5) as own:
                own.settimeout(0.02)
                with contextlib.suppress(OSError):
                    own.sendall(bytes(data))
                    found = own.recv(4096)
                    assert not found.startswith(b"HTTP/1.1 5"), (bytes(data), found)
            if number % 20 == 0:
                assert client.get(f"{url}/livez").status_code == 200


def test_noise_on_the_socket(served):
    fuzz(served[0], 200, 0)


@pytest.mark.full
def test_much_noise_on_the_socket(served):
    fuzz(served[0], 20_000, 1)


def test_a_client_that_leaves_is_noticed_and_others_are_answered(served, offline):
    url, _ = served
    host, _, port = url.removeprefix("http://").partition(":")
    body = b'{"prompt":"a","candidates":["b"]}'
    head = (
        b"POST /v1/reward HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 33\r\n\r\n"
    )
    for _ in range(50):
        with socket.create_connection((host, int(port))) as own:
            own.sendall(head + body)
    reply = httpx.post(f"{url}/v1/reward", json={"prompt": "a", "candidates": ["b"]})
    assert servers.reward(reply) == pytest.approx([offline.score("a", ["b"])[0].value], abs=1e-5)


@pytest.fixture(scope="module")
def keyed(model_folder, tmp_path_factory):
    key = tmp_path_factory.mktemp("secret") / "key"
    key.write_text("open sesame\n")
    with servers.process(model_folder, "--api-key-file", str(key), "--max-length", "300") as found:
        yield found


def test_a_key_is_asked_for(keyed):
    url, _ = keyed
    assert httpx.get(f"{url}/livez").status_code == 200
    assert httpx.get(f"{url}/v1/models").status_code == 401
    told = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer open sesame"}).json()
    assert told["data"][0]["readout"]["max_length"] == 300
    rm = front.connect(url, api_key="open sesame")
    assert rm.score("a", ["b"])[0].value
    with pytest.raises(front.Refused, match="key"):
        front.connect(url)


def test_at_sigterm_what_was_accepted_is_answered(keyed):
    url, started = keyed
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        bodies = [{"prompt": f"{n} " * 100, "candidates": [f"{n}{k}" for k in range(16)]} for n in range(16)]
        with httpx.Client(timeout=20, headers={"Authorization": "Bearer open sesame"}) as client:
            client.get(f"{url}/livez")
            asked = [threads.submit(client.post, f"{url}/v1/reward", json=body) for body in bodies]
            time.sleep(0.15)
            started.send_signal(signal.SIGTERM)
            found = [own.exception() or own.result() for own in asked]
        assert started.wait(20) == 0
    answered = [f for f in found if isinstance(f, httpx.Response)]
    assert all(f.status_code == 200 for f in answered)
    assert all(isinstance(f, httpx.Response | httpx.ConnectError) for f in found), found  # those not accepted: refused
    assert answered


def test_nobody_beyond_this_machine_is_let_in_without_a_key(karat, model_folder):
    code, _, said = karat("serve", model_folder, "--host", "0.0.0.0")
    assert code == 1 and "--api-key-file" in said


def test_a_port_in_use_is_said_in_one_sentence_before_anything_is_loaded(karat, served):
    port = served[0].rpartition(":")[2]
    code, _, said = karat("serve", "no-such-model", "--port", port)
    assert code == 1
    assert said == f"karat: something listens at 127.0.0.1:{port} already; choose another --port, or 0 for a free one\n"


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--port", "70000", "65535"),
        ("--port", "-1", "0"),
        ("--max-body", "0", "1"),
        ("--max-batch-tokens", "-5", "1"),
        ("--max-wait", "0", "0 is no time to wait; give seconds above 0"),
        ("--timeout", "nan", "nan is no time to wait; give seconds above 0"),
        ("--timeout", "inf", "inf is no time to wait; give seconds above 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_with_its_option(karat, option, value, told):
    code, _, said = karat("serve", "no-such-model", option, value)
    assert code == 2 and option in said and told in said


def test_a_key_and_a_name_that_nobody_can_send_are_refused(karat, tmp_path):
    (tmp_path / "key").write_text("a b\nc\n")
    code, _, said = karat("serve", "no-such-model", "--api-key-file", tmp_path / "key")
    assert code == 1 and "holds more than one line" in said
    code, _, said = karat("serve", "no-such-model", "--name", "")
    assert code == 1 and "a --name is empty" in said


def test_what_is_refused_before_a_model_is_loaded_imports_nothing_slow():
    slow = "[name for name in ('torch', 'transformers', 'uvicorn') if name in sys.modules]"
    code = f"import sys, karat.cli.serve, karat.serving._checks; print({slow})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def seconds_of(pid):
    """CPU seconds that a process has taken, as Linux counts them."""
    with open(f"/proc/{pid}/stat") as own:
        fields = own.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.full
def test_an_idle_connection_outlives_its_clients(served):
    """Clients drop theirs after 5 seconds (httpx) to 15 (aiohttp); who asks on one that closes loses the request."""
    url, _ = served
    host, port = url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port))) as kept:
        kept.connect()
        place = kept.sock.getsockname()
        for wait in (0, 17):
            time.sleep(wait)
            kept.request("GET", "/livez")
            assert kept.getresponse().read()
            assert kept.sock.getsockname() == place


def test_a_server_takes_as_many_connections_as_it_may(served):
    """1,024 files at once are what a process has unless it asks for more."""
    _, started = served
    with open(f"/proc/{started.pid}/limits") as limits:
        (line,) = (line for line in limits if line.startswith("Max open files"))
    soft, hard = line.removeprefix("Max open files").split()[:2]
    assert soft == hard


def test_an_idle_server_ends_at_once(served):
    """Taking the process apart cost a fifth of what starting it does: five seconds and more on a busy machine."""
    url, started = served
    with httpx.Client() as kept:  # a connection that is kept is not waited for
        assert kept.get(f"{url}/livez").status_code == 200
        before, own = seconds_of(started.pid), resource.getrusage(resource.RUSAGE_CHILDREN)
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 0
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = ended.ru_utime + ended.ru_stime - own.ru_utime - own.ru_stime
    assert whole - before < 0.08 * whole, "of it, for the end"
