"""Faults of the process: signals, a full disk, no files left, and a port that is used again.

A server is forked off a process that has imported all of it, so that a round does not wait for imports.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import faults
import httpx
import servers

import karat

FILES = 64  # that a server may open where they run out


class Zygote:
    """Starts `karat serve` as processes; this side of the pipe."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        assert self.ask(warm=str(folder))

    def ask(self, **what):
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def _served(stage, *options, port=0, **more):
    """A server that is ready: its URL, its process' id, and a function that waits for its exit code."""
    port = port or _free_port()
    pid = stage.zygote.ask(serve=[str(stage.folder), "--port", str(port), *options], **more)["pid"]
    codes = []

    def ended():
        if not codes:
            codes.append(stage.zygote.ask(wait=pid)["code"])
        return codes[0]

    url = f"http://127.0.0.1:{port}"
    try:
        servers.until(lambda: _alive(url), 50.0)
        yield url, pid, ended
    finally:
        if not codes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            ended()


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as own:
        return own.getsockname()[1]


def _alive(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/livez", timeout=5.0).status_code == 200
    return False


def _asked(url, numbers, meanwhile):
    """Replies, or what came instead, of all at once; `meanwhile` is awaited beside them."""

    async def ask(client, n):
        try:
            return await client.post(f"{url}/v1/reward", json=faults.body(n))
        except httpx.HTTPError as error:
            return error

    async def everyone():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(timeout=15.0, limits=limits, trust_env=False) as client:
            *found, _ = await asyncio.gather(*(ask(client, n) for n in numbers), meanwhile())
        return found

    return asyncio.run(everyone())


def _well(stage, url, n=3):
    stage.right(httpx.post(f"{url}/v1/reward", json=faults.body(n), timeout=15.0, trust_env=False), n)


def _each_is_right(stage, numbers, found, statuses=()):
    """Every reply is right, or of these statuses; what has none was told so by its connection."""
    for n, own in zip(numbers, found, strict=True):
        if isinstance(own, httpx.Response) and own.status_code not in statuses:
            stage.right(own, n)


def killed(stage, chance):
    """SIGKILL under load: callers are told at once, and a new server takes the same port."""
    numbers = [chance.randrange(faults.POOL) for _ in range(30)]
    with _served(stage) as (url, pid, ended):

        async def kill():
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)

        _each_is_right(stage, numbers, _asked(url, numbers, kill))
        assert ended() == -signal.SIGKILL
    with _served(stage, port=int(url.rpartition(":")[2])) as (again, _, _):
        _well(stage, again)


def asked_to_end(stage, chance):
    """SIGTERM or SIGINT under load: what was accepted is answered, and it ends with 0."""
    numbers = [chance.randrange(faults.POOL) for _ in range(30)]
    with _served(stage) as (url, pid, ended):

        async def end():
            await asyncio.sleep(chance.uniform(0.0, 0.1))
            os.kill(pid, chance.choice([signal.SIGTERM, signal.SIGINT]))

        found = _asked(url, numbers, end)
        _each_is_right(stage, numbers, found, (503,))
        told = [own for own in found if not isinstance(own, httpx.Response)]
        assert not any(isinstance(own, httpx.TimeoutException) for own in told), told
        assert ended() == 0


def asked_to_end_twice(stage, chance):
    """A second signal, or more of them, under load: who is not answered is told so, and it ends with 0."""
    numbers = [chance.randrange(faults.POOL) for _ in range(chance.choice([1, 30]))]
    with _served(stage) as (url, pid, ended):

        async def end():
            for _ in range(chance.randint(2, 5)):
                await asyncio.sleep(chance.uniform(0.0, 0.1))
                with contextlib.suppress(ProcessLookupError):  # it may have ended
                    os.kill(pid, chance.choice([signal.SIGTERM, signal.SIGINT]))

        found = _asked(url, numbers, end)
        _each_is_right(stage, numbers, found, (503,))
        assert not any(isinstance(own, httpx.TimeoutException) for own in found), found
        assert ended() == 0


def started_again(stage, chance):
    """The same port, one server after the other: none of them leaves it taken."""
    port = _free_port()
    for _ in range(3):
        with _served(stage, port=port) as (url, pid, ended):
            _well(stage, url, chance.randrange(faults.POOL))
            os.kill(pid, chance.choice([signal.SIGTERM, signal.SIGKILL]))
            ended()


def stands_still(stage, chance):
    """SIGSTOP for a while: everyone is answered after it, by the score or by the deadline."""
    numbers = [chance.randrange(faults.POOL) for _ in range(20)]
    with _served(stage, "--timeout", str(chance.choice([0.2, 10.0]))) as (url, pid, _):

        async def stop():
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            os.kill(pid, signal.SIGCONT)

        found = _asked(url, numbers, stop)
        assert all(isinstance(own, httpx.Response) for own in found), found
        _each_is_right(stage, numbers, found, (429, 504))
        _well(stage, url)


def no_room_for_logs(stage, chance):
    """The disk is full, or nobody reads: what is logged is lost, and no reply."""
    where = chance.choice(["/dev/full", "closed pipe"])
    with _served(stage, "--log-requests", stderr=where) as (url, _, _):
        with httpx.Client(timeout=15.0, trust_env=False) as client:
            for n in chance.sample(range(faults.POOL), 8):
                stage.right(client.post(f"{url}/v1/reward", json=faults.body(n)), n)
            assert client.post(f"{url}/v1/reward", json={}).status_code == 400
        _well(stage, url)


def no_files_left(stage, chance):
    """All file descriptors are taken by connections; when those leave, it goes on."""
    with _served(stage, files=FILES) as (url, _, _):
        host, port = "127.0.0.1", int(url.rpartition(":")[2])
        with contextlib.ExitStack() as opened:
            for _ in range(FILES + chance.randint(1, 40)):
                opened.enter_context(socket.create_connection((host, port), 5.0))
            time.sleep(0.05)
        servers.until(lambda: _alive(url), 15.0)
        _well(stage, url)


# The other side of the pipe


def _serve(asked):
    """In the child: be `karat serve`."""
    from karat.cli.base import main

    if "files" in asked:
        resource.setrlimit(resource.RLIMIT_NOFILE, (asked["files"], asked["files"]))
    where = asked.get("stderr", os.devnull)
    if where == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(where, os.O_WRONLY)
    os.dup2(writer, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    sys.argv = ["karat", "serve", *asked["serve"]]
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        code = 70
    os._exit(code)


def _answer():
    """In the zygote: fork and wait as asked, until nobody asks any more."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    for name in ("karat.cli.serve", "karat.serving._run", "uvloop", "uvicorn.loops.uvloop", "uvicorn.lifespan.on"):
        __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        if "warm" in asked:
            karat.load(asked["warm"]).score("a", ["b"])  # what it imports, servers need not
            print(json.dumps(asked), file=out)
        elif "serve" in asked:
            pid = os.fork()
            if not pid:
                _serve(asked)
            print(json.dumps({"pid": pid}), file=out)
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
            print(json.dumps({"code": code}), file=out)


if __name__ == "__main__":
    _answer()
