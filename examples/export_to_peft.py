"""Fit adapters, export them, and load them with PEFT alone: one base model, an adapter for each speaker.

The corpus and the base model are the embedded ones, so nothing is downloaded.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import bora_sweep
from bora_sweep.config import SyntheticConfig
from bora_sweep.model.embedded import base_model_folder

results = bora_sweep.fit(
    "prior.tau=150",
    model={"max_tokens": 64},
    lora={"rank": 4, "target_modules": "all-linear"},
    train={"learning_rate": 5e-3, "max_epochs": 5},
)
run = Path(results.trials["run"].item())
bora_sweep.export(run, run / "adapters")

# From here on only PEFT and Transformers are needed, and the name or folder of the base model.
folder = base_model_folder(SyntheticConfig())
base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(base, str(run / "adapters" / "_global"), adapter_name="_global")
for task, name in json.loads((run / "adapters" / "tasks.json").read_text()).items():
    model.load_adapter(str(run / "adapters" / name), adapter_name=task)

prompt = tokenizer("the brave", return_tensors="pt")
for name in ("_global", "Ada", "Bruno"):
    model.set_adapter(name)
    torch.manual_seed(0)
    tokens = model.generate(**prompt, do_sample=True, max_new_tokens=20)
    print(f"{name}: {tokenizer.decode(tokens[0], skip_special_tokens=True)}")
