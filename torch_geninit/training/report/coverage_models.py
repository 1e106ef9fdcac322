"""The networks of docs/results/coverage.md, as data: names, small configurations, example inputs.

An input is (shape, kind): ``"image"`` for floats, ``"tokens"`` for small whole numbers. Where a model has no
entry for its inputs, the tracer has to guess them.
"""

from __future__ import annotations

from typing import Any, Final

Input = tuple[tuple[int, ...], str]

IMAGE: Final[Input] = ((2, 3, 224, 224), "image")
CLIP: Final[Input] = ((2, 3, 8, 112, 112), "image")
LARGE_CLIP: Final[Input] = ((1, 3, 16, 224, 224), "image")

# Family of torchvision.models -> how to build its models and what they take.
TORCHVISION: Final[dict[str, dict[str, Any]]] = {
    "classification": {"options": {"num_classes": 10}},
    "segmentation": {"options": {"weights_backbone": None, "num_classes": 10}, "inputs": [IMAGE]},
    "detection": {
        "options": {"weights_backbone": None, "num_classes": 10},
        "list": [((3, 320, 320), "image")],
    },
    "video": {"options": {"num_classes": 10}, "inputs": [CLIP]},
}
TORCHVISION_INPUTS: Final[dict[str, Input]] = {
    "mvit_v1_b": LARGE_CLIP,
    "mvit_v2_s": LARGE_CLIP,
    "s3d": ((2, 3, 16, 224, 224), "image"),
}
OWN_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    # Their own initialisation draws truncated normals in Python, which takes long.
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}

# One model a family (a family is a module of timm.models), small ones.
TIMM: Final[tuple[str, ...]] = tuple(
    """beit_base_patch16_224 halonet50ts gernet_s cait_xxs24_224 coat_tiny convit_tiny
    convmixer_768_32 convnext_tiny cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_s cspnext_tiny
    davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn48b edgenext_small efficientformer_l1
    efficientformerv2_s0 tinynet_a efficientvim_m1 efficientvit_b0 efficientvit_m0
    eva02_tiny_patch14_224 fasternet_s fastvit_s12 focalnet_tiny_lrf gcvit_tiny ghostnet_050
    hardcorenas_a hgnet_tiny hiera_tiny_224 hrnet_w18_small iformer_s inception_next_tiny
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_384_s8 lowformer_b0
    mambaout_tiny maxvit_tiny_pm_256 caformer_s18 gmlp_s16_224 mobilenetv3_small_050 mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_siglip nasnetalarge nest_tiny nextvit_small nf_seresnet26
    pit_xs_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnety_040_sgn repghostnet_050
    repvit_m0_9 res2net50d resnest50d resnet50 resnetv2_50 rexnet_150 selecsls42 legacy_senet154
    sequencer2d_s shvit_s1 skresnet50 starnet_s1 swiftformer_xs swin_s3_tiny_224
    swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_l
    twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
    vit_relpos_small_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim legacy_xception
    xception41 xcit_tiny_12_p8_224""".split()
)

_TEXT: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
_GROUPED: Final = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
_VISION: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
_SPEECH: Final = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_BOTH_SIDES: Final = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_SMALL_IMAGE: Final[dict[str, Input]] = {"pixel_values": ((2, 3, 32, 32), "image")}
_WAVE: Final[dict[str, Input]] = {"input_values": ((2, 2000), "image")}

# Class of transformers -> (keywords of its configuration, inputs or None for the tracer to guess).
TRANSFORMERS: Final[dict[str, tuple[dict[str, Any], dict[str, Input] | None]]] = {
    "BertForMaskedLM": (_TEXT, None),
    "RobertaModel": (_TEXT, None),
    "AlbertModel": ({**_TEXT, "embedding_size": 16}, None),
    "DistilBertModel": ({"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, None),
    "ElectraModel": ({**_TEXT, "embedding_size": 16}, None),
    "DebertaV2Model": ({**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, None),
    "ConvBertModel": ({**_TEXT, "embedding_size": 32}, None),
    "LongformerModel": ({**_TEXT, "attention_window": 8}, None),
    "FNetModel": (
        {
            "vocab_size": 100,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
        },
        None,
    ),
    "XLNetModel": ({"vocab_size": 100, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, None),
    "GPT2LMHeadModel": (
        {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        None,
    ),
    "GPTNeoXForCausalLM": (_TEXT, None),
    "LlamaForCausalLM": (_GROUPED, None),
    "MistralForCausalLM": (_GROUPED, None),
    "MixtralForCausalLM": ({**_GROUPED, "num_local_experts": 4}, None),
    "Qwen2ForCausalLM": ({**_TEXT, "num_key_value_heads": 2}, None),
    "Gemma2ForCausalLM": (_GROUPED, None),
    "PhiForCausalLM": (_TEXT, None),
    "OPTForCausalLM": (
        {
            "vocab_size": 100,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
        None,
    ),
    "BloomForCausalLM": ({"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
    "FalconForCausalLM": (
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        None,
    ),
    "DeepseekV3Model": (
        {
            **_TEXT,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        None,
    ),
    "MambaForCausalLM": (
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        None,
    ),
    "RwkvModel": (
        {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 32},
        None,
    ),
    "T5ForConditionalGeneration": (
        {
            "vocab_size": 100,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        None,
    ),
    "BartForConditionalGeneration": ({**_BOTH_SIDES, "max_position_embeddings": 64}, None),
    "WhisperModel": (
        {
            **_BOTH_SIDES,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "max_target_positions": 40,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        {"input_features": ((2, 16, 100), "image"), "decoder_input_ids": ((2, 4), "tokens")},
    ),
    "Wav2Vec2Model": (_SPEECH, _WAVE),
    "HubertModel": (_SPEECH, _WAVE),
    "ViTModel": (_VISION, None),
    "Dinov2Model": (
        {k: v for k, v in _VISION.items() if k != "intermediate_size"},
        _SMALL_IMAGE,
    ),
    "SwinModel": (
        {
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "image_size": 32,
            "patch_size": 2,
        },
        _SMALL_IMAGE,
    ),
    "CLIPModel": (
        {
            "text_config": {**_TEXT, "projection_dim": 16},
            "vision_config": {**_VISION, "projection_dim": 16},
            "projection_dim": 16,
        },
        {"input_ids": ((2, 12), "tokens"), **_SMALL_IMAGE},
    ),
    "SegformerForSemanticSegmentation": (
        {
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        None,
    ),
    "ConvNextModel": ({"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}, None),
    "ResNetModel": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, None),
}
