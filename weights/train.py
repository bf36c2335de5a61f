"""Train the default model from a folder of plain text, from nothing to a Hugging Face directory.

    python weights/train.py CORPUS OUT [--steps 2300] [--work WORK]

CORPUS holds ``train_*.txt`` and ``val_*.txt`` (UTF-8, one paragraph a line). A file named ``train_kids.txt`` is
sampled at weight 1, every other training file at 0.3. OUT receives config.json, model.safetensors (float16) and
tokenizer.model, and the figures of the run in training.json. WORK keeps the tokenizer, the encoded text and the
last checkpoint; a run that was cut off goes on from there with the same command.

The network is transformers' own GPTJForCausalLM, so that the weights are an independent witness for refgpt's engines.
Needs the extra ``golden`` (torch, transformers).
"""

import argparse
import json
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from torch.nn import functional
from transformers import GPTJConfig, GPTJForCausalLM

N_VOCAB, N_CTX = 4096, 512
TOKENS_PER_STEP = 4096
OPENING = re.compile(
    r"(Once upon a|Once on a time|There was once|There were once|There once|Once there|Long,? long ago)"
)
SOURCE = re.compile(r"(\(\d+\) |\[?From the |Translated from |Grimm\.$|\[FN)")
ENDING = re.compile(r"(ever after(wards)?|THE END|The End)[.!]?['\")]*$")


# ---- text -----------------------------------------------------------------------------------------------------


def split_tales(text: str) -> list[str]:
    """Cut a collection where a tale seems to end: blank lines, lines naming a source, closing and opening formulas."""
    tales: list[list[str]] = [[]]
    for line in text.split("\n"):
        is_source = len(line) < 60 and SOURCE.match(line)
        if not line or is_source or (OPENING.match(line) and len(tales[-1]) > 4):
            tales.append([])
        if line and not is_source:
            tales[-1].append(line)
            if ENDING.search(line):
                tales.append([])
    return ["\n".join(tale) for tale in tales if tale]


def train_tokenizer(files: list[Path], work: Path) -> sentencepiece.SentencePieceProcessor:
    model = work / "tokenizer.model"
    if not model.exists():
        sentencepiece.SentencePieceTrainer.train(
            input=[str(f) for f in files],
            model_prefix=str(work / "tokenizer"),
            model_type="bpe",
            vocab_size=N_VOCAB,
            character_coverage=1.0,
            normalization_rule_name="identity",
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=-1,  # GPT-J has one token for both ends: end-of-sequence
            eos_id=1,
            pad_id=-1,
            max_sentence_length=100_000,
            minloglevel=2,
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def encode_file(tokenizer, path: Path) -> np.ndarray:
    """The whole file as ids, with end-of-sequence after each tale."""
    ids: list[int] = []
    for tale in split_tales(path.read_text(encoding="utf-8")):
        ids += [*tokenizer.encode(tale), tokenizer.eos_id()]
    return np.array(ids, dtype=np.uint16)


def sample_batch(streams, weights, step: int, n_rows: int, n_cols: int) -> torch.Tensor:
    """Random windows; the step is the seed, so a resumed run sees what an unbroken one would have seen."""
    rng = np.random.default_rng([1234, step])
    rows = []
    for source in rng.choice(len(streams), size=n_rows, p=weights):
        start = rng.integers(len(streams[source]) - n_cols)
        rows.append(streams[source][start : start + n_cols + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# ---- optimiser ------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz, in float32, matrices of one shape together.

    After Keller Jordan's description (2024). For the matrices inside the blocks; everything else takes AdamW.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(tuple(p.shape), []).append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    velocity.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(velocity, group["momentum"]))  # Nesterov
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalise(x: torch.Tensor, n_steps: int = 5) -> torch.Tensor:
    """Push the singular values of each matrix of the stack towards 1 with a quintic iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(n_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def make_optimisers(model) -> list[torch.optim.Optimizer]:
    matrices, tables, vectors = [], [], []
    for name, p in model.named_parameters():
        if p.ndim < 2:
            vectors.append(p)
        elif ".h." in name:
            matrices.append(p)
        else:
            tables.append(p)
    groups = [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return [Muon(matrices, lr=0.02), torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), eps=1e-10)]


def learning_rate(step: int, n_steps: int) -> float:
    """Warm up over 100 steps, stay, and fall linearly to 0 over the last 35 %."""
    return min((step + 1) / 100, 1.0, (n_steps - step) / (0.35 * n_steps))


# ---- training -------------------------------------------------------------------------------------------------


def loss_of(model, ids: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    logits = model(ids[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def bits_per_byte(model, tokenizer, path: Path, most_bytes: int | None = None) -> float:
    """Held-out loss a byte of UTF-8, over windows of n_ctx tokens that do not overlap."""
    text = path.read_text(encoding="utf-8")[:most_bytes]
    ids = torch.tensor([tokenizer.eos_id(), *tokenizer.encode(text)])
    nats = 0.0
    for start in range(0, len(ids) - 1, N_CTX):
        nats += loss_of(model, ids[None, start : start + N_CTX + 1], "sum").item()
    return nats / math.log(2) / len(text.encode())


def save_atomically(state, path: Path) -> None:
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


def train(corpus: Path, out: Path, work: Path, n_steps: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    train_files = sorted(corpus.glob("train_*.txt"))
    val_files = sorted(corpus.glob("val_*.txt"))
    if not train_files or not val_files:
        raise SystemExit(f"{corpus}: needs train_*.txt and val_*.txt")
    tokenizer = train_tokenizer(train_files, work)
    streams = [encode_file(tokenizer, f) for f in train_files]
    sizes = np.array(
        [len(s) * (1.0 if f.stem == "train_kids" else 0.3) for f, s in zip(train_files, streams, strict=True)]
    )
    print({f.name: len(s) for f, s in zip(train_files, streams, strict=True)}, "tokens", flush=True)

    torch.manual_seed(1234)
    config = GPTJConfig(
        vocab_size=N_VOCAB,
        n_positions=N_CTX,
        n_embd=256,
        n_layer=6,
        n_head=4,
        rotary_dim=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_id(),
        eos_token_id=tokenizer.eos_id(),
    )
    model = GPTJForCausalLM(config)
    optimisers = make_optimisers(model)
    base_rates = [[g["lr"] for g in o.param_groups] for o in optimisers]
    first, best, seconds, history = 0, math.inf, 0.0, []
    if (work / "last.pt").exists():
        state = torch.load(work / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, best, seconds, history = state["step"], state["best"], state["seconds"], state["history"]
        print("resumed at step", first, flush=True)

    for step in range(first, n_steps):
        started = time.perf_counter()
        n_cols = 256 if step < 0.85 * n_steps else N_CTX  # the last part sees every position
        batch = sample_batch(streams, sizes / sizes.sum(), step, TOKENS_PER_STEP // n_cols, n_cols)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rates in zip(optimisers, base_rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate(step, n_steps)
            optimiser.step()
            optimiser.zero_grad()
        seconds += time.perf_counter() - started
        if step % 20 == 0:
            print(f"{step} loss {loss.item():.3f} {TOKENS_PER_STEP * (step + 1) / seconds:.0f} tokens/s", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == n_steps:
            held_out = float(np.mean([bits_per_byte(model, tokenizer, f, 60_000) for f in val_files]))
            history.append([step + 1, held_out])
            print(f"{step + 1} held out {held_out:.4f} bits a byte", flush=True)
            if held_out < best:
                best = held_out
                save_atomically(model.state_dict(), work / "best.pt")
            save_atomically(
                {
                    "model": model.state_dict(),
                    "optimisers": [o.state_dict() for o in optimisers],
                    "step": step + 1,
                    "best": best,
                    "seconds": seconds,
                    "history": history,
                },
                work / "last.pt",
            )

    model.load_state_dict(torch.load(work / "best.pt", weights_only=True))
    model = model.half()  # what ships is what is measured: the rounded weights
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    (out / "tokenizer.model").write_bytes((work / "tokenizer.model").read_bytes())
    model = model.float()
    figures = {
        "tokens_seen": n_steps * TOKENS_PER_STEP,
        "train_tokens": {f.name: len(s) for f, s in zip(train_files, streams, strict=True)},
        "seconds_training": round(seconds),
        "bits_per_byte": {f.name: round(bits_per_byte(model, tokenizer, f), 4) for f in val_files},
        "history": history,
    }
    (out / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures["bits_per_byte"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("training-work"))
    parser.add_argument("--steps", type=int, default=2300, help=f"of {TOKENS_PER_STEP} tokens each")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.corpus, args.out, args.work, args.steps)


if __name__ == "__main__":
    main()
