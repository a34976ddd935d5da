"""Small models for the tests of tracing: configurations that a reader knows."""

_LLAMA = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "vocab_size": 128, "tie_word_embeddings": False,
}  # fmt: skip
READ = {
    "llama": {**_LLAMA, "model_type": "llama"},
    "gemma3_text": {
        **_LLAMA, "model_type": "gemma3_text", "num_hidden_layers": 3, "sliding_window": 20, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3_moe": {
        **_LLAMA, "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    },
    "deepseek_v3": {
        **{name: value for name, value in _LLAMA.items() if name != "head_dim"},
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_shared_experts": 1,
    },
}  # fmt: skip
#: The token that stands for an image.
IMAGE = 5
SMALL = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97}
GEMMA = {
    "text_config": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "vision_config": {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32,
        "patch_size": 8, "vision_use_head": False,
    },
    "mm_tokens_per_image": 4, "image_token_index": IMAGE, "image_token_id": IMAGE,
}  # fmt: skip
WHISPER = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "num_mel_bins": 8, "max_source_positions": 10,
    "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def assert_equal(traced, read, convention, lengths):
    """Two plans of one model: the same FLOPs of each component that has any."""
    for passes in ("forward", "training"):
        lines = [plan.breakdown(passes=passes, **lengths) for plan in (traced, read)]
        if convention == "palm":  # norms and tied weights are parameters of other components there
            assert sum(lines[0].values()) == sum(lines[1].values())
        else:
            assert lines[0] == {name: value for name, value in lines[1].items() if value}, convention
