"""Files of GPT-2, GPT-Neo and GPT-NeoX as transformers writes them: its logits are recorded beside."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import refgpt
from refgpt import CheckpointError, ConfigError
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.files import torch_pickle
from refgpt.conversion import convert
from refgpt.numbers.leaves import widen
from refgpt.spec import forward, gpt2, gpt_neo, gpt_neox
from tests.goldens.recorders.family_files import CASES, HERE, IDS, LOGITS
from tests.helpers.fuzzing import FAST

FAST = settings(FAST, max_examples=300)
RECORDED = np.load(LOGITS)


def logits(path: Path) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    return forward(checkpoint.params, checkpoint.config, IDS)


def copied(case: str, directory: Path, **changes: object) -> Path:
    """A recorded directory with another config.json; a key that is None is removed."""
    shutil.copytree(HERE / case, directory)
    raw = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return directory


def numbers(path: Path) -> dict[str, bytes]:
    """Every leaf as float32, to the bit."""
    return {name: np.ascontiguousarray(widen(leaf)).tobytes() for name, leaf in open_checkpoint(path).params.items()}


def test_every_case_is_recorded():
    assert set(RECORDED) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case):
    """It takes its softmax in float32, which six digits allow for."""
    np.testing.assert_allclose(logits(HERE / case), RECORDED[case], rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_format_keeps_every_bit(tmp_path, case):
    """From each format to each other."""
    at, want, config = HERE / case, numbers(HERE / case), open_checkpoint(HERE / case).config
    for n, to in enumerate(["hf", "gguf", "refgpt", "hf", "refgpt", "gguf", "hf"]):
        convert(open_checkpoint(at), None, tmp_path / f"{n}", to)
        at = tmp_path / f"{n}"
        there = open_checkpoint(at)
        assert there.config == config and numbers(at) == want


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_for_transformers_has_its_names_and_bits(tmp_path, case):
    convert(open_checkpoint(HERE / case), None, tmp_path / "hf", "hf")
    written = load_file(tmp_path / "hf" / "model.safetensors") if CASES[case][2] != "bfloat16" else None
    if written is None:
        return  # NumPy's reader of safetensors has no bfloat16
    stored = {}
    for path in sorted((HERE / case).glob("*.safetensors")):
        stored |= load_file(path)
    for path in (HERE / case).glob("*.bin"):
        stored |= {name: np.array(tensor) for name, tensor in torch_pickle.read(path).items()}
    stored = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    for name, tensor in written.items():
        short = name.removeprefix("transformer.")
        original = stored[short] if short in stored else stored["lm_head.weight"]
        assert tensor.dtype == original.dtype and tensor.tobytes() == np.ascontiguousarray(original).tobytes(), name


@pytest.mark.parametrize("case", ["gpt2_half", "gpt_neo", "gpt_neox"])
def test_a_model_loads_with_the_spec(case):
    model = refgpt.load(HERE / case, backend="numpy")
    np.testing.assert_allclose(model.logits(IDS), RECORDED[case], rtol=1e-3, atol=1e-3)


def test_tensors_of_the_body_alone_need_no_prefix(tmp_path):
    copied("gpt_neo_shards", tmp_path / "m")
    for path in (tmp_path / "m").glob("*.safetensors"):
        save_file({n.removeprefix("transformer."): np.array(t) for n, t in load_file(path).items()}, path)
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("transformer.", ""))
    assert numbers(tmp_path / "m") == numbers(HERE / "gpt_neo_shards")


def rewritten(case: str, directory: Path, change) -> Path:
    """A recorded directory whose model.safetensors is ``change`` of the tensors."""
    copied(case, directory)
    tensors = load_file(directory / "model.safetensors")
    save_file({n: np.ascontiguousarray(t) for n, t in change(tensors).items()}, directory / "model.safetensors")
    return directory


def test_a_newer_name_of_the_head(tmp_path):
    path = rewritten("gpt_neox", tmp_path / "m", lambda t: {"lm_head.weight": t.pop("embed_out.weight"), **t})
    assert numbers(path) == numbers(HERE / "gpt_neox")


def test_a_head_that_is_there_under_both_names(tmp_path):
    path = rewritten("gpt_neox", tmp_path / "m", lambda t: {"lm_head.weight": t["embed_out.weight"], **t})
    with pytest.raises(CheckpointError, match=r"twice; got '(lm_head|embed_out)\.weight' and '(lm_head|embed_out)"):
        open_checkpoint(path)


def test_a_tied_head_may_be_stored_as_well(tmp_path):
    path = rewritten("gpt2", tmp_path / "m", lambda t: {"lm_head.weight": t["transformer.wte.weight"], **t})
    assert numbers(path) == numbers(HERE / "gpt2")


def test_a_head_of_its_own_is_refused(tmp_path):
    path = rewritten("gpt2", tmp_path / "m", lambda t: {"lm_head.weight": t["transformer.wte.weight"] + 1, **t})
    with pytest.raises(
        CheckpointError, match=r"the head should be the embedding.*; remove lm_head\.weight.*embedding$"
    ):
        open_checkpoint(path)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"the head is another matrix than the embedding, which GPT-2"):
        open_checkpoint(path)


def test_a_head_that_should_not_be_the_embedding_is_missed(tmp_path):
    with pytest.raises(CheckpointError, match="the file has no other"):
        open_checkpoint(copied("gpt2", tmp_path / "m", tie_word_embeddings=False))


def test_tied_embeddings_of_a_family_that_has_two(tmp_path):
    path = rewritten("gpt_neox", tmp_path / "m", lambda t: {n: x for n, x in t.items() if n != "embed_out.weight"})
    with pytest.raises(CheckpointError, match="the body was saved without its head: save the whole GPTNeoXForCausalLM"):
        open_checkpoint(path)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": True}))
    params = open_checkpoint(path).params
    assert (params.w_head == params.wte).all()


def test_a_fused_tensor_of_another_shape_is_named(tmp_path):
    name = "transformer.h.1.attn.c_attn.weight"
    path = rewritten("gpt2", tmp_path / "m", lambda t: t | {name: t[name].T})
    with pytest.raises(
        CheckpointError, match=r"h\.1\.attn\.c_attn\.weight is \[24, 8\], the configuration says \[8, 24\]"
    ):
        open_checkpoint(path)


# ---- config.json ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "called"),
    [
        ("mpt", "MPT"),
        ("falcon", "Falcon"),
        ("stablelm", "StableLM"),
        ("stablelm_epoch", "StableLM"),
        ("codegen", "CodeGen"),
    ],
)
def test_models_that_look_alike_are_refused_by_name(tmp_path, model_type, called):
    with pytest.raises(ConfigError, match=f"which is {called}"):
        open_checkpoint(copied("gpt_neox", tmp_path / "m", model_type=model_type))


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("gpt2", {"activation_function": 3}, "activation_function"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention describes another model"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "quantised weights are not read"),
        ("gpt2", {"scale_attn_weights": "yes"}, "scale_attn_weights"),
        ("gpt2", {"hidden_size": 9}, "mean the same and disagree"),
        ("gpt_neo", {"attention_types": [[["global", "sparse", "local"], 1]]}, "attention_layers"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}, "disagree"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 10**9]]}, "attention_types makes no sense"),
        ("gpt_neo", {"attention_types": "global"}, "attention_types makes no sense"),
        ("gpt_neo", {"attention_layers": 3}, "attention_layers is no list"),
        ("gpt_neo", {"window_size": 10**30}, "window_size cannot be used"),
        ("gpt_neo", {"attention_types": [[[["global"]], 3]], "attention_layers": None}, "attention_layers"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "yarn"}}, "positions are not scaled"),
        ("gpt_neox", {"rope_parameters": [1]}, "no object"),
        ("gpt_neox", {"rope_scaling": {"type": "linear"}}, "positions are not scaled"),
        ("gpt_neox", {"rope_scaling": {"factor": 4}}, r"rope_scaling describes.* not scaled.*'factor'"),
        ("gpt_neox", {"rope_scaling": {"type": None, "factor": 4}}, "positions are not scaled"),
        ("gpt_neox", {"rope_scaling": []}, "no object"),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": "half"}, r"rotary_pct \(partial.* is not a number"),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 1.5}, "rotary_pct .*cannot be used"),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0.4}, r"rotary_pct \(.* is odd.*; correct rotary_pct"),
        ("gpt_neox", {"rope_parameters": None, "rotary_emb_base": 0}, r"rotary_emb_base \(rope_theta\) cannot be used"),
        ("gpt_neox", {"hidden_act": "silu"}, "hidden_act"),
        ("gpt_neox", {"num_attention_heads": 0}, "num_attention_heads"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path, case, changes, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        open_checkpoint(copied(case, tmp_path / "m", **changes))


def test_other_names_of_keys(tmp_path):
    names = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    raw = json.loads((HERE / "gpt2" / "config.json").read_text())
    changes = {new: raw[old] for old, new in names.items()} | dict.fromkeys(names)
    assert open_checkpoint(copied("gpt2", tmp_path / "m", **changes)).config == open_checkpoint(HERE / "gpt2").config


def test_older_names_of_the_rotation(tmp_path):
    changes = {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500.0}
    path = copied("gpt_neox_sequential", tmp_path / "m", **changes)
    assert open_checkpoint(path).config == open_checkpoint(HERE / "gpt_neox_sequential").config


def test_a_base_that_is_a_whole_number_is_written_to_gguf_as_a_float(tmp_path):
    """Pythia's config.json has a whole number here, and llama.cpp reads only a float."""
    path = copied("gpt_neox", tmp_path / "m", rope_parameters=None, rotary_pct=0.25, rotary_emb_base=500)
    convert(open_checkpoint(path), None, tmp_path / "gguf", "gguf")
    field = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf").fields["gptneox.rope.freq_base"]
    assert field.types == [gguf.GGUFValueType.FLOAT32] and field.contents() == 500
    assert open_checkpoint(tmp_path / "gguf").config == open_checkpoint(path).config


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_llama_cpp_does_not_compute_is_told_when_it_is_written_to_gguf(tmp_path, case, caplog):
    convert(open_checkpoint(HERE / case), None, tmp_path / "m", "gguf")
    special = {"gpt2_scaled": "scale_attn_by_inverse_layer_idx True", "gpt_neox_sequential": "attention_bias False"}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.rpartition(": ")[2] for message in said] == ([special[case]] if case in special else [])


def test_an_empty_object_says_nothing_of_the_rotation(tmp_path):
    path = copied("gpt_neox_sequential", tmp_path / "m", rope_scaling={})
    assert open_checkpoint(path).config == open_checkpoint(HERE / "gpt_neox_sequential").config


def test_a_rotation_of_the_type_default_ignores_what_would_scale(tmp_path):
    rotation = {"rope_type": "default", "factor": 4, "rope_theta": 500, "partial_rotary_factor": 0.5}
    path = copied("gpt_neox_sequential", tmp_path / "m", rope_parameters=rotation)
    assert open_checkpoint(path).config == open_checkpoint(HERE / "gpt_neox_sequential").config


@pytest.mark.parametrize(
    ("case", "key", "name", "same"),
    [
        ("gpt_neox", "hidden_act", "gelu_python", "gelu"),
        ("gpt2", "activation_function", "gelu_accurate", "gelu_new"),
    ],
)
def test_names_of_one_activation_are_one_formula(tmp_path, case, key, name, same):
    paths = [copied(case, tmp_path / one, **{key: one}) for one in (name, same)]
    found, want = (refgpt.load(path, tokenizer=None).logits([1, 2, 3]) for path in paths)
    assert (found == want).all()


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_a_scaling_by_nothing_is_the_rotation_under_its_earlier_name(tmp_path, kind):
    changes = {"rope_parameters": None, "rope_scaling": {kind: "default"}, "rotary_pct": 0.5, "rotary_emb_base": 500.0}
    path = copied("gpt_neox_sequential", tmp_path / "m", **changes)
    assert open_checkpoint(path).config == open_checkpoint(HERE / "gpt_neox_sequential").config


def test_layers_spelt_out(tmp_path):
    changes = {"attention_types": None, "attention_layers": ["global", "local", "local"]}
    assert open_checkpoint(copied("gpt_neo", tmp_path / "m", **changes)).config.attention_layers[1:] == ("local",) * 2


def test_masks_of_local_layers_are_not_taken_for_a_prompt_s():
    assert open_checkpoint(HERE / "gpt_neo").mask == "causal"
    assert "lower triangular" in open_checkpoint(HERE / "gpt2_half").mask_source
    assert "lower triangular" in open_checkpoint(HERE / "gpt_neox_brain").mask_source


def test_a_name_gives_no_prefix_mask_to_a_model_with_local_layers(tmp_path):
    """A draft model for GPT-JT is an example."""
    for case, mask in (("gpt_neo", "causal"), ("gpt2", "prefix")):
        path = copied(case, tmp_path / f"{case}-for-gpt-jt")
        convert(open_checkpoint(HERE / case), None, tmp_path / f"{case}-gpt-jt-gguf", "gguf")
        assert open_checkpoint(path).mask == mask
        raw = (tmp_path / f"{case}-gpt-jt-gguf" / "model.gguf").read_bytes()
        (tmp_path / f"{case}-gpt-jt.gguf").write_bytes(raw.replace(b"refgpt.mask", b"refgpt.musk"))
        assert open_checkpoint(tmp_path / f"{case}-gpt-jt.gguf").mask == mask


WEIRD = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    "global",
    [],
    ["local"],
    [[["local"], 2]],
    [[[{}], 3]],
    {},
    {"a": []},
]


@FAST
@given(st.sampled_from(["gpt2", "gpt_neo", "gpt_neox_sequential"]), st.data())
def test_whatever_config_json_says_is_read_or_refused(case, data):
    raw = json.loads((HERE / case / "config.json").read_text())
    keys = [*sorted(raw), "attention_layers", "num_hidden_layers", "rotary_pct", "rotary_emb_base", "rope_scaling"]
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        raw[key] = data.draw(st.sampled_from(WEIRD))
    raw["rope_parameters"] = data.draw(st.sampled_from([*WEIRD, {"rope_theta": []}, {"partial_rotary_factor": {}}]))
    form = FAMILIES[case.removesuffix("_sequential")].HUGGING_FACE
    try:
        config = form.read_config(raw, HERE / case / "config.json")
    except ConfigError as fault:
        assert len(str(fault)) < 1000
    else:
        assert form.read_config(form.config_json(config), HERE / "config.json") == config


def test_what_config_json_leaves_out_is_as_in_transformers():
    """The defaults of GPT2Config, GPTNeoConfig and GPTNeoXConfig, written down a second time."""
    path = Path("config.json")
    assert FAMILIES["gpt2"].HUGGING_FACE.read_config({}, path) == gpt2.Config()
    neo = FAMILIES["gpt_neo"].HUGGING_FACE.read_config({}, path)
    layers = ("global", "local") * 12
    assert neo == gpt_neo.Config(n_layer=24, n_head=16, d_model=2048, d_ff=8192, attention_layers=layers)
    neox = FAMILIES["gpt_neox"].HUGGING_FACE.read_config({}, path)
    shape = {"n_layer": 44, "n_head": 64, "d_model": 6144, "d_ff": 24576, "d_rotary": 24, "n_vocab": 50432}
    assert neox == gpt_neox.Config(**shape, n_ctx=2048, activation="gelu", bos_id=0, eos_id=2)
