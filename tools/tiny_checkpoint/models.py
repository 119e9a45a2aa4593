"""The untrained components of the checkpoint: small instances of Z-Image's own classes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from zimage_stream.engines.tiny.captions import COMBINATIONS, Language, caption, variants

LATENT_CHANNELS = 16
VOCABULARY = 640
TEXT_WIDTH = 96
_TOKENIZER_CAPTIONS = 20_000
_CHAT_TEMPLATE = (
    "{%- for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)

# The libraries' constructors carry no types.
_autoencoder: Any = AutoencoderKL
_transformer: Any = ZImageTransformer2DModel
_scheduler: Any = FlowMatchEulerDiscreteScheduler
_text_encoder: Any = Qwen3Model
_tokenizer: Any = Qwen2Tokenizer


def random_caption(combination: tuple[str, str, str], rng: random.Random) -> str:
    """Choose one of a combination's captions, in either language with equal probability."""
    language: Language = rng.choice(("en", "zh"))
    return caption(*combination, language, rng.randrange(variants(combination[0], language)))


def build_tokenizer(folder: Path) -> None:
    """Learn byte pairs from captions and save a tokenizer with the model's chat template."""
    rng = random.Random(0)
    corpus = [random_caption(rng.choice(COMBINATIONS), rng) for _ in range(_TOKENIZER_CAPTIONS)]
    learner: Any = ByteLevelBPETokenizer(add_prefix_space=False)
    learner.train_from_iterator(corpus, vocab_size=VOCABULARY, min_frequency=5)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = _tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=4096,
    )
    tokenizer.padding_side = "right"
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def make_autoencoder() -> Any:
    """Create the autoencoder: 1.00 M parameters, from 64x64 pixels to 16 channels of 8x8."""
    channels = [16, 32, 64, 64]
    return _autoencoder(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_transformer() -> Any:
    """Create the transformer, of 5.12 M parameters."""
    width, heads = 192, 6
    head = width // heads
    time_axis = head // 4
    space_axis = (head - time_axis) // 2
    return _transformer(
        in_channels=LATENT_CHANNELS,
        dim=width,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[time_axis, space_axis, space_axis],
        axes_lens=[1024, 128, 128],
    )


def make_text_encoder(vocabulary: int) -> Any:
    """Create the text encoder, of 0.31 M parameters."""
    return _text_encoder(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attention_dropout=0.0,
            use_cache=False,
        )
    )


def make_scheduler() -> Any:
    """Create the scheduler, with the shift of Z-Image-Turbo."""
    return _scheduler(num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=False)
