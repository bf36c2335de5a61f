"""Everything that can be set about a server, with the limits that keep one client from harming the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refgpt._common.arguments import collected, flag, keep_whole, number, one_of
from refgpt._common.errors import ServerError
from refgpt._common.wording import shown
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.generation.scheduler import MOST_CACHE, MOST_TOGETHER

LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How to serve a model. Building one validates it.

    Attributes
    ----------
    host, port : str, int
        The address to listen on. Port 0 takes a free one.
    served_names : tuple of str
        Names of the model in requests; () derives one from the model's path.
    template : str
        The prompt format of chat completions, a name of ``refgpt.generation.chat_templates.TEMPLATES``.
    character, persona : str
        Who answers, for the template "pygmalion".
    max_slots : int
        Texts that are written at once.
    max_cache_bytes : int
        Memory for the keys and values of all running texts.
    prefix_cache_bytes : int
        Memory for the keys and values of earlier prompts; 0 keeps none.
    speculate : int
        Tokens that are drafted by prompt lookup while only one text is being written; see ``GenerationParams``.
    parse_special : bool
        Whether strings such as ``"<|endoftext|>"`` in a prompt are special tokens where the request does not say.
    inspect : bool
        Whether ``/inspect`` looks inside the model.
    max_queue : int
        Prompts that may wait for a slot. A request beyond them is answered with 429.
    max_connections : int
        Connections at once. A request beyond them is answered with 503.
    max_body_bytes, max_prompts, max_texts, max_stops, max_stop_chars, max_logprobs, max_biases : int
        Limits of one request: bytes of its body, its prompts, continuations of each, stop strings and their length,
        likely tokens that are listed beside each token, and entries of ``logit_bias`` and fields like it.
    max_prompt_chars : int
        Characters of a text that is made into tokens.
    max_tokens : int or None
        New tokens of each text, whatever a request asks for. None: as many as the context holds.
    max_inspect_tokens : int
        Length of a text that ``/inspect`` takes.
    timeout : float
        Seconds after which an unfinished text is ended, with the finish reason "length".
    head_timeout, body_timeout, send_timeout : float
        Seconds for a client to send the head and the body of a request, and to receive each piece of the answer.
    step_timeout : float
        Seconds that one step of the model may take. After them all requests end with an error, and new ones are refused
        until the step has returned. 0 sets no limit. The same holds for each pass of inspections and embeddings, which
        run beside the texts.
    grace : float
        Seconds that running requests have to finish when the server is asked to end.
    api_keys : tuple of str
        API keys. Every request needs one of them; () means that none is needed.
    allowed_hosts, allowed_origins : tuple of str
        Names in the Host header beside the loopback's, and web pages ("https://example.com") that may call the server
        from a browser. "*" allows all.
    log_format : "text" or "json"
    log_prompts : bool
        Whether prompts and texts are part of the log.
    ssl_certfile, ssl_keyfile, ssl_keyfile_password : str or None
        For TLS.

    Raises
    ------
    ServerError
        Naming the first setting that cannot be used.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    served_names: tuple[str, ...] = ()
    template: str = "base"
    character: str = "Assistant"
    persona: str = ""
    max_slots: int = MOST_TOGETHER
    max_cache_bytes: int = MOST_CACHE
    prefix_cache_bytes: int = 512 << 20
    speculate: int = 7
    parse_special: bool = False
    inspect: bool = True
    max_queue: int = 512
    max_connections: int = 1024
    max_body_bytes: int = 4 << 20
    max_prompts: int = 128
    max_prompt_chars: int = 1 << 19
    max_texts: int = 32
    max_stops: int = 32
    max_stop_chars: int = 512
    max_logprobs: int = 50
    max_biases: int = 1024
    max_tokens: int | None = None
    max_inspect_tokens: int = 256
    timeout: float = 600.0
    head_timeout: float = 20.0
    body_timeout: float = 30.0
    send_timeout: float = 60.0
    step_timeout: float = 300.0
    grace: float = 30.0
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    log_format: str = "text"
    log_prompts: bool = False
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = None

    def __post_init__(self) -> None:
        keep_whole(self, "port", 0, 65535, ServerError)
        for name in ("max_slots", "max_cache_bytes", "max_connections", "max_body_bytes", "max_texts"):
            keep_whole(self, name, 1, None, ServerError)
        for name in (
            "prefix_cache_bytes",
            "speculate",
            "max_queue",
            "max_stops",
            "max_stop_chars",
            "max_logprobs",
            "max_biases",
        ):
            keep_whole(self, name, 0, None, ServerError)
        for name in ("max_prompts", "max_prompt_chars", "max_inspect_tokens"):
            keep_whole(self, name, 1, None, ServerError)
        keep_whole(self, "max_tokens", 1, None, ServerError, optional=True)
        for name in ("parse_special", "inspect", "log_prompts"):
            flag(name, getattr(self, name), ServerError)
        for name in ("timeout", "head_timeout", "body_timeout", "send_timeout", "step_timeout", "grace"):
            number(name, getattr(self, name), 0, 1e9, ServerError)
        for name in ("served_names", "api_keys", "allowed_hosts", "allowed_origins"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        for name in ("host", "character", "persona"):
            if not isinstance(getattr(self, name), str):
                raise ServerError("cannot be used", where=name, got=shown(getattr(self, name)), wanted="a text")
        one_of("template", self.template, tuple(TEMPLATES), ServerError)
        one_of("log_format", self.log_format, LOG_FORMATS, ServerError)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = collected(name, value, "a list of texts", ServerError)
    for text in texts:
        if not isinstance(text, str) or not text or not text.isprintable():
            got = "one that is not" if name == "api_keys" else shown(text)
            raise ServerError("cannot be used", where=name, got=got, wanted="printable texts, none of them empty")
    return tuple(texts)
