"""The command ``refgpt``: a shell over the library, no maths."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path

from refgpt import __version__
from refgpt.checkpoints import MASKS, TensorInfo
from refgpt.errors import GenerationError, RefgptError
from refgpt.generation import GenerationParams, encode_prompt
from refgpt.model import DTYPES, Model, load, open_model
from refgpt.params import KV_DTYPES, Progress

#: Loading fewer bytes than this takes about a second: not worth a progress bar.
WORTH_A_BAR = 500_000_000

DIRECTORY_HELP = "directory of a model (default: the small one included)"
GENERATE_EXAMPLES = """examples:
  refgpt generate "Once upon a time"
  refgpt generate "Once upon a time" --temperature 0 -n 50        always the most likely token
  refgpt generate "The recipe:" --top-k 40 --seed 7 --stop "\\n"   the same text every time, one line of it
  refgpt generate -m ~/gpt-j-6b -f story.txt --truncate left      a model and a prompt of your own
  echo "Dear diary," | refgpt generate > diary.txt
"""
INFO_EXAMPLES = """example:
  refgpt info ~/gpt-j-6b
"""
VERIFY_EXAMPLES = """example:
  refgpt verify ~/gpt-j-6b --prompt "The quick brown fox"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; by default the process's own.

    Returns
    -------
    int
        0; 1 when ``verify`` found a broken bound; 2 for unusable input or output; 130 after Ctrl-C.
    """
    if sys.stderr is None:  # closed: there is nobody to complain to
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open, as it would have
    arguments = _parser().parse_args(argv)
    if sys.stdout is None:
        return _refused("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the character still shows the rest
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("refgpt: %(message)s"))
    logger = logging.getLogger("refgpt")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except RefgptError as error:
        return _refused(error)
    except KeyboardInterrupt:
        try:
            print(flush=True)
        except OSError:  # in a pipeline, Ctrl-C reaches the reader too
            _forget_output()
        return 130
    except BrokenPipeError:  # the reader has seen enough
        _forget_output()
        return 0
    except OSError as error:
        _forget_output()
        return _refused(f"the output cannot be written ({error.strerror})")
    finally:
        logger.removeHandler(handler)


def _refused(why: object) -> int:
    print(f"refgpt: error: {why}", file=sys.stderr)
    return 2


def _forget_output() -> None:
    """Let what could not be written go nowhere, or the interpreter would complain of it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="refgpt", description="Run and inspect GPT-J models on the CPU.")
    parser.add_argument("--version", action="version", version=f"refgpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help: str, examples: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=examples,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        added.set_defaults(run=run)
        return added

    generate = command("generate", _generate, "continue a text", GENERATE_EXAMPLES)
    generate.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to continue; - reads standard input")
    generate.add_argument("-f", "--file", metavar="FILE", help="read the prompt from a file")
    generate.add_argument("-m", "--model", metavar="MODEL", help=DIRECTORY_HELP)
    generate.add_argument("--echo", action="store_true", help="print the prompt before its continuation")
    _add_generation_arguments(generate.add_argument_group("what to write"))
    running = generate.add_argument_group("how to run")
    running.add_argument(
        "--backend", choices=DTYPES, default="c", help="C kernels, or the slow, readable NumPy, which can do f64"
    )
    _add_loading_arguments(running, DTYPES["numpy"])

    info = command("info", _info, "say what a model's files are and how much memory it takes", INFO_EXAMPLES)
    info.add_argument("model", nargs="?", metavar="MODEL", help=DIRECTORY_HELP)
    info.add_argument("--tensors", action="store_true", help="list every tensor")

    verify = command("verify", _verify, "hold the C kernels to the NumPy spec on a model's own weights; exit status 1 "
                     "if an activation is further off than float32 rounding can explain", VERIFY_EXAMPLES)  # fmt: skip
    verify.add_argument("model", nargs="?", metavar="MODEL", help=DIRECTORY_HELP)
    verify.add_argument("--prompt", metavar="TEXT", help="text to run (default: a few words)")
    _add_loading_arguments(verify, DTYPES["c"])

    command("kernels", _kernels, "list the C kernels: which are used, and why not the others")
    return parser


def _add_generation_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-n", "--max-new-tokens", type=int, default=128, metavar="N", help="write at most N tokens (default: 128)")
    add("--temperature", "--temp", type=float, default=0.8, metavar="T",
        help="0: always the most likely token; 1: as the model says; more: wilder (default: 0.8)")  # fmt: skip
    add("--top-k", type=int, metavar="K", help="choose among the K most likely tokens only (default: among all)")
    add("--top-p", type=float, default=0.95, metavar="P",
        help="choose among the most likely tokens that have probability P together (default: 0.95)")  # fmt: skip
    add("--repetition-penalty", "--repeat-penalty", type=float, default=1.0, metavar="X",
        help="above 1: avoid tokens that the text already has, the prompt included (default: 1)")  # fmt: skip
    add("--presence-penalty", type=float, default=0.0, metavar="X",
        help="above 0: avoid tokens already written, however often (default: 0)")  # fmt: skip
    add("--frequency-penalty", type=float, default=0.0, metavar="X",
        help="above 0: avoid tokens already written, the more the oftener (default: 0)")  # fmt: skip
    add("--seed", type=int, metavar="N", help="the same number gives the same text again (default: a new one)")
    add("--stop", action="append", metavar="TEXT", help=r"end before this text; can be repeated; \n is a new line")
    add("--ignore-eos", action="store_true", help="go on after the model has ended its text")
    add("--truncate", choices=["left"], help="drop the beginning of a prompt that is too long, instead of an error")


def _add_loading_arguments(group: argparse._ActionsContainer, dtypes: Sequence[str | None]) -> None:
    add = group.add_argument
    add("--mask", choices=MASKS, default="auto",
        help="prefix: a prompt's tokens all see each other, as in GPT-JT (default: what the files say)")  # fmt: skip
    add("--dtype", choices=[dtype for dtype in dtypes if dtype],
        help="what to keep the weights in (default: as stored)")  # fmt: skip
    add("--kv-dtype", choices=KV_DTYPES, help="what to keep the attention cache in (default: f32)")
    add("-t", "--threads", type=int, metavar="N", help="threads to use (default: one a core)")


def _generate(arguments: argparse.Namespace) -> int:
    prompt = _read_prompt(arguments)
    params = GenerationParams(  # before the weights: a typing error should not cost a minute
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        seed=arguments.seed,
        stop=[stop.replace("\\n", "\n") for stop in arguments.stop or ()],
        ignore_eos=arguments.ignore_eos,
        truncate=arguments.truncate,
    )
    checkpoint, tokenizer = open_model(arguments.model, arguments.mask)
    ids = encode_prompt(prompt, checkpoint.config, tokenizer, params)  # nor should a prompt that is too long
    pieces = _load(arguments, arguments.backend).stream(ids, params)
    if arguments.echo:
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt argument, or that of a file or of standard input less the newline that ends it."""
    if arguments.file is not None:
        if arguments.prompt is not None:
            raise GenerationError("given twice, as an argument and as a file", where="prompt", fix="leave one out")
        where, read = arguments.file, Path(arguments.file).read_bytes
    elif arguments.prompt not in (None, "-"):
        return str(arguments.prompt)
    elif sys.stdin is None or (arguments.prompt is None and sys.stdin.isatty()):
        raise GenerationError("there is no prompt", fix='try: refgpt generate "Once upon a time"')
    else:
        where, read = "standard input", sys.stdin.buffer.read
    try:
        return read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise GenerationError("is not UTF-8 text", where=where, got=f"byte {error.start}") from None
    except OSError as error:
        raise GenerationError(f"cannot be read ({error.strerror})", where=where) from None


def _load(arguments: argparse.Namespace, backend: str) -> Model:
    with _progress_bar() as progress:
        return load(arguments.model, backend=backend, dtype=arguments.dtype, mask=arguments.mask,
                    threads=arguments.threads, kv_dtype=arguments.kv_dtype, progress=progress)  # fmt: skip


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar on standard error while much is loaded; nothing when nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm] = []

        def progress(n_done: int, n_total: int) -> None:
            if not bars and n_total >= WORTH_A_BAR:
                bars.append(
                    stack.enter_context(tqdm(desc="loading", unit="B", unit_scale=True, leave=False, total=n_total))
                )
            for bar in bars:
                bar.update(n_done - bar.n)

        yield progress


def _info(arguments: argparse.Namespace) -> int:
    checkpoint, tokenizer = open_model(arguments.model)
    config = checkpoint.config
    files = {tensor.file for tensor in checkpoint.tensors}
    n_items = [leaf.size for _, leaf in checkpoint.params.items()]
    stored = sum(leaf.nbytes for _, leaf in checkpoint.params.items())
    n_cached = 2 * config.n_layer * config.n_ctx * config.d_model  # keys and values
    dtypes = Counter(tensor.dtype for tensor in checkpoint.tensors)
    facts = {
        "model": checkpoint.path,
        "family": checkpoint.family,
        "shape": config,
        "parameters": f"{sum(n_items):,}",
        "files": ", ".join(f"{file.name} ({_size(file.stat().st_size)})" for file in sorted(files)),
        "tensors": f"{len(checkpoint.tensors)}: " + ", ".join(f"{n} {dtype}" for dtype, n in dtypes.most_common()),
        "mask": f"{checkpoint.mask} ({checkpoint.mask_source})",
        "tokenizer": f"{tokenizer.n_vocab} ids" if tokenizer else "none: the model takes and gives ids",
        "memory": f"weights {_size(stored)} as stored, {_sizes(sum(n_items))}",
        "": f"attention cache of a full context ({config.n_ctx} tokens) {_sizes(n_cached)}",
    }
    for name, fact in facts.items():
        print(f"{name:<12}{fact}")
    print()
    for line in _tensor_lines(checkpoint.tensors, each=arguments.tensors):
        print(line)
    return 0


def _tensor_lines(tensors: Sequence[TensorInfo], each: bool) -> Iterator[str]:
    """One line a tensor, or one for those that differ by the number of their layer alone."""

    def kind(tensor: TensorInfo) -> tuple[str, str, tuple[int, ...]]:
        name = tensor.name if each else re.sub(r"\bh\.\d+\.", "h.*.", tensor.name)
        return name, tensor.dtype, tensor.shape

    for (name, dtype, shape), same in groupby(sorted(tensors, key=kind), kind):
        sizes = [tensor.n_bytes for tensor in same]
        count = f"{len(sizes)} x " if len(sizes) > 1 else ""
        yield f"{name:<40} {dtype:<5} {count}{list(shape)}  {_size(sum(sizes))}"


def _verify(arguments: argparse.Namespace) -> int:
    model = _load(arguments, "c")
    if model.tokenizer is None:
        if arguments.prompt is not None:
            raise GenerationError("is text, and this model has no tokenizer", where="--prompt", fix="leave it out")
        ids = [i * 7919 % model.config.n_vocab for i in range(min(16, model.config.n_ctx))]
    else:
        ids = model.tokenizer.encode(arguments.prompt or "Once upon a time there was a")
    prefix_len = len(ids) // 2 if model.mask == "prefix" else 0
    print(f"{len(ids)} tokens, mask {model.mask}, weights {model.dtype or 'as stored'}, cache {model.kv_dtype}")
    report = model.verify(ids, prefix_len)
    for line in report.lines():
        print(line)
    return 1 if report.first_broken else 0


def _kernels(arguments: argparse.Namespace) -> int:
    from refgpt.kernels import list_kernels

    print(f"{'op':<16} {'active':<8} not used here")
    for op, kernels in groupby(sorted(list_kernels(), key=lambda kernel: kernel.op), lambda kernel: kernel.op):
        rows = list(kernels)
        used = ", ".join(kernel.isa for kernel in rows if kernel.active)
        others = "; ".join(f"{kernel.isa}: {kernel.why_not}" for kernel in rows if not kernel.active)
        print(f"{op:<16} {used:<8} {others}")
    return 0


def _sizes(n_items: int) -> str:
    return f"{_size(4 * n_items)} in f32, {_size(2 * n_items)} in f16"


def _size(n_bytes: float) -> str:
    """Bytes in decimal units, three digits."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    return f"{n_bytes:.3g} {units[0]}"
