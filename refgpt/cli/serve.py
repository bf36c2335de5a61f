"""``refgpt serve``."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from refgpt._common.errors import ServerError
from refgpt._common.small_files import reading
from refgpt.cli.loading import add_draft_arguments, load_with_draft
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.printing import print_line
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.server import ServerSettings, check_installed, serve
from refgpt.server.settings import LOG_FORMATS

log = logging.getLogger("refgpt")

EXAMPLES = """examples:
  refgpt serve                                        the included model, at http://127.0.0.1:8080/
  refgpt serve -m ~/gpt-j-6b-q4 --port 5000           a model of your own
  refgpt serve -m ~/gpt-jt --dtype q4 --template gpt-jt
  refgpt serve --adapter oz=DIRECTORY --adapter law=DIRECTORY    requests choose one as their model, or none
  refgpt serve --host 0.0.0.0 --allowed-host gpt.example.org --api-key-file keys.txt

The variable REFGPT_API_KEY holds keys too, with commas between them. docs/serve.md has examples for clients.
"""
#: Most bytes of a file of keys.
MOST_KEY_BYTES = 1 << 16
MIB = 1 << 20
DEFAULT = ServerSettings()


def add_to(commands: Commands) -> None:
    """Declare ``serve``."""
    help = "serve a model over HTTP: OpenAI's and KoboldAI's interfaces, and a web page"
    serve = add_command(commands, "serve", _serve, help, EXAMPLES)
    _add_address(serve.add_argument_group("address"))
    _add_access(serve.add_argument_group("access"))
    _add_work(serve.add_argument_group("work"))
    _add_limits(serve.add_argument_group("limits of one request"))
    _add_log(serve.add_argument_group("log"))
    add_draft_arguments(serve)
    add_running_arguments(serve, named_adapters=True)


def _add_address(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--host", default=DEFAULT.host, metavar="ADDRESS", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=DEFAULT.port, metavar="N", help="port; 0 takes a free one (default: %(default)s)")
    add(
        "--served-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of the model in requests; can be repeated (default: made from the model's path)",
    )
    add("--ssl-certfile", metavar="FILE", help="certificate chain in PEM format, to serve HTTPS")
    add("--ssl-keyfile", metavar="FILE", help="private key, if it is not in the certificate's file")
    add("--ssl-keyfile-password", metavar="TEXT", help="the key's password")


def _add_access(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="accept only requests with this key; can be repeated. Other users of this machine can see the "
        "argument, so prefer a file",
    )
    add("--api-key-file", metavar="FILE", help="file of keys, one per line")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also accept requests with this Host header; can be repeated; * accepts any (default: loopback)",
    )
    add(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin, such as https://example.com, send requests; can be repeated "
        "(default: only the server's own page)",
    )


def _add_work(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--template", choices=TEMPLATES, default=DEFAULT.template, help="prompt format of chats (default: base)")
    add(
        "--character",
        default=DEFAULT.character,
        metavar="NAME",
        help="name of the character that answers, with --template pygmalion",
    )
    add(
        "--persona",
        default=DEFAULT.persona,
        metavar="TEXT",
        help="description of the character, with --template pygmalion",
    )
    add(
        "--max-slots",
        type=int,
        default=DEFAULT.max_slots,
        metavar="N",
        help="texts written at once (default: %(default)s)",
    )
    add(
        "--max-queue",
        type=int,
        default=DEFAULT.max_queue,
        metavar="N",
        help="prompts that may wait for a slot (default: %(default)s)",
    )
    add(
        "--cache-mib",
        type=int,
        default=DEFAULT.max_cache_bytes // MIB,
        metavar="N",
        help="memory for the keys and values of running texts, in MiB (default: %(default)s)",
    )
    add(
        "--prefix-cache-mib",
        type=int,
        default=DEFAULT.prefix_cache_bytes // MIB,
        metavar="N",
        help="memory for the keys and values of earlier prompts, in MiB; 0: off (default: %(default)s)",
    )
    add(
        "--speculate",
        type=int,
        default=DEFAULT.speculate,
        metavar="N",
        help="tokens drafted by prompt lookup while only one text is being written; 0: off (default: %(default)s)",
    )
    add(
        "--parse-special",
        action="store_true",
        help='read strings such as "<|endoftext|>" in prompts as special tokens, not as text',
    )
    add("--no-inspect", dest="inspect", action="store_false", help="turn off the page's view of the model's inside")
    add(
        "--step-timeout",
        type=float,
        default=DEFAULT.step_timeout,
        metavar="SECONDS",
        help="seconds that one step of the model may take, before /health says that it hangs and requests end with an "
        "error; for a pass of an inspection or embedding, only these end, and /health answers 200; 0: no limit "
        "(default: %(default)g)",
    )
    add(
        "--grace",
        type=float,
        default=DEFAULT.grace,
        metavar="SECONDS",
        help="seconds that running requests have to finish after SIGTERM (default: %(default)g)",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    for name, kind, about in (
        (
            "max-tokens",
            int,
            "new tokens of a text; larger requests are reduced to this (default: as many as the context holds)",
        ),
        ("max-body-bytes", int, "bytes of the request's body"),
        ("max-prompts", int, "prompts"),
        ("max-prompt-chars", int, "characters of a text that is made into tokens"),
        ("max-texts", int, "texts that continue one prompt (n, best_of)"),
        ("max-stops", int, "stop strings"),
        ("max-stop-chars", int, "characters of a stop string"),
        ("max-logprobs", int, "most likely tokens listed for each token"),
        ("max-biases", int, "entries of logit_bias, sequence_bias and bad_words_ids"),
        ("max-inspect-tokens", int, "tokens of a text that is inspected"),
        ("max-connections", int, "connections of all clients together"),
        ("timeout", float, "seconds after which a text is ended unfinished"),
        ("head-timeout", float, "seconds for the head of a request to arrive"),
        ("body-timeout", float, "seconds for a body to arrive"),
        ("send-timeout", float, "seconds for a client to receive a piece of its answer"),
    ):
        default = getattr(DEFAULT, name.replace("-", "_"))
        shown = "" if default is None else f" (default: {default:g})" if kind is float else f" (default: {default})"
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=about + shown)


def _add_log(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--log-format",
        choices=LOG_FORMATS,
        default=DEFAULT.log_format,
        help="format of the log's line for each request",
    )
    add("--log-prompts", action="store_true", help="include prompts and texts in the log")


def _serve(arguments: argparse.Namespace) -> int:
    check_installed()
    settings = ServerSettings(
        served_names=tuple(arguments.served_name),
        api_keys=tuple(_keys(arguments)),
        allowed_hosts=tuple(arguments.allowed_host),
        allowed_origins=tuple(arguments.allowed_origin),
        max_cache_bytes=arguments.cache_mib * MIB,
        prefix_cache_bytes=arguments.prefix_cache_mib * MIB,
        **{
            name: getattr(arguments, name)
            for name in (
                *("host", "port", "template", "character", "persona", "max_slots", "max_queue", "speculate"),
                *("parse_special", "inspect", "step_timeout", "grace", "max_tokens", "max_body_bytes", "max_prompts"),
                *("max_prompt_chars", "max_texts", "max_stops", "max_stop_chars", "max_logprobs", "max_biases"),
                *("max_inspect_tokens", "max_connections", "timeout", "head_timeout", "body_timeout", "send_timeout"),
                *("log_format", "log_prompts", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password"),
            )
        },
    )
    model, draft, _ = load_with_draft(arguments, lambda config, tokenizer: None)
    serve(model, settings, lambda url: print_line(f"serving at {url}"), draft)
    return 0


def _keys(arguments: argparse.Namespace) -> list[str]:
    """The keys given by options, by a file and by the environment."""
    keys = [*arguments.api_key, *filter(None, map(str.strip, os.environ.get("REFGPT_API_KEY", "").split(",")))]
    if arguments.api_key_file is not None:
        path = Path(arguments.api_key_file)
        with reading(path, ServerError), path.open("rb") as file:
            raw = file.read(MOST_KEY_BYTES + 1)
        try:
            lines = raw.decode().splitlines()
        except UnicodeDecodeError:
            lines = []
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found or len(raw) > MOST_KEY_BYTES:
            raise ServerError("holds no keys", where=path, wanted="a text with one key a line")
        keys += found
    return keys
