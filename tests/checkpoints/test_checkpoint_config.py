import json

import pytest

from refgpt import ModelConfig
from refgpt._common.errors import ConfigError
from refgpt._common.small_files import read_json
from refgpt.checkpoints.families.gptj import HUGGING_FACE
from tests.helpers.writers import CONFIG, config_json

GPT_J_6B = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "resid_pdrop": 0.0,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "use_cache": True,
    "vocab_size": 50400,
}


def read(path, keys):
    return HUGGING_FACE.read_config(keys, path / "config.json")


def test_gpt_j_6b(tmp_path):
    assert read(tmp_path, GPT_J_6B) == ModelConfig()
    assert read(tmp_path, {}) == ModelConfig()
    assert read(tmp_path, config_json()) == CONFIG


def without(*keys, **changes):
    return {key: value for key, value in (config_json() | changes).items() if key not in keys}


@pytest.mark.parametrize(
    ("keys", "field", "want"),
    [
        (without("n_inner"), "d_ff", 64),
        (without(n_inner=None), "d_ff", 64),
        (without(n_inner=33), "d_ff", 33),
        (without("rotary_dim", n_embd=128), "d_rotary", 64),
        (without("n_layer", num_hidden_layers=3), "n_layer", 3),
        (without("n_head", num_attention_heads=4), "n_head", 4),
        (without("n_embd", hidden_size=32), "d_model", 32),
        (without("n_positions", max_position_embeddings=9), "n_ctx", 9),
        (without("n_positions"), "n_ctx", 2048),
        (without("n_positions", n_ctx=9), "n_ctx", 2048),  # not a name that transformers knows for GPT-J
        (without(hidden_size=16), "d_model", 16),
        (without(activation_function="gelu_pytorch_tanh"), "d_ff", 24),
        (without("eos_token_id"), "eos_id", None),
        (without("eos_token_id", vocab_size=50257), "eos_id", 50256),
        (without("eos_token_id", vocab_size=50256), "eos_id", None),
        (without(eos_token_id=50256), "eos_id", None),
        (without(eos_token_id=7), "eos_id", 7),
        (without(eos_token_id=[7]), "eos_id", 7),
        (without(eos_token_id=[7, 8]), "eos_id", 7),
        (without(eos_token_id=[]), "eos_id", None),
        (without(eos_token_id=37), "eos_id", None),
        (without(eos_token_id=[36]), "eos_id", 36),
        (without(bos_token_id=10**30), "bos_id", None),
        (without(eos_token_id=None, vocab_size=50400), "eos_id", None),
        (without("bos_token_id"), "bos_id", None),
        (without(bos_token_id=0), "bos_id", 0),
    ],
)
def test_defaults_and_other_names(tmp_path, keys, field, want):
    assert getattr(read(tmp_path, keys), field) == want


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"eos_token_id": [7, 8]}, []),
        ({"bos_token_id": [7, 8]}, ["bos_token_id is a list; only its first entry is used: [7, 8]"]),
        ({"bos_token_id": 37}, ["bos_token_id 37 is not in the vocabulary of 37, so there is none"]),
        ({"eos_token_id": [7]}, []),
        ({"eos_token_id": 50256}, []),  # transformers' default, whatever the vocabulary
    ],
)
def test_odd_ids_of_tokens_are_warned_of(tmp_path, keys, says, caplog):
    read(tmp_path, without(**keys))
    assert [message.removeprefix(f"{tmp_path / 'config.json'}: ") for message in caplog.messages] == says


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation_function": "gelu"}, "tanh form"),
        ({"activation_function": None}, "tanh form"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"rotary": False}, "rotation"),
        ({"scale_attn_by_inverse_layer_idx": True}, "every layer alike"),
        ({"add_cross_attention": True}, "decoder"),
        ({"eight_bit": True}, "8-bit"),
        ({"quantization_config": {"load_in_8bit": True}}, "original weights"),
        ({"rotary_dim": None}, "correct rotary_dim"),
        ({"rotary_dim": 3}, "correct rotary_dim"),
        ({"rotary_dim": 10}, "correct rotary_dim"),
        ({"n_embd": 17}, "n_head does not divide"),
        ({"n_layer": -1}, "correct n_layer"),
        ({"n_layer": 10**30}, "correct n_layer"),
        ({"n_layer": 2.0}, "correct n_layer"),
        ({"n_layer": True}, "correct n_layer"),
        ({"n_layer": "2"}, "n_layer is not a number"),
        ({"n_embd": {}}, "not a number"),
        ({"vocab_size": None}, "correct vocab_size"),
        ({"vocab_size": [37]}, "not a number"),
        ({"layer_norm_epsilon": 0}, "correct layer_norm_epsilon"),
        ({"layer_norm_epsilon": "1e-5"}, "not a number"),
        ({"n_inner": 0}, "correct n_inner"),
        ({"eos_token_id": -1}, "correct eos_token_id"),
        ({"eos_token_id": [[1]]}, "not a number"),
        ({"eos_token_id": [True, 2]}, "correct eos_token_id"),
        ({"hidden_size": 32}, "n_embd and hidden_size"),
        ({"num_hidden_layers": 3}, "disagree"),
    ],
)
def test_refuses_what_is_not_gpt_j_or_makes_no_sense(tmp_path, change, says):
    with pytest.raises(ConfigError, match=says) as error:
        read(tmp_path, config_json(**change))
    assert "config.json" in str(error.value)


LARGEST = 1 << 20
TEXTS = {
    "empty": (b"", "is empty"),
    "cut short": (b'{"n_layer": 2', "not JSON"),
    "two objects": (b"{}{}", "not JSON"),
    "a list": (b"[1]", "not an object"),
    "not UTF-8": (b'{"a": "\xe9"}', "not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "duplicate key": (b'{"n_layer": 2, "n_head": 1, "n_layer": 3}', "twice.*n_layer"),
    "duplicate key within": (b'{"a": [{"b": 1, "b": 1}]}', "twice.*'b'"),
    "NaN": (b'{"layer_norm_epsilon": NaN}', "not finite.*NaN"),
    "infinity": (b'{"layer_norm_epsilon": -Infinity}', "not finite"),
    "1e999": (b'{"layer_norm_epsilon": 1e999}', "too large"),
    "a million digits": (b'{"n_layer": ' + b"1" * 1_000_000 + b"}", "absurdly long"),
    "deep lists": (b'{"a": ' + b"[" * 500_000, "deep"),
    "control character": (b'{"a": "\n"}', "not JSON"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_json_is_read_without_charity(tmp_path, case, quick):
    raw, says = TEXTS[case]
    (tmp_path / "config.json").write_bytes(raw)
    with quick(), pytest.raises(ConfigError, match=says) as error:
        read_json(tmp_path / "config.json", ConfigError, LARGEST)
    assert "config.json" in str(error.value) and len(str(error.value)) < 1000


def test_json_of_absurd_size_is_not_read(tmp_path, small):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with small(), pytest.raises(ConfigError, match="too large"):
        read_json(tmp_path / "config.json", ConfigError, LARGEST)


def test_good_json_is_read(tmp_path):
    keys = {"a": [1, -2.5, 1e-5, None, True, "\u00e9\n"], "b": {"c": {}}}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert read_json(tmp_path / "config.json", ConfigError, LARGEST) == keys
