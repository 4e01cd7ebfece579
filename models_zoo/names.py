"""Names of the architectures in ``models_zoo.wide``; importing this imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["BASES", "DIFFUSERS", "FILES", "HELD_OUT", "TIMM", "TORCHVISION", "TRANSFORMERS", "VARIANTS"]

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
    "mvit_v2_s",
    "ssdlite320_mobilenet_v3_large",
    "retinanet_resnet50_fpn",
    "raft_small",
)

#: Names in timm, one of each family that the lists above and below lack, chosen by size before graphprune saw them.
HELD_OUT = (
    "bat_resnext26ts",
    "botnet26t_256",
    "halonet26t",
    "lambda_resnet26t",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convit_tiny",
    "convmixer_1024_20_ks9_p14",
    "cpubone_t0",
    "crossvit_tiny_240",
    "csatv2",
    "cspnext_tiny",
    "davit_tiny",
    "deit3_small_patch16_224",
    "dpn68",
    "ese_vovnet19b_dw",
    "edgenext_xx_small",
    "efficientformerv2_s0",
    "mixnet_s",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gmlp_ti16_224",
    "resmlp_12_224",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "lowformer_b0",
    "mambaout_femto",
    "nf_regnet_b0",
    "eca_nfnet_l0",
    "nest_tiny",
    "nextvit_small",
    "pit_ti_224",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetz_005",
    "repghostnet_050",
    "repvit_m0_9",
    "repvgg_a0",
    "resnest14d",
    "samvit_base_patch16_224",
    "selecsls42",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s1",
    "swiftformer_xs",
    "swinv2_cr_tiny_ns_224",
    "vit_relpos_small_patch16_224",
    "tnt_s_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "twins_pcpvt_small",
    "visformer_tiny",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "volo_d1_224",
    "xception41",
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
    # torchvision has these as well, written otherwise
    "timm_resnext50": "resnext50_32x4d",
    "timm_efficientnet_b0": "efficientnet_b0",
    "timm_swin_tiny": "swin_tiny_patch4_window7_224",
    "timm_densenet121": "densenet121",
    "timm_inception_v3": "inception_v3",
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
_T5: dict[str, Any] = {
    "vocab_size": 500,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "attn_implementation": "eager",
}
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
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "batched_mm"},
        "logits",
    ),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_DECODER,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "experts_implementation": "batched_mm",
        },
        "logits",
    ),
    "t5": ("T5Model", "T5Config", {**_T5, "decoder_start_token_id": 0, "use_cache": False}, "last_hidden_state"),
    "t5_encoder": ("T5EncoderModel", "T5Config", _T5, "last_hidden_state"),
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

_UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
}

#: name -> (model class, its options, shapes of the inputs after the first two (sample, time step))
DIFFUSERS: dict[str, tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "unet": (
        "UNet2DModel",
        {
            **_UNET,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 16,
        },
        (),
    ),
    "unet_condition": (
        "UNet2DConditionModel",
        {
            **_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
        },
        ((1, 8, 32),),
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "norm_num_groups": 8,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
        },
        (),
    ),
}

#: ONNX files that packages bring: name -> the package that it comes with
FILES = {
    "silero_vad": "silero_vad",
    "silero_vad_op18_ifless": "silero_vad",
    "silero_vad_16k_op15": "silero_vad",
    "silero_vad_16k_sequence": "silero_vad",
    "silero_vad_half": "silero_vad",
    **{
        f"light_{name}": "onnx"
        for name in (
            "bvlc_alexnet",
            "densenet121",
            "inception_v1",
            "inception_v2",
            "resnet50",
            "shufflenet",
            "squeezenet",
            "vgg19",
            "zfnet512",
        )
    },
}

#: What is made of an ONNX network (see ``models_zoo.variants``), and of which networks.
VARIANTS = ("qdq", "dynamic", "float16", "batch")
BASES = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "squeezenet1_1",
    "densenet121",
    "convnext_tiny",
    "swin_t",
    "bert",
    "gpt2",
    "llama",
    "t5_encoder",
    "ocr_detector",
    "ocr_recogniser",
    "ocr_classifier",
    "light_densenet121",
)
