"""Which tiny model stands for each architecture: the class of transformers and the sizes that differ from the usual.

Every kind of layer is there twice, windows are shorter than the text, there are more experts than a token uses, and a
scaling of the rotary embedding has an original context shorter than the text.
"""

from __future__ import annotations

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    **dict.fromkeys(EPSILONS, 1e-3),  # large enough to be seen
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
GLM4_MOE = {
    "head_dim": 32,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "attention_bias": True,
    "use_qk_norm": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
}
LATENT = {
    "rms_norm_eps": 1e-6,  # of its inner norms, whatever the config says
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "head_dim": 8,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 2,
    "routed_scaling_factor": 1.5,
}
GEMMA = {"head_dim": 32, "tie_word_embeddings": True, "query_pre_attn_scalar": 32}
WINDOW_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

# recipe -> (class of transformers, what its config has beside and in place of SIZES)
RECIPES = {
    "llama": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "llama-yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "llama-linear": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama-yarn-corners": (
        "LlamaForCausalLM",
        {"rope_parameters": YARN | {"original_max_position_embeddings": 64, "beta_fast": 2.0, "beta_slow": 0.06}},
    ),
    "mistral": ("MistralForCausalLM", {"head_dim": 32, "sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32, "rope_parameters": YARN}),
    "gemma": ("GemmaForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2ForCausalLM",
        GEMMA | {"sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        GEMMA | {"sliding_window": 16, "num_hidden_layers": 12, "rope_parameters": WINDOW_ROPE},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        {
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "short_factor": [1.0 + 0.1 * i for i in range(8)],
                "long_factor": [1.0 + 0.5 * i for i in range(8)],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "glm4": ("Glm4ForCausalLM", {"head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5}),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 8}),
    "exaone4": (
        "Exaone4ForCausalLM",
        {"sliding_window": 16, "sliding_window_pattern": 4, "num_hidden_layers": 8, "rope_parameters": LLAMA3},
    ),
    "hunyuan-dense": ("HunYuanDenseV1ForCausalLM", {"head_dim": 32}),
    "seed_oss": ("SeedOssForCausalLM", {"head_dim": 32, "attention_bias": True}),
    "stablelm": (
        "StableLmForCausalLM",
        {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": False},
    ),
    "qwen3moe": ("Qwen3MoeForCausalLM", EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    "qwen2moe": ("Qwen2MoeForCausalLM", EXPERTS | {"shared_expert_intermediate_size": 80, "norm_topk_prob": False}),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False}),
    "granitemoe": (
        "GraniteMoeForCausalLM",
        {
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
        },
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {
            "head_dim": 32,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rope_parameters": YARN | {"truncate": True},
        },
    ),
    "glm4moe": ("Glm4MoeForCausalLM", GLM4_MOE),
    "glm4moe-groups": ("Glm4MoeForCausalLM", GLM4_MOE | {"n_group": 2}),
    "mistral3": (
        "Ministral3ForCausalLM",
        {
            "head_dim": 32,
            "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "olmo3": (
        "Olmo3ForCausalLM",
        {"sliding_window": 16, "num_hidden_layers": 8, "rope_parameters": YARN | {"attention_factor": 1.2}},
    ),
    "command-r": ("CohereForCausalLM", {"logit_scale": 0.25, "tie_word_embeddings": True, "use_qk_norm": False}),
    "cohere2": (
        "Cohere2ForCausalLM",
        {
            "logit_scale": 0.25,
            "tie_word_embeddings": True,
            "sliding_window": 16,
            "num_hidden_layers": 8,
            "head_dim": 16,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", {"n_inner": 96, "tie_word_embeddings": True, "activation_function": "gelu_new"}),
    "starcoder": ("GPTBigCodeForCausalLM", {"n_inner": 96, "tie_word_embeddings": True, "multi_query": True}),
    "starcoder2": ("Starcoder2ForCausalLM", {"use_bias": True, "sliding_window": None, "tie_word_embeddings": True}),
    "gptneox": ("GPTNeoXForCausalLM", {"rotary_pct": 0.5, "use_parallel_residual": True}),
    "gptneox-serial": ("GPTNeoXForCausalLM", {"rotary_pct": 0.25, "use_parallel_residual": False}),
    "phi2": ("PhiForCausalLM", {"partial_rotary_factor": 0.5}),
    "falcon": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96, "bias": False, "alibi": False},
    ),
    "falcon-7b": (
        "FalconForCausalLM",
        {
            "new_decoder_architecture": False,
            "multi_query": True,
            "parallel_attn": True,
            "ffn_hidden_size": 96,
            "bias": False,
            "alibi": False,
        },
    ),
    "olmo": ("OlmoForCausalLM", {"clip_qkv": 0.8}),
    "nemotron": ("NemotronForCausalLM", {"partial_rotary_factor": 0.5, "hidden_act": "relu2", "head_dim": 16}),
    "apertus": ("ApertusForCausalLM", {"rope_parameters": LLAMA3}),
    "arcee": ("ArceeForCausalLM", {}),
    "jais2": ("Jais2ForCausalLM", {}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {"head_dim": 16}),
    "ernie4_5-moe": (
        "Ernie4_5_MoeForCausalLM",
        {
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 1,
        },
    ),
    "minimax-m2": (
        "MiniMaxM2ForCausalLM",
        {"head_dim": 32, "num_local_experts": 6, "num_experts_per_tok": 2, "rotary_dim": 16},
    ),
    "hunyuan-moe": (
        "HunYuanMoEV1ForCausalLM",
        {"head_dim": 32, "num_experts": 6, "moe_topk": 2, "num_shared_expert": 1},
    ),
    "dots1": (
        "Dots1ForCausalLM",
        {
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
            "n_group": 1,
            "topk_group": 1,
            "head_dim": 32,
            "sliding_window": None,
        },
    ),
    "deepseek2": (
        "DeepseekV3ForCausalLM",
        LATENT | {"q_lora_rank": 24, "n_group": 2, "topk_group": 1, "norm_topk_prob": True},
    ),
    "deepseek2-lite": (
        "DeepseekV2ForCausalLM",
        LATENT | {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
    ),
}

SALTS = {"mixtral": 1}  # other weights, where those of salt 0 leave two experts of a token nearly equal
