"""Memory of the backward pass: used again, but never while somebody needs it."""

import numpy as np

from refgpt.runtime.gradients import room as rooms
from refgpt.runtime.gradients.room import Room, StepMemory
from refgpt.runtime.gradients.texts import groups
from refgpt.spec.gradients import Text


def test_arrays_last_until_the_block_after_the_next():
    room = Room(100)
    first, second = room.array(3, 7), room.array(5)
    assert (first.shape, second.shape) == ((3, 7), (5,))
    assert not np.may_share_memory(first, second)
    room.next_block()
    third = room.array(3, 7)
    assert not any(np.may_share_memory(third, other) for other in (first, second))
    room.next_block()
    assert np.may_share_memory(room.array(3, 7), first)
    assert all(array.ctypes.data % 64 == 0 for array in (first, second, third))


def test_where_there_is_no_room_arrays_are_new_ones(monkeypatch):
    room = Room(20)
    kept = [room.array(10) for _ in range(4)]
    assert not any(np.may_share_memory(a, b) for i, a in enumerate(kept) for b in kept[:i])
    monkeypatch.setattr(rooms, "MOST_BYTES", 4 * 20 - 1)
    room = Room(20)
    array = room.array(20)
    room.next_block(), room.next_block()
    assert not np.may_share_memory(room.array(20), array)


def lens(found):
    return [[len(text.ids) for text in group] for group in found]


def test_texts_go_together_while_there_is_room():
    texts = [Text(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in (5, 4, 1, 20, 1, 1)]
    assert lens(groups(texts, 1, 0, 10, 1000)) == [[5, 4, 1], [20], [1, 1]]
    assert lens(groups(texts, 1, 0, 0, 0)) == [[5], [4], [1], [20], [1], [1]]
    assert lens(groups(texts, 2, 0, 1000, 20)) == [[5, 4, 1], [20], [1, 1]]
    assert lens(groups(texts, 0, 1, 1000, 22)) == [[5, 4, 1], [20], [1, 1]]  # 3 x 5 and 2 x 20 keys
    assert lens(groups([], 1, 1, 10, 10)) == []


def test_memory_of_a_step_serves_the_next_ones_while_it_is_large_enough(monkeypatch):
    memory, made = StepMemory(), []

    def of(size, key="a"):
        return memory.get("x", key, size, lambda: made.append(size) or object())

    first = of(5)
    assert of(5) is first and of(4) is first and made == [5]
    second = of(6)
    assert second is not first and of(5) is second and of(5, "b") is not second and made == [5, 6, 5]
    zeros = memory.zeros("y", (2, 3))
    zeros += 1
    again = memory.zeros("y", (2, 3))
    assert again is zeros and not again.any() and again.shape == (2, 3)
    assert memory.zeros("y", (3, 2)) is not zeros
    monkeypatch.setattr(rooms, "MOST_BYTES", 23)
    assert memory.zeros("z", (6,)) is not memory.zeros("z", (6,))
