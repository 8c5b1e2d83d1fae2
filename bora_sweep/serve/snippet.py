"""The code in a model card: how to load an export and generate with it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bora_sweep.serve.model_card import ExportedFolder, TextFormat

QUANTIZATION_CODE = {
    "nf4": (
        "BitsAndBytesConfig",
        'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        "bnb_4bit_compute_dtype=torch.{dtype}",
    ),
    "int8": ("BitsAndBytesConfig", "load_in_8bit=True, llm_int8_threshold=0.0"),
    "fp8": ("TorchAoConfig", "Float8WeightOnlyConfig()"),
}
"""The class and its arguments that quantise as `bora_sweep.model.quantization` does."""


def snippet(exported: "ExportedFolder") -> str:
    """Python that loads the exported folder as it was scored, and generates; of MoRA only its matrices."""
    if not exported.has_code:
        return (
            "from safetensors.torch import load_file\n\n"
            f'M_of = load_file({exported.folder!a} + "/mora.safetensors")  # by module; PEFT has no MoRA, '
            "docs/adapters.md of bora_sweep says how M acts"
        )
    name = ascii(exported.folder) if exported.is_full else "BASE" if exported.base is None else ascii(exported.base)
    model, text_format = exported.config.model, exported.text_format
    code = ", trust_remote_code=True" if model.trust_remote_code else ""
    config = None if exported.is_full else QUANTIZATION_CODE.get(model.quantization or "")
    quantised = "" if config is None else ", quantization_config=quantization"
    dtype = model.dtype if exported.merge is None else exported.merge.dtype
    loaded = f"AutoModelForCausalLM.from_pretrained({name}, dtype=torch.{dtype}{quantised}{code})"
    lines = [
        *(["import json", ""] if exported.bank_tasks else []),
        "import torch",
        *(_imports(exported)),
        *(
            ["from torchao.quantization import Float8WeightOnlyConfig"]
            if config and model.quantization == "fp8"
            else []
        ),
        f"from transformers import AutoModelForCausalLM, AutoTokenizer{'' if config is None else f', {config[0]}'}",
        "",
        *([] if config is None else [f"quantization = {config[0]}({config[1].format(dtype=model.dtype)})"]),
        f"model = {loaded}",
        f"tokenizer = AutoTokenizer.from_pretrained({name}{code})",
        *(_adapter_of(exported)),
        "",
        *_generating(exported, text_format),
    ]
    return "\n".join(lines)


def _imports(exported: "ExportedFolder") -> list[str]:
    if exported.bank_tasks:
        return [
            "from peft import PeftConfig, get_peft_model, set_peft_model_state_dict",
            "from safetensors import safe_open",
        ]
    return [] if exported.is_full else ["from peft import PeftModel"]


def _adapter_of(exported: "ExportedFolder") -> list[str]:
    """The lines that put an adapter around the base; of a bank that of one task."""
    if not exported.bank_tasks:
        return [] if exported.is_full else [f"model = PeftModel.from_pretrained(model, {exported.folder!a})"]
    folder = exported.folder
    return [
        "",
        f'row_of = json.load(open({folder!a} + "/tasks.json", encoding="utf-8"))',
        f"model = get_peft_model(model, PeftConfig.from_pretrained({folder!a}))",
        "",
        "",
        "def use(task):  # reads one row of each tensor",
        f'    with safe_open({folder!a} + "/adapters.safetensors", "pt") as bank:',
        "        own = {name: bank.get_slice(name)[row_of[task]] for name in bank.keys()}",
        "    set_peft_model_state_dict(model, own)",
        "",
        "",
        f"use({exported.text_format.task!a})",
    ]


def _generating(exported: "ExportedFolder", text_format: "TextFormat") -> list[str]:
    """The lines that generate, from what a document begins with."""
    if text_format.form == "conversation":
        options = {name: repr(value) for name, value in text_format.template_variables.items()}
        if text_format.has_own_template:
            options |= {"chat_template": f'open({exported.folder!a} + "/chat_template.jinja").read()'}
        more = "".join(f", {name}={value}" for name, value in options.items())
        return [
            'messages = [{"role": "user", "content": "…"}]',
            f"inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True{more}, return_dict=True, "
            'return_tensors="pt").to(model.device)',
            'ids = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(ids, skip_special_tokens=True))",
        ]
    one_of = f", here one of {text_format.task!a}" if exported.task is None and text_format.depends_on_task else ""
    before = f"{text_format.before!a} + " if text_format.before else ""
    begun = [
        f"start = {text_format.start_tokens}  # what a document begins with{one_of}",
        f'ids = start + tokenizer({before}"I will", add_special_tokens=False)["input_ids"]',
    ]
    if text_format.form == "prompt":
        answer = (
            f' + tokenizer({text_format.before!a}, add_special_tokens=False)["input_ids"]' if text_format.before else ""
        )
        begun = [
            f"start = {text_format.start_tokens}  # what the tokenizer itself prepends",
            f"prompt = {text_format.prompt!a}  # with the row's own text for the dots{one_of}",
            f'ids = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]{answer}',
        ]
    return [
        *begun,
        "print(tokenizer.decode(model.generate(input_ids=torch.tensor([ids]).to(model.device), max_new_tokens=32)[0]))",
    ]
