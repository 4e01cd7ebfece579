"""Names of the architectures in ``models_zoo.wide``; importing this imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["TIMM", "TORCHVISION", "TRANSFORMERS"]

TORCHVISION = (
    "alexnet",
    "googlenet",
    "squeezenet1_1",
    "mnasnet0_5",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "efficientnet_v2_s",
    "inception_v3",
    "swin_v2_t",
    "maxvit_t",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
    "r3d_18",
    "swin3d_t",
)

#: name in the zoo -> name in timm
TIMM = {
    "resnet26d": "resnet26d",
    "res2net50": "res2net50_26w_4s",
    "seresnet50": "seresnet50",
    "ecaresnet26t": "ecaresnet26t",
    "resnetv2_50": "resnetv2_50",
    "mobilenetv4_conv_small": "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium": "mobilenetv4_hybrid_medium",
    "mobileone_s0": "mobileone_s0",
    "ghostnet_100": "ghostnet_100",
    "hrnet_w18_small": "hrnet_w18_small",
    "dla34": "dla34",
    "cspdarknet53": "cspdarknet53",
    "convnextv2_nano": "convnextv2_nano",
    "coatnet_0": "coatnet_0_rw_224",
    "swinv2_tiny": "swinv2_tiny_window8_256",
    "pvt_v2_b0": "pvt_v2_b0",
    "poolformer_s12": "poolformer_s12",
    "mixer_s16": "mixer_s16_224",
    "deit_tiny": "deit_tiny_patch16_224",
    "beit_base": "beit_base_patch16_224",
    "levit_128": "levit_128",
    "mobilevit_s": "mobilevit_s",
    "mobilevitv2_050": "mobilevitv2_050",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "xcit_nano": "xcit_nano_12_p8_224",
    "efficientformer_l1": "efficientformer_l1",
    "maxvit_tiny": "maxvit_tiny_rw_224",
    "vgg11": "vgg11",
    "rexnet_100": "rexnet_100",
    "hardcorenas_a": "hardcorenas_a",
}

_TOKENS: dict[str, Any] = {"vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ENCODER: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
_DECODER: dict[str, Any] = {**_ENCODER, "num_attention_heads": 8, "num_key_value_heads": 2, "use_cache": False}
_IMAGES: dict[str, Any] = {
    "image_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}

#: name -> (model class, configuration class, its options, the output that is looked at)
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 500, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "pad_token_id": 0},
        "last_hidden_state",
    ),
    "roberta": ("RobertaModel", "RobertaConfig", _ENCODER, "last_hidden_state"),
    "deberta_v2": ("DebertaV2Model", "DebertaV2Config", _ENCODER, "last_hidden_state"),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER, "logits"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 8}, "logits"),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
        "logits",
    ),
    "t5_encoder": (
        "T5EncoderModel",
        "T5Config",
        {
            "vocab_size": 500,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "attn_implementation": "eager",
        },
        "last_hidden_state",
    ),
    "bart": (
        "BartModel",
        "BartConfig",
        {
            **_TOKENS,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "decoder_start_token_id": 2,
            "use_cache": False,
        },
        "last_hidden_state",
    ),
    "vit": ("ViTModel", "ViTConfig", _IMAGES, "last_hidden_state"),
    "deit": ("DeiTModel", "DeiTConfig", _IMAGES, "last_hidden_state"),
    "whisper_encoder": (
        "WhisperEncoder",
        "WhisperConfig",
        {
            "num_mel_bins": 16,
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "max_source_positions": 32,
        },
        "last_hidden_state",
    ),
    "segformer": (
        "SegformerModel",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32, 64, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 64,
        },
        "last_hidden_state",
    ),
}
