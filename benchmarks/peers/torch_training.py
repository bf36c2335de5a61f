"""The cases of ``benchmarks.training`` in PyTorch: a GPT-J of its own parts. Run by a Python that has torch.

python torch_training.py JSON      what to train, as benchmarks/training.py tells it
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional


class Lora(nn.Module):
    """A frozen matrix with an adapter beside it, in float32."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(n_in, n_out, bias=False)
        self.a = nn.Parameter(torch.randn(rank, n_in) / math.sqrt(n_in))
        self.b = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.linear(functional.linear(x.float(), self.a), self.b)
        return self.base(x) + (2 * low).to(x.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs of the first dimensions turned. x [b, h, t, d]."""
    n = cos.shape[-1] * 2
    even, odd = x[..., :n:2], x[..., 1:n:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., n:]), dim=-1)


class Block(nn.Module):
    def __init__(self, shape: dict[str, int], rank: int | None) -> None:
        super().__init__()
        c, f = shape["d_model"], shape["d_ff"]
        self.n_head, self.ln = shape["n_head"], nn.LayerNorm(c)
        self.q, self.v = (Lora(c, c, rank) if rank else nn.Linear(c, c, bias=False) for _ in range(2))
        self.k, self.o = (nn.Linear(c, c, bias=False) for _ in range(2))
        self.fc_in, self.fc_out = nn.Linear(c, f), nn.Linear(f, c)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        y = self.ln(x)
        q, k, v = (part(y).view(b, t, self.n_head, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        return x + self.o(z) + self.fc_out(functional.gelu(self.fc_in(y), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, shape: dict[str, int], rank: int | None) -> None:
        super().__init__()
        c, v = shape["d_model"], shape["n_vocab"]
        self.wte, self.ln, self.head = nn.Embedding(v, c), nn.LayerNorm(c), nn.Linear(c, v)
        self.blocks = nn.ModuleList(Block(shape, rank) for _ in range(shape["n_layer"]))
        rates = 10000.0 ** (-torch.arange(0, shape["d_rotary"], 2) / shape["d_rotary"])
        angles = torch.arange(shape["n_ctx"])[:, None] * rates
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, t = self.wte(ids), ids.shape[1]
        cos, sin = self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.ln(x))


def main() -> None:
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told["threads"])
    torch.manual_seed(0)
    model = Model(told["shape"], told["rank"])
    if told["dtype"] == "bfloat16":
        model = model.bfloat16()
    if told["rank"]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith((".a", ".b")))
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(0, told["shape"]["n_vocab"], (told["texts"], told["tokens"]))
    how = torch.autocast("cpu", torch.bfloat16) if told["dtype"] == "autocast" else nullcontext()
    seconds, processor = [], []
    for _ in range(told["steps"] + 1):
        start, start_processor = time.perf_counter(), time.process_time()
        with how:
            logits = model(ids)
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    found = {"seconds": median(seconds[1:]), "processor": median(processor[1:]), "peak": peak, "loss": loss.item()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
