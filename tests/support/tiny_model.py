"""Write a model folder that vLLM serves with `--load-format dummy`: a few layers, no weights.

Run it with the Python of vLLM's own environment, which has `tokenizers`: `python tiny_model.py FOLDER`.
What a request costs the scheduler does not depend on the values of the weights, so random ones will do.
"""

import importlib
import json
import random
import sys
from itertools import product
from pathlib import Path

VOCABULARY = 4096
POSITIONS = 16384
START, END = "<|start|>", "<|end|>"

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}

CHAT_TEMPLATE = (
    "{% if tools %}"
    + START
    + "tools\n{{ tools | tojson }}"
    + END
    + "{% endif %}"
    + "{% for message in messages %}"
    + START
    + "{{ message['role'] }}\n{{ message['content'] }}"
    + END
    + "{% endfor %}"
    + "{% if add_generation_prompt %}"
    + START
    + "assistant\n{% endif %}"
)

# Every word is two of these syllables, and there are few enough for each word to become one token.
SYLLABLES = [consonant + vowel for consonant, vowel in product("bdfgklmnprs", "aeiou")]
WORDS = [first + second for first, second in product(SYLLABLES, SYLLABLES)]
RARE_WORDS = [word + syllable for word, syllable in zip(WORDS, SYLLABLES * len(SYLLABLES), strict=True)]


def words(count: int, seed: int) -> str:
    """Text that the tokenizer below cuts into exactly `count` tokens, one for each word and its space."""
    return "".join(f" {word}" for word in random.Random(seed).choices(WORDS, k=count))


def make_model(folder: Path) -> Path:
    """Write config, tokenizer and chat template into `folder`, the same bytes every time."""
    tokenizers = importlib.import_module("tokenizers")  # absent from the development environment
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The model emits every id, and each needs text: rare words fill what the others leave of the vocabulary.
    tokenizer.train_from_iterator([f" {word}" for word in [*WORDS * 3, *RARE_WORDS]], trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, not {VOCABULARY}")

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "model_max_length": POSITIONS,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    return folder


if __name__ == "__main__":
    make_model(Path(sys.argv[1]))
