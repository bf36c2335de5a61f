"""Record an adapter that PEFT writes, and logits of PEFT's models with that and with one that refgpt writes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

import refgpt
from refgpt import training
from tests.goldens import ADAPTERS
from tests.helpers.training_models import batch_of, model_in

IDS = [3, 9, 41, 0, 7, 7, 12]
#: By name: PEFT's settings.
CASES = {
    "query_value": {"r": 4, "lora_alpha": 10, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 2,
        "lora_alpha": 3,
        "use_rslora": True,
        "target_modules": r".*\.(q_proj|fc_in|fc_out)",
        "rank_pattern": {"fc_in": 5},
        "alpha_pattern": {"^transformer.h.0.attn.q_proj": 7},
        "layers_to_transform": None,
    },
    "one_layer": {"r": 3, "lora_alpha": 3, "target_modules": ["out_proj", "k_proj"], "layers_to_transform": [1]},
}


def main() -> None:
    torch.set_num_threads(1)
    ADAPTERS.mkdir(exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    with tempfile.TemporaryDirectory() as scratch:
        found = {}
        base = Path(scratch)
        model = model_in(base, backend="numpy")
        for name, settings in CASES.items():
            torch.manual_seed(0)
            adapted = peft.get_peft_model(hugging_face(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
            for key, w in adapted.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.uniform_(w, -0.3, 0.3)
            found[name] = logits(adapted)
            adapted.save_pretrained(ADAPTERS / name)
            (ADAPTERS / name / "README.md").unlink(missing_ok=True)
            if name == "query_value":
                torch.save(peft.get_peft_model_state_dict(adapted), ADAPTERS / f"{name}.bin")
            told = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
            told["base_model_name_or_path"] = None  # a temporary directory
            (ADAPTERS / name / "adapter_config.json").write_text(json.dumps(told, indent=2) + "\n")
        training.new_adapter(model, rank=3, alpha=5, targets="all", seed=4)
        trainer = training.Trainer(model)
        for _ in range(3):
            trainer.step([batch_of(2)], 3e-2)
        trainer.write(ADAPTERS / "refgpt")
        found["refgpt"] = logits(peft.PeftModel.from_pretrained(hugging_face(base), ADAPTERS / "refgpt"))
        n_read = sum(1 for _ in load_file(ADAPTERS / "refgpt" / "adapter_model.safetensors"))
        print(f"refgpt's adapter has {n_read} tensors; logits differ by", end=" ")
        print(np.abs(found["refgpt"] - refgpt.load(base / "model", adapter=ADAPTERS / "refgpt").logits(IDS)).max())
    np.savez_compressed(ADAPTERS / "logits.npz", about=json.dumps(versions), **found)
    print(versions)


def hugging_face(base: Path) -> transformers.GPTJForCausalLM:
    model = transformers.GPTJForCausalLM.from_pretrained(
        base / "model", attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0].numpy()
