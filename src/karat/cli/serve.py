"""`karat serve`: reward models behind HTTP, in the dialects of trainers, of vLLM, SGLang and TEI, and of rerankers."""

import typer

from karat.cli import _options

SETTINGS = _options.OPEN


def command(
    context: typer.Context,
    model: list[str] = typer.Argument(help="Folders or hub ids of reward models."),
    host: str = typer.Option("127.0.0.1", help="Address to listen at; others than this machine's own need a key."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen at; 0 takes a free one."),
    name: list[str] = typer.Option(
        None, help="A model's name in requests and replies, once for each; else the folder's or hub id."
    ),
    generate: bool = typer.Option(
        False, "--generate", help="Answer /v1/chat/completions as well, from the same weights of a language model."
    ),
    api_key_file: str = typer.Option("", help="A file with the key that clients have to show, or set KARAT_API_KEY."),
    insecure: bool = typer.Option(False, "--insecure", help="Listen beyond this machine without a key."),
    allowed_host: list[str] = typer.Option(None, help="A name that the server may be called by, beside its own."),
    max_body: int = typer.Option(8 << 20, min=1, help="Bytes that a request may have."),
    max_batch_tokens: int = typer.Option(2048, min=1, help="Tokens that are computed together."),
    max_wait: float = typer.Option(
        30.0, callback=_options.seconds, help="Seconds that a request would wait, beyond which it gets 429."
    ),
    timeout: float = typer.Option(120.0, callback=_options.seconds, help="Seconds that a request may take at most."),
    literal: bool = typer.Option(
        False, "--literal", help="Answer other dialects as their servers do where that differs: sigmoids by default."
    ),
    ray: str = typer.Option(None, help="A Ray cluster: HOST:PORT, or local for one on this machine."),
    replicas: int = typer.Option(None, min=1, help="Of the models on the cluster; else one for each GPU, or node."),
    max_replicas: int = typer.Option(None, min=1, help="As many as this where work waits; else always --replicas."),
    log_requests: bool = typer.Option(False, "--log-requests", help="A JSON line on stderr for each request."),
    device: str = _options.DEVICE,
    dtype: str = _options.DTYPE,
    deterministic: bool = _options.DETERMINISTIC,
    compiled: bool = _options.COMPILED,
    engine: str = _options.ENGINE,
) -> None:
    """Serve reward models until SIGTERM or Ctrl-C; everything accepted before is answered. SIGHUP loads them anew.

    Requests say by `model` which of several they ask. Further options hold for all of them, and are the spec's (--kind,
    --max-length, --over-length cut_prompt, --pooling, --head, --activation, …). See docs/serve.md for the paths, or
    /openapi.json of the running server.
    """
    from karat.serving._checks import hosts_of, listen, named, read_key

    if ray is None and (replicas, max_replicas) != (None, None):
        raise typer.BadParameter("--replicas and --max-replicas are of a cluster; give --ray too")
    if engine is not None and generate:
        raise typer.BadParameter("an engine gives hidden states and writes nothing; give --engine or --generate")
    names = named(model, name or [])
    key = read_key(api_key_file)
    hosts = hosts_of(host, allowed_host or [], key, insecure)
    options = _options.extra(context, _options.spec_fields())
    listening = listen(host, port)

    from karat.serving._incoming import Settings
    from karat.serving._run import Source, end, made, serve

    settings = Settings(key, hosts, max_body, timeout, literal, log_requests)
    how = {
        "device": device,
        "dtype": dtype,
        "deterministic": deterministic,
        "compiled": compiled,
        "engine": engine,
        **options,
    }
    sources = {own: Source(path, how, generate) for own, path in zip(names, model, strict=True)}
    with listening:
        if ray is None:
            serve(made(sources, settings, max_batch_tokens, max_wait), listening)
        else:
            from karat.scaling import _wire, ray_serve

            opened = _wire.Opened(sources, settings, max_batch_tokens, max_wait)
            ray_serve.serve(opened, listening, ray, ray_serve.Scale(replicas, max_replicas))
    end()
