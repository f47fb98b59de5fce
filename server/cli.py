"""The verb `bapo serve`: from the command line to a listening server.

Owns everything that must be right before the engine is started: settings, the port, the data
folder, the base model's folder, vLLM's options, the first admin key. Each failure is one sentence
and exit 1.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import deque
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperCommand

if TYPE_CHECKING:
    from adapters.registry import Registry

POCKET_HELP = "a model folder or Hub name (default: the pocket model that comes along)"
VLLM_PREFIX = "--vllm."


class WithVllmOptions(TyperCommand):
    """Takes `--vllm.NAME [VALUE…]` out of the command line, as only vLLM knows what there is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj, rest = vllm_options(args)
        return super().parse_args(ctx, rest)


def vllm_options(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What is given as `--vllm.NAME=VALUE` or `--vllm.NAME VALUE…`, and the words that are left.

    A name without a value is True, one with several a list; values end at the next word in `--`.
    """
    options: dict[str, Any] = {}
    rest: list[str] = []
    left = deque(words)
    while left:
        word = left.popleft()
        if not word.startswith(VLLM_PREFIX):
            rest.append(word)
            continue
        name, given, value = word.removeprefix(VLLM_PREFIX).partition("=")
        values = [value] if given else []
        while not given and left and not left[0].startswith("--"):
            values.append(left.popleft())
        one = values[0] if values else True
        options[name.replace("-", "_")] = values if len(values) > 1 else one
    return options, rest


serve_app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@serve_app.command("serve", cls=WithVllmOptions)
def serve(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(help=POCKET_HELP)] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0 picks a free one [8000]")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="registry and adapters [the user-data folder]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16 [auto]")
    ] = None,
    max_loras: Annotated[int | None, typer.Option(help="adapters in one batch [8]")] = None,
    max_lora_rank: Annotated[int | None, typer.Option(help="largest rank served [16]")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="longest context, tokens")] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="no keys; on a loopback address only")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings")] = None,
) -> None:
    """Serve one base model with every user's adapter, OpenAI-compatible.

    Settings come from BAPO_* variables, then --config, then these flags, the later the stronger;
    `docs/settings.md` lists them all.

    vLLM's own options follow MODEL as `--vllm.NAME VALUE`, or stand under `vllm:` in the file:
    `bapo serve MODEL --vllm.tensor-parallel-size 2 --vllm.quantization fp8
    --vllm.enable-auto-tool-choice --vllm.tool-call-parser hermes`.
    They are those of vLLM's `vllm serve`, with the same values.

    The first start prints an admin key, once. With it, upload adapters and create users:
    `bapo adapters publish --help`, `bapo users --help`.
    """
    from server import log_pipe
    from server.engine import environment

    log_pipe.never_wait()
    environment.prepare()
    flags = {
        "model": model,
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "dtype": dtype,
        "max_loras": max_loras,
        "max_lora_rank": max_lora_rank,
        "max_model_len": max_model_len,
        "insecure_no_auth": insecure_no_auth or None,
        "vllm": ctx.obj or None,
    }
    run(config, flags)


def run(config: Path | None, flags: dict[str, Any]) -> None:
    """Check everything that is cheap to check, then import vLLM and serve until told to stop."""
    from adapters.base import describe_base
    from adapters.errors import AdapterError
    from adapters.registry import open_registry
    from server import log_pipe
    from server.engine import environment, warm
    from server.settings import MEBIBYTE, load_settings

    try:
        settings = load_settings(config, **flags)
        listening = bind(settings.host, settings.port)
        if settings.insecure_no_auth:
            check_loopback(listening)
        base = describe_base(local_folder(settings.model), name=settings.base_name)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        registry = open_registry(
            settings.data_dir,
            settings.database_url,
            settings.store_url,
            cache_bytes=settings.store_cache_mebibytes * MEBIBYTE,
            gate=settings.gate,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        fail(f"setting {name}: {first['msg']}")
    except (AdapterError, OSError) as error:
        fail(str(error))

    if library := warm.missing_library():
        fail(f"vLLM's CPU build needs {library}: install it (Debian, Ubuntu: apt install libnuma1)")
    if settings.admin_key is None and not settings.insecure_no_auth:
        show_first_admin_key(registry)
    host, port = listening.getsockname()[:2]
    log_pipe.say(f"starting {settings.base_name} on http://{host}:{port} …")
    leave_quietly_when_stopped()
    if settings.otlp_endpoint:
        environment.trace_over_http()
    warm.begin()
    from server.engine.options import WrongOption, parse_options
    from server.run import serve_until_stopped

    try:
        parse_options(settings)
    except WrongOption as error:
        fail(f"--vllm options: {error}")
    raise typer.Exit(serve_until_stopped(settings, registry, base, listening))


def leave_quietly_when_stopped() -> None:
    """End at once and without a traceback on a signal, until the running server takes over."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


def fail(sentence: str) -> NoReturn:
    typer.secho(f"bapo serve: {sentence}", fg="red", err=True)
    raise typer.Exit(1)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before anything slow, so that a taken port is known at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"host {host!r} is no address of this machine: {error.strerror}") from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            f"cannot listen on {host}:{port} ({reason}): stop what uses it or choose another --port"
        ) from error
    return listening


def check_loopback(listening: socket.socket) -> None:
    """Raise OSError where others than this machine's own users could connect."""
    address = listening.getsockname()[0]
    if not ip_address(address).is_loopback:
        listening.close()
        raise OSError(
            f"--insecure-no-auth on {address} lets anybody in: listen on 127.0.0.1, or use keys"
        )


def local_folder(model: str) -> Path:
    """Where the base model lies on this machine; a Hub name is fetched by Hugging Face's client.

    Raises OSError with one sentence when it is neither a folder nor to be had.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise OSError(
            f"there is no model folder {model!r}: name a folder, or owner/name on the Hub"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # the client raises many kinds, one for every way to be offline
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"model {model!r} is neither a folder here nor to be had from the Hub: {reason}"
        ) from error


def show_first_admin_key(registry: Registry) -> None:
    """Make and print an admin key when the registry has none yet.

    One that nobody was shown is revoked, and the start ends: the next one makes another.
    """
    from adapters.accounts import Role

    if registry.accounts.has_key(Role.ADMIN):
        return
    key_id, secret = registry.accounts.create_key(Role.ADMIN)
    try:
        print(f"admin key (shown this once, keep it): {secret}", file=sys.stderr, flush=True)
    except OSError as error:
        registry.accounts.revoke_key(key_id)
        raise typer.Exit(1) from error
