"""MaxText's options (configs/base.yml and configs/types.py), each once: read, with its default there; changing the work in a way
that is not priced; how the hardware does the same work; or neutral."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def names(text: str) -> frozenset[str]:
    """The words of a list that would be long one per line."""
    return frozenset(text.split())


#: Options that the reader reads, and what base.yml (or types.py) has for them.
READ: dict[str, Any] = json.loads(Path(__file__).with_name("maxtext_defaults.json").read_text())

#: Sizes that global_parameter_scale derives from base_...; a mapping may give them as they are.
DERIVED = ("emb_dim", "mlp_dim", "moe_mlp_dim", "num_decoder_layers", "num_kv_heads", "num_query_heads")

#: Options that change the work, and the value at which they do not.
CHANGES: dict[str, Any] = {
    "moba": False,
    "training_objective": "causal_lm",
    "capacity_factor": -1.0,
    "weight_sparsity_n": None,
    "weight_sparsity_m": None,
    "trainable_parameters_mask": [],
    "enable_mhc_lite": False,
    "use_audio": False,
    "lora": None,
    "enable_lora": False,
    "student_overrides": {},
    "teacher_overrides": {},
    "learn_to_init_mode": False,
    "use_grpo": None,
    "vision_projector_type": "default",
    "student_params_to_update": None,
}

#: Options of how the hardware does the same work: they may change HFU, never FLOPs or MFU.
HARDWARE = names("""
    act_quantization_calibration_method activations_in_float32 allow_split_physical_axes attention attention_for_vit
    attention_out batch_split_factor bwd_quantization_calibration_method cast_logits_to_fp32 compile_xla_flags
    compute_axis_order constant_bound_config context context_parallel_load_balance context_parallel_reorder_strategy
    context_parallel_strategy conv_chunksize_for_audio cost_estimate_flops_bwd cost_estimate_flops_fwd custom_mesh
    custom_mesh_and_rule data_sharding dcn_autoregressive_parallelism dcn_bandwidth_burst dcn_bandwidth_interface
    dcn_bandwidth_latency dcn_bandwidth_limit dcn_context_autoregressive_parallelism dcn_context_parallelism
    dcn_context_usp_ulysses_parallelism dcn_data_parallelism dcn_diloco_parallelism dcn_expert_parallelism
    dcn_fsdp_parallelism dcn_fsdp_transpose_parallelism dcn_parallelism dcn_pipeline_parallelism dcn_sequence_parallelism
    dcn_tensor_parallelism dcn_tensor_sequence_parallelism decoder_layer_input dense_fsdp_use_two_stage_all_gather
    dq_reduction_steps dtype dtype_mm enable_padding_causal_mask engram experimental_sa_quant_k_fp8
    experimental_sa_quant_q_fp8 float32_gate_logits float32_logits float32_qk_product float32_weight_sum force_q_layout
    fused_mlp fused_qkv gdn_chunk_size grad_dtype hardware ici_autoregressive_parallelism
    ici_context_autoregressive_parallelism ici_context_parallelism ici_context_usp_ulysses_parallelism ici_data_parallelism
    ici_diloco_parallelism ici_expert_parallelism ici_fsdp_parallelism ici_fsdp_transpose_parallelism ici_parallelism
    ici_pipeline_parallelism ici_sequence_parallelism ici_tensor_parallelism ici_tensor_sequence_parallelism
    indexer_approx_top_k_recall indexer_cutoff_threshold indexer_mask_exact_topk indexer_use_approx_top_k internal_compile
    jax_cache_dir key_proj kv_proj kv_quant_axis kv_quant_dtype kv_wa_proj local_sa_block_kv local_sa_block_kv_compute
    local_sa_block_kv_dkv local_sa_block_kv_dkv_compute local_sa_block_kv_dq local_sa_block_q local_sa_block_q_dkv
    local_sa_block_q_dq local_sa_fuse_reciprocal local_sa_k_layout local_sa_q_layout local_sa_use_base2_exp
    local_sa_use_fused_bwd_kernel local_sa_v_layout local_use_splash_scheduler logical_axis_rules logits_dot_in_fp32
    matmul_precision megablox merge_gating_gmm mesh_axes mhc_pallas_kernel_bwd_block_size mhc_pallas_kernel_fwd_block_size
    mla_kv mla_naive_kvcache mla_q mla_qk_head_chunk_size mlpwi mlpwi_0 mlpwi_1 mlpwo moe_chunk_barrier
    moe_dispatch_no_expert_sharding moe_fsdp_use_two_stage_all_gather moe_mlpwi_0 moe_mlpwi_1 moe_mlpwo
    num_layers_per_pipeline_stage num_moe_emb_chunks num_moe_token_chunks num_pipeline_microbatches num_pipeline_repeats
    num_vocab_tiling optimize_mesh_for_tpu_v6e optimizer_memory_host_offload out_proj padded_base_moe_mlp_dim
    param_scan_axis parameter_memory_host_offload pipeline_delay_activation_forwarding pipeline_fsdp_ag_once
    pipeline_fsdp_ag_per_repeat pipeline_parallel_layers prefill_chunk_size prefuse_moe_weights qkv_proj quant_cfg_path
    quantization quantization_local_shard_count quantize_kvcache query_proj query_wa_proj ragged_block_size
    ragged_buffer_factor ragged_gather_cost_estimate_bytes_accessed ragged_gather_cost_estimate_flops ragged_gather_fallback
    ragged_gather_reduce_cost_estimate_bytes_accessed ragged_gather_reduce_cost_estimate_flops ragged_gather_reduce_fallback
    ragged_sort_use_single_sparsecore remat_policy remat_policy_for_vit replicate_quant_scale reshape_q ring_scan_unroll
    sa_block_kv sa_block_kv_compute sa_block_kv_dkv sa_block_kv_dkv_compute sa_block_kv_dq sa_block_q sa_block_q_dkv
    sa_block_q_dq sa_bwd_dkv_megacore sa_fuse_reciprocal sa_k_layout sa_q_layout sa_use_base2_exp sa_use_fused_bwd_kernel
    sa_v_layout scan_layers scan_layers_per_stage scan_pipeline_iterations scan_pipeline_repeats
    set_remat_policy_on_layers_per_stage set_remat_policy_on_pipeline_iterations shard_exp_on_fsdp shard_mode
    shard_optimizer_over_data sharding_strategy sharding_tolerance shardy sparse_matmul te_comm_gemm_overlap
    use_2d_fsdp_sharding use_batch_split_schedule use_chunked_prefill use_custom_sort_vjp use_gather_mosaic_kernel
    use_gmm_v2 use_iota_embed use_jax_splash use_manual_quantization use_max_logit_estimate use_mhc_pallas_kernel
    use_qwix_quantization use_ragged_attention use_ragged_sort use_ring_of_experts use_sliced_mla_proj use_splash_scheduler
    use_tokamax_gmm use_tokamax_splash use_tunix_gradient_accumulation value_proj vocab_tiling_ag_once weight_dtype
    weight_quantization_calibration_method wi_tile_dlhs_batch_seq wi_tile_dlhs_embed_dim wi_tile_dlhs_mlp_dim
    wi_tile_drhs_batch_seq wi_tile_drhs_embed_dim wi_tile_drhs_mlp_dim wi_tile_fwd_batch_seq wi_tile_fwd_embed_dim
    wi_tile_fwd_mlp_dim wo_tile_dlhs_batch_seq wo_tile_dlhs_embed_dim wo_tile_dlhs_mlp_dim wo_tile_drhs_batch_seq
    wo_tile_drhs_embed_dim wo_tile_drhs_mlp_dim wo_tile_fwd_batch_seq wo_tile_fwd_embed_dim wo_tile_fwd_mlp_dim
""")

#: Options that cannot change the work of a step.
NEUTRAL = names("""
    abort_on_inf_loss abort_on_nan_loss activation_dropout_for_audio activation_function_for_audio adam_b1 adam_b2 adam_eps
    adam_eps_root adam_weight_decay adamw_mask add_bos add_eos algo ar_cache_axis_order async_checkpointing async_scheduling
    attention_dropout_for_audio attn_logits_soft_cap attn_module_name audio_path audio_placeholder
    autoregressive_decode_assert base_output_directory batch_size beta_fast beta_slow block_diffusion_canvas_policy
    block_diffusion_logit_alignment block_diffusion_mask_id block_diffusion_min_noise causal_block_size chat_template
    chat_template_path check_vma checkpoint_conversion_fn checkpoint_dir checkpoint_is_quantized checkpoint_period
    checkpoint_storage_concurrent_gb checkpoint_storage_target_data_file_size_bytes checkpoint_storage_use_ocdbt
    checkpoint_storage_use_zarr3 checkpoint_todelete_full_path checkpoint_todelete_subdir chips_per_vm cluster
    colocated_python_checkpointing colocated_python_data_input communication_overlapping_alpha compile_topology
    compile_topology_num_slices compiled_trainstep_file compressed_rope_max_timescale context_sharding conv_stride_for_vit
    convert_checkpoint_if_possible custom_mesh_and_rule_for_eval d_model_for_audio data_shuffle_seed data_template_path
    dataset dataset_name dataset_path dataset_processor_path dataset_type debug debug_converter debug_sharding
    decode_sampling_nucleus_p decode_sampling_strategy decode_sampling_temperature decode_sampling_top_k default_prompt
    dense_init_scale diloco_outer_lr diloco_outer_momentum diloco_sync_period distill_alpha distill_alpha_end
    distill_alpha_schedule distill_beta distill_beta_end distill_beta_schedule distill_feature_loss_type
    distill_layer_indices distill_student_weights_share_map distill_temperature distill_temperature_end
    distill_temperature_schedule distill_weights_copy_map downsample_hidden_size_for_audio dpo_beta dpo_label_smoothing
    dropout_rate dump_hlo dump_hlo_delete_local_after dump_hlo_gcs_dir dump_hlo_local_dir dump_hlo_local_module_name
    dump_hlo_module_name dump_hlo_upload_all dump_hlo_xla_flags dump_jaxpr dump_jaxpr_delete_local_after dump_jaxpr_gcs_dir
    dump_jaxpr_local_dir dump_step elastic_backup_kind elastic_enabled elastic_max_retries elastic_min_slice_count
    elastic_timeout_seconds enable_autocheckpoint enable_checkpoint_cloud_logger enable_checkpointing
    enable_continuous_checkpointing enable_data_shuffling enable_diloco enable_dp_attention enable_dropout
    enable_emergency_checkpoint enable_expert_parallel enable_gcp_goodput_metrics enable_gcp_step_deviation_metrics
    enable_goodput_recording enable_jax_profiler enable_llm_inference_pool enable_model_warmup
    enable_multi_tier_checkpointing enable_nnx enable_orbax_v1 enable_pathways_goodput enable_prefix_caching
    enable_rampup_batch_size enable_single_controller enable_single_replica_ckpt_restoring enable_streaming_diloco
    enable_tensorboard enable_tpu_profiling_options enable_tunix_perf_metrics enable_wandb encoder_attention_heads_for_audio
    encoder_ffn_dim_for_audio encoder_layers_for_audio engram_seed epsilon_high eval_batch_size eval_corr_lst
    eval_data_columns eval_dataset_name eval_image_column eval_interval eval_make_lst eval_mode eval_per_device_batch_size
    eval_sampling_strategy eval_split eval_start_step eval_steps evaluation expansion_factor_real_data final_logits_soft_cap
    first_num_hash_layers force_unroll formatting_func_kwargs formatting_func_path freeze_audio_encoder_params
    fuse_expert_scales gcs_debug_path gcs_metrics generate_padding_batch_eval generate_padding_batch_train generate_slice
    generation_configs global_batch_size_to_eval_on global_batch_size_to_load global_batch_size_to_load_eval
    global_batch_size_to_load_increment global_batch_size_to_load_start global_batch_size_to_train_on global_rampup_samples
    global_rope_max_timescale global_rope_proportion goodput_upload_interval_seconds gradient_clipping_threshold
    grain_data_source_max_workers grain_eval_files grain_file_type grain_index_storage_option grain_num_threads
    grain_num_threads_eval grain_packing_type grain_per_worker_buffer_size grain_per_worker_buffer_size_eval
    grain_prefetch_buffer_size grain_prefetch_buffer_size_eval grain_ram_budget_mb grain_shuffle_buffer_size
    grain_train_files grain_train_mixture_config_path grain_use_elastic_iterator grain_worker_count grain_worker_count_eval
    grpo_beta grpo_epsilon hbm_utilization_vllm heartbeat_reporting_interval_in_seconds hf_access_token hf_data_dir
    hf_eval_files hf_eval_split hf_lora_adapter_path hf_name hf_path hf_subset hf_train_files hide_profiler_step_metric
    image_path image_placeholder inference_benchmark_test inference_devices_per_replica inference_metadata_file
    inference_microbenchmark_log_file_path inference_microbenchmark_loop_iters inference_microbenchmark_num_samples
    inference_microbenchmark_prefill_lengths inference_microbenchmark_stages inference_replicas inference_rollouts
    inference_server init_weights_seed input_data_sharding_logical_axes internal_compile_num_devices jax_debug_log_modules
    jax_distributed_initialization_timeout jax_profiler_port kv_cache_buffer learning_rate learning_rate_final_fraction
    learning_rate_schedule_steps load_balance_loss_weight load_checkpoint_only_once load_from_prefill_dir
    load_full_state_path load_parameters_path local_checkpoint_directory local_checkpoint_period local_rope_max_timescale
    local_rope_proportion log_config log_moe_bias_norms log_period log_weight_sync_time logical_axis_rules_for_eval
    lora_alpha lora_input_adapters_path lora_module_path lora_rank lora_restore_path lora_tile_size lora_weight_qtype
    loss_agg_mode loss_algo lr_schedule_type lti_layer_indices lti_use_general_linear_map managed_mldiagnostics
    managed_mldiagnostics_dir managed_mldiagnostics_on_demand_profiling managed_mldiagnostics_region
    managed_mldiagnostics_run_group managed_mldiagnostics_storage_path math_verify_num_procs math_verify_timeout
    max_checkify max_concurrency max_corpus_chars max_inflight_computations max_num_batched_tokens
    max_num_checkpoints_to_keep max_num_images_per_example max_num_seqs max_position_embeddings max_prefill_predict_length
    max_prompt_length max_sample_len_for_audio max_segments_per_seq max_source_positions_for_audio max_timescale_for_audio
    metrics_dir metrics_file micro_batch_size_to_eval_on micro_batch_size_to_train_on mlp_activations_limit moba_chunk_size
    moba_topk model_call_mode monitor_goodput monitor_step_time_deviation mrope_section mscale mtc_data_parallelism
    mtp_eval_target_module mtp_loss_scaling_factor mu_dtype multi_sampling multi_tier_checkpointing_backup_interval_minutes
    multi_tier_checkpointing_backup_interval_steps muon_beta muon_consistent_rms muon_weight_decay n_routing_groups
    n_window_for_audio n_window_infer_for_audio norm_topk_prob normalization_layer_epsilon normalize_embedding_logits
    num_batches num_communication_overlapping_steps num_conv_layers_for_audio num_diloco_fragments num_diloco_replicas
    num_epoch num_eval_passes num_generations num_iterations num_mel_bins_for_audio num_samplers_slices num_slices
    num_target_devices num_test_batches num_trainer_slices off_policy_steps offline_data_dir olmo_apply_ngram_filter
    olmo_index_path olmo_path_remap_from olmo_path_remap_to opt_type original_max_position_embeddings orpo_lambda
    output_dim_for_audio override_logical_axis_rules override_model_config packing penalty_incorrect_answer
    penalty_incorrect_format per_device_batch_size_increment per_device_batch_size_start posemb_type_for_vit
    position_id_per_seconds prefill_cache_axis_order prefill_cache_dir prefill_slice prefix_caching_dram_byte
    prefix_caching_hbm_byte profile_cleanly profile_periodically_period profile_power_events profiler profiler_steps
    projector_dropout_for_vit prometheus_port prompt pure_nnx pure_nnx_decoder qk_clip_threshold qk_norm_with_scale
    rampup_end_step rampup_samples_per_increment_to_load reasoning_end_token reasoning_start_token
    reasoning_start_token_in_prompt record_internal_nn_metrics remove_size_one_mesh_axis_from_type
    replicator_backup_interval_minutes report_heartbeat_metric_for_gcp_monitoring
    report_performance_metric_for_gcp_monitoring reshard_chunk_size return_log_prob reuse_example_batch reward
    reward_exact_answer reward_exact_format_match reward_functions reward_functions_path reward_partial_format_match
    reward_ratio_guess_to_answer_high reward_ratio_guess_to_answer_low reward_white_space_format_match rl
    rollout_data_parallelism rollout_expert_parallelism rollout_micro_batch_size rollout_tensor_parallelism
    rope_attention_scaling rope_factor rope_interleave rope_linear_scaling_factor rope_max_timescale rope_min_timescale
    rope_pairwise rope_theta_for_vit rope_truncate rope_type rope_use_scale routed_bias_update_rate routed_scaling_factor
    run_name sampler_devices_fraction save_checkpoint_on_completion save_checkpoint_on_start save_config_to_gcs
    save_quantized_params_path scale_embedding_for_audio sft_train_on_completion_only sinkhorn_iterations
    skip_first_n_steps_for_profiler skip_jax_distributed_system skip_step_interval skip_step_on_spikes
    skip_step_scaling_factor solution_end_token solution_start_token source_checkpoint_layout special_tokens
    stack_prefill_result_cache step_deviation_interval_seconds steps stop_strings subslice_shape swap_space_vllm_gb
    system_prompt target_eval_loss temperature_tuning tensorboard_dir tensors_on_device tensors_to_offload
    test_batch_start_index tokenize_eval_data tokenize_train_data tokenizer_path tokenizer_type topk_routing_group
    tpu_num_chips_to_profile_per_task tpu_num_sparse_core_tiles_to_trace tpu_num_sparse_cores_to_trace train_data_columns
    train_fraction train_image_column train_micro_batch_size train_split trainer_devices_fraction ulysses_context_sharding
    upload_all_profiler_results use_agentic_rollout use_audio_in_video use_chat_template use_mrope use_pathways
    use_pathways_reshard use_qk_clip use_qk_norm_in_gdn use_random_routing use_replicator_service use_sequential_layers
    use_sft use_standalone_converter use_truncation use_untrainable_positional_embedding use_vertex_tensorboard
    use_weight_converter using_pipeline_parallelism v_norm_with_scale vertex_tensorboard_project vertex_tensorboard_region
    video_max_grid_h video_max_grid_t video_max_grid_w video_path video_placeholder vision_connector_activation
    vision_connector_hidden_size vision_connector_num_layers vision_connector_use_bias vision_output_dim_for_vit
    vision_output_length vllm vllm_additional_config vllm_hf_config_path vllm_hf_overrides vllm_load_format
    wandb_project_name wandb_run_name warmup_steps_fraction weight_sparsity_start_step weight_sparsity_update_step
    weight_sync_debug write_estimator_result wsd_decay_steps_fraction wsd_decay_style xprof_e2e_enable_fw_power_level_event
    xprof_e2e_enable_fw_thermal_event xprof_e2e_enable_fw_throttle_event xprof_tpu_power_trace_level z_loss_multiplier
""")
