"""Train the default model from a folder of plain text, from nothing to a Hugging Face directory.

    python weights/train.py CORPUS OUT [--steps 7400] [--work WORK]

CORPUS holds ``train_*.txt`` and ``val_*.txt`` (UTF-8, one paragraph a line, a blank line between tales). Its
``train_*_index.tsv`` names the books of a file, one a line, under the columns ``file``, ``start``, ``bytes`` and
``simple``: the share of the book's words that are common ones. Simple books are sampled more often (see
``weight_of_book``). A file without books in the index is one book: ``train_kids.txt`` has weight 1, any other 0.3.

OUT receives config.json, model.safetensors (float16), tokenizer.model, and the figures of the run in training.json.
WORK keeps the tokenizer, the encoded text and the last checkpoint; a run that was cut off goes on from there with the
same command. The bits of the weights do not depend on the processor, the number of threads or where a run was cut off.
A run may also be made longer or shorter before its learning rate begins to fall: up to there, the steps are the same
for every ``--steps``.

Products are computed in bfloat16; weights and optimisers are kept in float32.
"""

import argparse
import csv
import io
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import sentencepiece

import refgpt
from refgpt import load_tokenizer, training
from refgpt.checkpoints import open_checkpoint
from refgpt.conversion import convert

N_VOCAB, N_CTX, N_LAYER = 4096, 512, 6
TOKENS_PER_STEP = 8192
WARMUP = 100
FALLING = 0.45  # the share of the steps in which the learning rate falls
LONG = 0.15  # the share of the steps in which windows have N_CTX tokens
LR = 2e-3  # AdamW's; Muon's is ten times as large
EVAL_EVERY, SAVE_EVERY = 500, 100  # steps
OPENING = re.compile(
    r"(Once upon a|Once on a time|There was once|There were once|There once|Once there|Long,? long ago)"
)
SOURCE = re.compile(r"(\(\d+\) |\[?From the |Translated from |Grimm\.$|\[FN)")
ENDING = re.compile(r"(ever after(wards)?|THE END|The End)[.!]?['\")]*$")
MATRICES = [
    f"transformer.h.{i}.{part}.weight"
    for i in range(N_LAYER)
    for part in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")
]


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
    """A BPE of the whole text, with a token for each byte, so that every text can be encoded."""
    path = work / "tokenizer.model"
    if not path.exists():
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            # Lines and bytes instead of names of files, which would be written into the model.
            sentence_iterator=(line.rstrip("\n") for file in files for line in file.open(encoding="utf-8")),
            model_writer=model,
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
        path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def weight_of_book(simple: float) -> float:
    """How often a byte of a book is sampled: twice as often for each 0.03 of the share of common words."""
    return 2.0 ** ((simple - 0.90) / 0.03)


def find_books(corpus: Path) -> list[tuple[str, int, int, float]]:
    """(file, first byte, bytes, weight) of each book of the training files."""
    books: list[tuple[str, int, int, float]] = []
    for index in sorted(corpus.glob("train_*_index.tsv")):
        with index.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                weight = weight_of_book(float(row["simple"]))
                books.append((row["file"], int(row["start"]), int(row["bytes"]), weight))
    listed = {name for name, *_ in books}
    for path in sorted(corpus.glob("train_*.txt")):
        if path.name not in listed:
            books.append((path.name, 0, path.stat().st_size, 1.0 if path.stem == "train_kids" else 0.3))
    return books


def encode_book(tokenizer, corpus: Path, name: str, start: int, n_bytes: int) -> np.ndarray:
    """The book as ids, with end-of-sequence after each tale."""
    with (corpus / name).open("rb") as file:
        file.seek(start)
        text = file.read(n_bytes).decode("utf-8")
    ids: list[int] = []
    for tale in split_tales(text):
        ids += [*tokenizer.encode(tale), tokenizer.eos_id()]
    return np.array(ids, dtype=np.uint16)


def encode_corpus(tokenizer, corpus: Path, work: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """The ids of each book, and the probability with which a window is taken from it."""
    books = find_books(corpus)
    encoded = work / "books.npz"
    if encoded.exists():
        with np.load(encoded) as arrays:
            ids = [arrays[f"arr_{i}"] for i in range(len(books))]
    else:
        ids = [encode_book(tokenizer, corpus, *book[:3]) for book in books]
        beside = work / "books.tmp.npz"
        np.savez(beside, *ids)
        os.replace(beside, encoded)
    kept = [i for i in range(len(books)) if len(ids[i]) > N_CTX]
    shares = np.array([len(ids[i]) * books[i][3] for i in kept])
    return [ids[i] for i in kept], shares / shares.sum()


def sample_windows(books: list[np.ndarray], shares: np.ndarray, step: int, n_rows: int, n_cols: int) -> np.ndarray:
    """Random windows [n_rows, n_cols]; the step is the seed, so a resumed run sees what an unbroken one would see."""
    rng = np.random.RandomState([1234, step])
    rows = []
    for i in rng.choice(len(books), size=n_rows, p=shares):
        start = rng.randint(len(books[i]) - n_cols + 1)
        rows.append(books[i][start : start + n_cols])
    return np.stack(rows).astype(np.int64)


# ---- training -------------------------------------------------------------------------------------------------


def learning_rate(step: int, n_steps: int) -> float:
    """Warm up, stay, and fall linearly to 0 over the last part of the steps."""
    return LR * min((step + 1) / WARMUP, 1.0, (n_steps - step) / (FALLING * n_steps))


def new_trainer(model: refgpt.Model) -> training.Trainer:
    """Muon for the matrices of the blocks, AdamW for embeddings, head and vectors."""
    tables = ["transformer.wte.weight", "lm_head.weight"]
    adamw = training.AdamW(betas=(0.9, 0.98), eps=1e-10, weight_decay=0.1, decay=[*MATRICES, *tables])
    return training.Trainer(model, adamw, clip=1.0, muon=training.Muon(MATRICES, momentum=0.95, lr_scale=10.0))


def bits_per_byte(model: refgpt.Model, tokenizer, path: Path, most_bytes: int | None = None) -> float:
    """Held-out loss a byte of UTF-8, over windows of n_ctx tokens that do not overlap."""
    text = path.read_text(encoding="utf-8")[:most_bytes]
    ids = [tokenizer.eos_id(), *tokenizer.encode(text)]
    nats = 0.0
    for start in range(0, len(ids) - 1, N_CTX):
        window = ids[start : start + N_CTX + 1]
        scores = model.engine.logits(window[:-1]).astype(np.float64)  # [t, v]
        scores -= scores.max(axis=1, keepdims=True)
        given = scores[np.arange(len(scores)), window[1:]]
        nats += float((np.log(np.exp(scores).sum(axis=1)) - given).sum())
    return nats / math.log(2) / len(text.encode())


def finish(trainer: training.Trainer, tokenizer, val_files: list[Path], out: Path, work: Path) -> dict[str, float]:
    """Write the model in float16, and measure what was written. -> bits a byte of each held-out book"""
    whole = work / "float32"
    shutil.rmtree(whole, ignore_errors=True)
    trainer.write(whole)
    convert(open_checkpoint(whole), load_tokenizer(work / "tokenizer.model"), out, "hf", "f16")
    model = refgpt.load(out)
    return {f.name: round(bits_per_byte(model, tokenizer, f), 4) for f in val_files}


def train(corpus: Path, out: Path, work: Path, n_steps: int, threads: int | None) -> None:
    """The whole run, from the last checkpoint if there is one."""
    work.mkdir(parents=True, exist_ok=True)
    train_files = sorted(corpus.glob("train_*.txt"))
    val_files = sorted(corpus.glob("val_*.txt"))
    if not train_files or not val_files:
        raise SystemExit(f"{corpus}: needs train_*.txt and val_*.txt")
    tokenizer = train_tokenizer(train_files, work)
    books, shares = encode_corpus(tokenizer, corpus, work)
    n_tokens = sum(map(len, books))
    print(f"{len(books)} books, {n_tokens} tokens", flush=True)

    shape = {"n_layer": N_LAYER, "n_head": 4, "d_model": 256, "d_ff": 1024, "d_rotary": 32}
    end = tokenizer.eos_id()
    config = refgpt.ModelConfig(**shape, n_vocab=N_VOCAB, n_ctx=N_CTX, bos_id=end, eos_id=end)
    model = refgpt.new_model(config, seed=1234, tokenizer=work / "tokenizer.model", threads=threads, compute="bf16")
    state, log = work / "state", work / "history.jsonl"
    trainer = training.Trainer.resume(state, model) if state.exists() else new_trainer(model)
    for step in range(trainer.n_steps, n_steps):
        start = time.perf_counter()
        n_cols = 256 if step < (1 - LONG) * n_steps else N_CTX  # the last part sees every position
        ids = sample_windows(books, shares, step, TOKENS_PER_STEP // n_cols, n_cols)
        loss = trainer.step(training.Batch(ids, ids), learning_rate(step, n_steps)).loss
        if step % 10 == 0:
            speed = TOKENS_PER_STEP / (time.perf_counter() - start)
            print(f"{step} loss {loss:.3f} {speed:.0f} tokens/s", flush=True)
        done = step + 1
        if done % EVAL_EVERY == 0 or done == n_steps:
            held_out = float(np.mean([bits_per_byte(model, tokenizer, f, 60_000) for f in val_files]))
            print(f"{done} held out {held_out:.4f} bits a byte", flush=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps([done, round(held_out, 4)]) + "\n")
        if done % SAVE_EVERY == 0 or done == n_steps:
            trainer.save(state)

    figures = {
        "tokens_seen": n_steps * TOKENS_PER_STEP,
        "train_books": len(books),
        "train_tokens": n_tokens,
        "bits_per_byte": finish(trainer, tokenizer, val_files, out, work),
        "history": sorted(dict(map(json.loads, log.read_text(encoding="utf-8").splitlines())).items()),
    }
    (out / "training.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures["bits_per_byte"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("training-work"))
    parser.add_argument("--steps", type=int, default=7_400, help=f"of {TOKENS_PER_STEP} tokens each")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    train(args.corpus, args.out, args.work, args.steps, args.threads)


if __name__ == "__main__":
    main()
