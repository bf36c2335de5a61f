import gguf
import numpy as np
import pytest

from refgpt._common.errors import CheckpointError
from refgpt.checkpoints.files import ggml_blocks
from refgpt.checkpoints.files.ggml_blocks import BLOCKS, SIZES, TYPES, Blocks, decode, map_tensor
from refgpt.numbers.leaves import widen
from refgpt.numbers.mapped import map_file
from tests.helpers.ggml_writers import QUANTISED, block_bytes, decoded_block, tensor_bytes

#: Every pattern of bits is a block, with scales from subnormal to the largest (NaN and infinity left out).
RANDOM = np.random.default_rng(3)


def random_blocks(encoding, n=200):
    blocks = RANDOM.integers(0, 256, (n, BLOCKS[encoding].itemsize), np.uint8)
    blocks = np.ascontiguousarray(blocks).view(BLOCKS[encoding]).reshape(n, 1)
    for name in ("scale", "least"):
        if name in BLOCKS[encoding].names:
            bits = blocks[name].view("<u2")
            blocks[name] = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits).astype("<u2").view("<f2")
    return blocks


@pytest.mark.parametrize("encoding", QUANTISED)
def test_random_blocks_decode_to_the_bit(encoding):
    blocks = random_blocks(encoding)
    got = decode(blocks, encoding)
    want = np.array([decoded_block(encoding, block.tobytes()) for block in blocks], "<f4")
    assert got.dtype == np.float32 and got.tobytes() == want.tobytes()
    by_library = gguf.quants.dequantize(
        blocks.view(np.uint8).reshape(len(blocks), -1), gguf.GGMLQuantizationType[encoding.upper()]
    )
    assert (got == by_library).all()


@pytest.mark.parametrize("encoding", QUANTISED)
def test_every_number_of_a_row_is_in_its_place(encoding):
    """The writer quantises well: its numbers come back within half a step, so none can have changed places."""
    numbers = RANDOM.permutation(np.linspace(-1, 1, 4 * 96)).reshape(4, 96)
    raw = np.frombuffer(tensor_bytes(encoding, numbers), BLOCKS[encoding]).reshape(4, 3)
    n_steps = {"4": 15, "5": 31, "8": 254}[encoding[1]]
    step = 2 / n_steps * (1.2 if encoding.endswith("_0") else 1)
    assert (np.abs(decode(raw, encoding) - numbers) <= step).all()


def test_tables_are_the_librarys():
    by_library = {kind.value: kind.name.lower() for kind in gguf.GGMLQuantizationType}
    assert {n: name.lower() for n, name in TYPES.items() if n not in (4, 5)}.items() <= by_library.items()
    for encoding, dtype in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding.upper()]] == (
            SIZES.get(encoding, 32),
            dtype.itemsize,
        )


@pytest.mark.parametrize("encoding", QUANTISED)
def test_a_mapped_matrix(tmp_path, encoding):
    numbers = RANDOM.standard_normal((7, 64))
    raw = tensor_bytes(encoding, numbers)
    (tmp_path / "x").write_bytes(b"odd" + raw)
    leaf = map_tensor(map_file(tmp_path / "x"), "w", encoding, (7, 64), 3)
    assert isinstance(leaf, Blocks)
    assert leaf.shape == (7, 64) and leaf.nbytes == len(raw) and leaf.dtype == np.float32 and leaf.size == 7 * 64
    assert leaf.encoding == encoding and "x, tensor 'w'" in leaf.place
    whole = widen(leaf)
    assert whole.tobytes() == decode(np.frombuffer(raw, BLOCKS[encoding]).reshape(7, 2), encoding).tobytes()
    assert (leaf.rows(2, 5) == whole[2:5]).all() and (leaf[np.array([6, 0, 6])] == whole[[6, 0, 6]]).all()
    leaf.release()
    assert (leaf.rows(0, 7) == whole).all()
    with pytest.raises(CheckpointError, match="beyond the end"):
        map_tensor(map_file(tmp_path / "x"), "w", encoding, (7, 64), 4)


def test_float16_and_bfloat16_hold_no_format_exactly():
    """What the module promises of its numbers."""
    for encoding in QUANTISED:
        numbers = decode(random_blocks(encoding), encoding)
        with np.errstate(over="ignore"):
            assert (numbers.astype(np.float16).astype(np.float32) != numbers).any()


def test_what_cannot_be_in_blocks():
    with pytest.raises(CheckpointError, match="multiples of 32"):
        ggml_blocks.n_bytes_of("here", "q4_0", (4, 33))
    with pytest.raises(CheckpointError, match="matrix"):
        ggml_blocks.n_bytes_of("here", "q4_0", (64,))
    with pytest.raises(CheckpointError, match="q4_K"):
        ggml_blocks.encoding_of("here", 12)
    with pytest.raises(CheckpointError, match="type 99"):
        ggml_blocks.encoding_of("here", 99)


def test_the_writers_blocks_by_hand():
    """One block worked out on paper: scale 0.5, numbers -4 .. 3.5 and their mirror."""
    numbers = [n / 2 for n in range(-8, 8)] * 2
    raw = block_bytes("q4_0", numbers)
    assert raw == b"\x00\x38" + bytes(n | n << 4 for n in range(16))
    assert decoded_block("q4_0", raw) == numbers
