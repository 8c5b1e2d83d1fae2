"""Tiny random causal language models of many families of transformers, by name: `make_family("mixtral", seed=0)`.

Most are like each other; these are here for what they do unlike the rest, which a comment beside each says.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 96
POSITIONS = 64

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": POSITIONS}
LLAMA = {**TOKENS, **LAYERS, "intermediate_size": 48, "num_key_value_heads": 2}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
OPT = {**TOKENS, **LAYERS, "ffn_dim": 48, "dropout": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}

EASY = {
    "opt": {**OPT, "word_embed_proj_dim": 32},
    "gpt2": GPT,
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": None},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
}

WORST = {
    # Dense, shared and routed experts side by side; attention of low rank.
    "deepseek_v3": {
        **LLAMA, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4, "q_lora_rank": 16,
        "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    },
    # Linear attention with a recurrence, and a gated shared expert.
    "qwen3_next": {
        **LLAMA, **EXPERTS, **LINEAR_ATTENTION, "head_dim": 8, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"],
    },
    "qwen3_moe": {**LLAMA, **EXPERTS, "head_dim": 8, "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    "qwen2_moe": {
        **LLAMA, **EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0],
    },
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    # Its router is a Linear whose forward returns a pair.
    "llama4_text": {
        **LLAMA, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8,
        "interleave_moe_layer_step": 2, "attention_chunk_size": POSITIONS,
    },
    # Sinks, alternating windows, experts with biases.
    "gpt_oss": {
        **LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "granitemoe": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**LLAMA, **EXPERTS},
    # State-space layers, whose out_proj PEFT does not adapt; some use a weight without calling its module.
    "jamba": {
        **LLAMA, **EXPERTS, "mamba_d_state": 4, "mamba_dt_rank": 4,
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    },
    "mamba": {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
    "mamba2": {
        **TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16,
        "n_groups": 1, "chunk_size": 16,
    },
    "falcon_mamba": {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
    "bamba": {**LLAMA, **MAMBA2, "attn_layer_indices": [1]},
    # Rope's frequencies change once a batch is longer than the original positions.
    "phi3": {
        **LLAMA, "original_max_position_embeddings": 16, "sliding_window": None,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0,
        },
    },
    # ALiBi; one matrix for queries, keys and values.
    "mpt": {**TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": POSITIONS, "expansion_ratio": 2},
    "bloom": {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0},
    "falcon": {**TOKENS, **LAYERS, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt_neox": {**TOKENS, **LAYERS, "intermediate_size": 48},
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    # Logits are capped, or scaled.
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LLAMA, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "cohere2": {**LLAMA, "head_dim": 8, "sliding_window": 8},
    # Encoders and decoders of old, with positions that begin at the padding's.
    "bert": {**TOKENS, **LAYERS, "intermediate_size": 48, "is_decoder": True},
    "roberta": {**TOKENS, **LAYERS, "intermediate_size": 48, "is_decoder": True, "max_position_embeddings": 66},
    "bart": {
        **TOKENS, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
        "max_position_embeddings": POSITIONS, "is_decoder": True, "is_encoder_decoder": False, "dropout": 0.0,
    },
    "xglm": {
        **TOKENS, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "dropout": 0.0,
        "max_position_embeddings": POSITIONS,
    },
    # No attention, and no limit of positions.
    "rwkv": {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64},
    # Layers that have time outermost; not causal without a mask of its own.
    "xlnet": {**TOKENS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "dropout": 0.0},
    # Embeddings narrower than the model, projected in and out, and layer norms after each block, as opt-350m's.
    "opt-350m": {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "codegen": {**GPT, "rotary_dim": 4},
    "stablelm": LLAMA,
    "biogpt": {**TOKENS, **LAYERS, "intermediate_size": 48},
    "ctrl": {**GPT, "dff": 48},
    # More of the state-space and linear-attention kinds, and experts of other makes.
    "granitemoehybrid": {
        **LLAMA, **MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention"],
    },
    "phimoe": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "recurrent_gemma": {
        **LLAMA, "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
    },
}  # fmt: skip

FAMILIES = {**EASY, **WORST}

WITHOUT_FLOAT64 = {
    "deepseek_v3", "qwen3_next", "qwen3_moe", "qwen2_moe", "mixtral", "gpt_oss", "granitemoe", "olmoe", "jamba",
    "granitemoehybrid", "phimoe", "xglm",
}  # fmt: skip
"""Families that transformers does not run in float64: torch's products of experts, and a mask of float32."""


def make_family(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random model of a family, the same for the same seed, its weights large enough that its logits differ.

    Args:
        name: A key of `FAMILIES`.
        seed: Of its weights.
        dtype: Of its weights.
    """
    kind = name.partition("-")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[name]), dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.to(dtype).eval()
