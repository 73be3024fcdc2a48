"""Any requests that the OpenAPI document allows, and any that it does not: `schema.py --cases 50000 --sockets 100000`.

schemathesis runs in an environment of its own (`make clients`) against `karat serve` as a process. No reply is 5xx, or
other than the document says, and what breaks the schema is refused. Then broken bytes on raw sockets.
"""

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx

TOOL = Path(__file__).parent.parent.parent / ".peers" / "schema" / "bin" / "schemathesis"
PATIENCE = 20.0  # seconds
MOST = 400  # examples of an operation in a run; with 2,000 the tool was seen to rearrange what it had for an hour
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
# A body that is too large breaks the schema as well, and is refused by its size.
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = ["400", "403", "404", "405", "413", "415"]
"""


def cases(url, count, seed=0):
    """At least so many cases: how many there were, and what they found."""
    found, number = {"cases": 0, "failures": []}, 0
    while found["cases"] < count:
        own = _run(url, min(MOST, max(5, (count - found["cases"]) // 24)), seed + number)
        found["cases"] += own["test_cases"]["generated"]
        found["failures"] += [f"{one['title']}: {', '.join(one['operations'])}" for one in own["failures"]]
        found["failures"] += [str(one)[:500] for one in own["errors"]]
        number += 1
    return found


def _run(url, examples, seed):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "schemathesis.toml").write_text(CONFIG)
        report = Path(folder) / "report.json"
        command = [TOOL, "run", f"{url}/openapi.json", "--phases", "examples,coverage,fuzzing", "-n", str(examples)]
        command += ["--checks", ",".join(CHECKS), "--seed", str(seed), "--continue-on-failure", "--no-shrink"]
        command += ["--request-timeout", "60"]  # the machine may be busy
        command += ["--report", "json", "--report-json-path", str(report), "--suppress-health-check", "all"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
        assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
        found = json.loads(report.read_text())
        if found["failures"]:
            print("\n".join(line[:300] for line in done.stdout.splitlines()), file=sys.stderr)
        return found


def examples(url):
    """A request as bytes for each example of the document."""
    found = []
    for path, verbs in httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"].items():
        for own in verbs.get("post", {}).get("requestBody", {}).get("content", {}).values():
            bodies = [json.dumps(example["value"]).encode() for example in own.get("examples", {}).values()]
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
            found += [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    return found


def broken(data, chance):
    """A request with bytes changed, cut out, doubled or put in."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        change = [
            chance.randbytes(1),
            b"",
            bytes(data[at : at + 9]) * 2,
            b"\r\n",
            b"\0",
            b"{[" * 9,
            b"9" * 20,
            b"\xed\xa0\x80",
        ]
        data[at : at + chance.randint(0, 3)] = chance.choice(change)
    return bytes(data)


def sockets(url, count, seed=0):
    """Broken requests: how many there were, and those that got 5xx; another client is served right all the while."""
    chance, whole = random.Random(seed), examples(url)
    place = urlsplit(url)
    found = {"requests": 0, "failures": []}
    asked = {"prompt": "What is 7*8?", "candidates": ["56", "54"]}
    with httpx.Client(trust_env=False, timeout=20.0) as client:
        wanted = _rewards(client.post(f"{url}/v1/reward", json=asked))
        while found["requests"] < count:
            data = broken(chance.choice(whole), chance)
            try:
                reply = _answer((place.hostname, place.port), data)
            except TimeoutError:
                found["failures"].append(f"{data!r}: neither a reply nor an end within {PATIENCE} s")
            else:
                if reply.startswith(b"HTTP/1.1 5"):
                    found["failures"].append(f"{data!r}: {reply[:300]!r}")
            found["requests"] += 1
            if found["requests"] % 100 == 0 and not _near(
                _rewards(client.post(f"{url}/v1/reward", json=asked)), wanted
            ):
                found["failures"].append("another client's scores are others")
    return found


def _answer(place, data):
    """The first bytes of a reply, or none where the server closes."""
    try:
        with socket.create_connection(place, PATIENCE) as own:
            own.sendall(data)
            own.shutdown(socket.SHUT_WR)
            return own.recv(4096)
    except TimeoutError:
        raise
    except OSError:  # it closes on what it does not read to the end
        return b""


def _rewards(reply):
    return [own["reward"] for own in reply.json()["data"][0]["candidates"]]


def _near(values, wanted):
    return len(values) == len(wanted) and all(abs(v - w) < 1e-5 for v, w in zip(values, wanted, strict=True))


def main():
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import servers

    import toys

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--sockets", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    bad = False
    with tempfile.TemporaryDirectory() as folder, servers.process(toys.save(Path(folder))) as (url, _):
        for run, count in ((cases, asked.cases), (sockets, asked.sockets)):
            found = run(url, count, asked.seed) if count else {"failures": []}
            print(json.dumps(found), flush=True)
            bad |= bool(found["failures"])
    sys.exit(bad)


if __name__ == "__main__":
    main()
