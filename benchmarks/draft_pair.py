"""Train a small draft model for the included model; measure how often the two agree, and what drafting gains.

    python -m benchmarks.draft_pair TEXT... -o DIRECTORY [--steps 3000]

This trains a GPT-J with two layers and the included model's tokenizer on the texts, from random weights, and writes it
to DIRECTORY as a checkpoint for ``--draft``. An interrupted training resumes from the last save. Then the included
model generates texts with and without the draft model, in turn. The texts are the same; the report has the share of
drafted tokens that was accepted, the tokens for each pass of the included model, and the ratio of the times.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

import refgpt
from benchmarks.quick import sized
from refgpt import Scheduler, training
from refgpt.training import Batch, Trainer, schedule

SHAPE = {"n_layer": 2, "d_model": 128, "d_ff": 512, "n_head": 4, "d_rotary": 16}
ROWS, LENGTH = sized((8, 128), (1, 16))  # of one step
SAVE_EVERY = 250  # steps
N_NEW = sized(120, 8)
#: The prompts: beginnings of tales that no text was trained on as such.
PROMPTS = (
    "Once upon a time there was a poor woodcutter who",
    "The old queen looked out of the window and",
    '"Where are you going?" asked the fox.',
    "In the middle of the forest stood a little house, and",
)[: sized(4, 1)]


def small_model(threads: int | None) -> refgpt.Model:
    """Two layers of random weights, with the included model's vocabulary and context."""
    included = refgpt.load(threads=threads)
    config = replace(included.config, **SHAPE)
    return refgpt.new_model(config, tokenizer=included.tokenizer, threads=threads)


def train(ids: np.ndarray, n_steps: int, directory: Path, peak: float, threads: int | None) -> Path:
    """Train the small model, from the last save if there is one, and write it. Returns its path."""
    done = directory / "model"
    if done.exists():
        return done
    directory.mkdir(parents=True, exist_ok=True)
    model, saved = small_model(threads), directory / "training"
    if saved.exists():
        trainer = Trainer.resume(saved, model)
    else:
        trainer = Trainer(model, training.AdamW(betas=(0.9, 0.95), weight_decay=0.1), clip=1.0)
    rates = schedule("cosine", peak, max(1, n_steps // 20), n_steps, 0.1)
    with tqdm(total=n_steps, initial=trainer.n_steps, unit="step", disable=None) as bar:
        while trainer.n_steps < n_steps:
            step = trainer.n_steps
            starts = np.random.RandomState([0, step]).randint(0, len(ids) - LENGTH, ROWS)
            rows = np.stack([ids[start : start + LENGTH] for start in starts])
            result = trainer.step([Batch(rows, rows)], rates[step])
            bar.set_postfix(loss=f"{result.loss:.3f}", refresh=False)
            bar.update()
            if trainer.n_steps % SAVE_EVERY == 0 or trainer.n_steps == n_steps:
                trainer.save(saved)
    trainer.write(done)
    return done


def written(
    model: refgpt.Model, draft: refgpt.Model | None, prompt: str, temperature: float
) -> tuple[str, float, Scheduler]:
    """A text, the seconds that it took, and the scheduler that generated it."""
    scheduler = Scheduler(model, 1, draft=draft)
    scheduler.add(prompt, max_new_tokens=N_NEW, temperature=temperature, seed=1, ignore_eos=True)
    text, start = "", time.perf_counter()
    while scheduler.busy:
        text += "".join(event.text for event in scheduler.step())
    return text, time.perf_counter() - start, scheduler


def report(draft: refgpt.Model, threads: int | None) -> str:
    """Greedy and sampled texts with and without the draft model, as a table."""
    model = refgpt.load(threads=threads)
    lines = [
        "| texts | drafted tokens accepted | tokens per pass | time without over time with |",
        "|---|---:|---:|---:|",
    ]
    for name, temperature in (("greedy", 0.0), ("temperature 0.8", 0.8)):
        shares, per_pass, gains = [], [], []
        for prompt in PROMPTS:
            for _ in range(sized(3, 1)):
                want, plain, _ = written(model, None, prompt, temperature)
                text, drafted, scheduler = written(model, draft, prompt, temperature)
                assert text == want
                gains.append(plain / drafted)
            shares.append(scheduler.n_accepted / max(1, scheduler.n_drafted))
            per_pass.append(N_NEW / (N_NEW - scheduler.n_accepted))
        lines.append(f"| {name} | {median(shares):.0%} | {median(per_pass):.2f} | {median(gains):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a draft model for the included model, and measure it.")
    add = parser.add_argument
    add("texts", type=Path, nargs="+")
    add("-o", "--output", type=Path, required=True, help="directory of the training and of the model")
    add("--steps", type=int, default=sized(3000, 2))
    add("--rate", type=float, default=2e-3, help="the learning rate's peak")
    add("--threads", type=int)
    arguments = parser.parse_args()

    tokenizer = refgpt.load().tokenizer
    ids = np.concatenate([tokenizer.encode(path.read_text(encoding="utf-8")) for path in arguments.texts])
    path = train(ids, arguments.steps, arguments.output, arguments.rate, arguments.threads)
    draft = refgpt.load(path, tokenizer=tokenizer, threads=arguments.threads)
    print(report(draft, arguments.threads))


if __name__ == "__main__":
    main()
