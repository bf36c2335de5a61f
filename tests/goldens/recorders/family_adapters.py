"""Record adapters of GPT-J's kin that PEFT writes, and logits of PEFT's models with them and with refgpt's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

import refgpt
from refgpt import training
from tests.goldens import ADAPTERS
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

IDS = [3, 9, 41, 0, 7, 7, 12]
#: By variant: PEFT's targets, and the ones that refgpt writes.
CASES = {
    "gpt2": (["c_attn", "c_fc"], "q,o,fc_out"),
    "gpt_neo, local first": (["v_proj"], "all"),
    "gpt_neox": (["query_key_value"], "q,v,fc_in"),
}


def main() -> None:
    torch.set_num_threads(1)
    place, found = ADAPTERS / "families", {}
    place.mkdir(exist_ok=True)
    for variant, (targets, own) in CASES.items():
        name, config = variant.partition(",")[0], VARIANTS[variant]
        with tempfile.TemporaryDirectory() as scratch:
            base = Path(scratch) / "model"
            model = refgpt.new_model(config, backend="numpy")
            model.engine.adopt(random_params(config, 3))
            training.Trainer(model).write(base)
            torch.manual_seed(0)
            settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=5, target_modules=targets)
            adapted = peft.get_peft_model(hugging_face(base), settings)
            for key, w in adapted.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.uniform_(w, -0.3, 0.3)
            found[name] = logits(adapted)
            adapted.save_pretrained(place / name)
            (place / name / "README.md").unlink(missing_ok=True)
            told = json.loads((place / name / "adapter_config.json").read_text())
            told["base_model_name_or_path"] = None  # a temporary directory
            (place / name / "adapter_config.json").write_text(json.dumps(told, indent=2) + "\n")
            model = training.new_adapter(refgpt.load(base, backend="numpy"), rank=2, alpha=5, targets=own, seed=4)
            trainer = training.Trainer(model)
            for _ in range(4):
                trainer.step([training.Batch([IDS], [IDS])], 5e-2)
            trainer.write(place / f"{name}_refgpt")
            read = peft.PeftModel.from_pretrained(hugging_face(base), place / f"{name}_refgpt")
            found[f"{name}_refgpt"] = logits(read)
            print(name, np.abs(found[f"{name}_refgpt"] - model.logits(IDS)).max())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    np.savez_compressed(place / "logits.npz", about=json.dumps(versions), **found)
    print(versions)


def hugging_face(base: Path) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
    return model.eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS])).logits[0].numpy()
