"""The scheduler: texts do not depend on when requests come, on their company or on who leaves; nobody is forgotten."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.generation import reading as module
from refgpt.generation.loop import generate
from refgpt.generation.params import GenerationParams
from refgpt.generation.reading import MANY_PROMPTS, ROWS_BESIDE, ROWS_BESIDE_OF_MANY, pieces
from refgpt.generation.room import BLOCK, Room, position_bytes
from refgpt.generation.scheduler import Scheduler
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.runtime_models import LONG
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=1, n_ctx=64)
ENGINES = {
    "runtime": Runtime(random_params(CONFIG, 5), CONFIG, threads=1),
    "q8": Runtime(random_params(CONFIG, 5), CONFIG, threads=1, kv_dtype="q8"),
    "spec": SpecEngine(random_params(CONFIG, 5), CONFIG),
    "long": Runtime(random_params(LONG, 11), LONG, threads=2, kv_dtype="f16"),
}
SETTINGS = [
    {"temperature": 0},
    {"seed": 3, "temperature": 0.8, "speculate": 5},
    {"seed": 4, "repetition_penalty": 1.3, "logprobs": 2, "top_k": 20},
    {"seed": 5, "ignore_eos": True, "frequency_penalty": 0.5},
]


def model_of(engine, mask="causal"):
    return SimpleNamespace(engine=ENGINES[engine], tokenizer=None, mask=mask)


def ids_of(events, request):
    return [event.choice.id for event in events if event.seq == request]


@pytest.mark.parametrize(
    "engine, mask", [("runtime", "causal"), ("runtime", "prefix"), ("q8", "prefix"), ("spec", "prefix")]
)
@given(
    seed=st.integers(0, 2**32),
    beside=st.sampled_from([1, 3, 8, 64]),
    alone=st.sampled_from([1, 7, 512]),
    n_slots=st.integers(1, 5),
    n_blocks=st.integers(1, 6),  # a block is the whole context here
    n_requests=st.integers(1, 9),
)
@settings(max_examples=20, deadline=None)
def test_no_text_depends_on_arrivals_cancellations_or_sizes(
    engine, mask, seed, beside, alone, n_slots, n_blocks, n_requests
):
    model, rng = model_of(engine, mask), np.random.default_rng(seed)
    asked, gone, events = {}, set(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS_BESIDE", beside)
        patch.setattr(module, "ROWS_BESIDE_OF_MANY", 2 * beside)
        patch.setattr(module, "ROWS_ALONE", alone)
        scheduler = Scheduler(model, n_slots, n_blocks * CONFIG.n_ctx * position_bytes(model.engine))
        while scheduler.busy or len(asked) < n_requests:
            for _ in range(min(n_requests - len(asked), int(rng.integers(0, 4)))):
                prompt = rng.integers(1, CONFIG.n_vocab, rng.integers(1, 40)).tolist()
                params = GenerationParams(max_new_tokens=int(rng.integers(1, 12)), **SETTINGS[rng.integers(0, 4)])
                asked[scheduler.add(prompt, params)] = prompt, params
            if asked and rng.random() < 0.1:
                request = int(rng.choice(list(asked)))
                if scheduler.cancel(request):
                    gone.add(request)
            events += scheduler.step()
    for request, (prompt, params) in asked.items():
        want = generate(model, [prompt], params)[0]
        got = ids_of(events, request)
        assert got == want.ids if request not in gone else got == want.ids[: len(got)]
        if request not in gone:
            (reason,) = [event.finish_reason for event in events if event.seq == request and event.finish_reason]
            assert reason == want.finish_reason


class Watched:
    """An engine whose passes are kept."""

    def __init__(self, engine):
        self._engine, self.passes, self.sessions = engine, [], []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def session(self, n_seqs, capacity):
        session = self._engine.session(n_seqs, capacity)
        step = session.step

        def watched(parts, n_rows):
            self.passes.append([(slot, len(ids), prefix_len) for slot, ids, prefix_len in parts])
            return step(parts, n_rows)

        session.step = watched
        self.sessions.append(session)
        return session


def watched(engine, mask="causal"):
    return SimpleNamespace(engine=Watched(ENGINES[engine]), tokenizer=None, mask=mask)


def test_a_long_prompt_is_read_between_the_others_tokens():
    model = watched("long")
    scheduler = Scheduler(model, 4)
    talking = scheduler.add([3, 4, 5], temperature=0, max_new_tokens=30, ignore_eos=True)
    scheduler.step()
    scheduler.add(list(range(1, 201)), temperature=0, max_new_tokens=2)
    for _ in range(-(-200 // ROWS_BESIDE)):
        events = scheduler.step()
        assert len(ids_of(events, talking)) == 1  # no pass without a token for the one who talks
    assert [size for parts in model.engine.passes[1:8] for _, size, _ in parts if size > 1] == [ROWS_BESIDE] * 6 + [8]
    assert all(sum(size for _, size, _ in parts) <= ROWS_BESIDE + 1 for parts in model.engine.passes)


def test_where_nobody_waits_prompts_are_read_together_in_large_pieces():
    model = watched("long")
    scheduler = Scheduler(model, 8)
    for n in (100, 150, 40, 7):
        scheduler.add([1] * n, max_new_tokens=1)
    scheduler.step()
    assert [size for _, size, _ in model.engine.passes[0]] == [100, 150, 40, 7]
    assert not scheduler.busy


class Reader(SimpleNamespace):
    """A prompt; equal ones are different keys of a dict."""

    __hash__, __eq__ = object.__hash__, object.__eq__


def reader(n, n_read=0, prefix_len=0):
    """A prompt of ``n`` ids, of which some have been read."""
    return Reader(ids=[1] * n, n_read=n_read, prefix_len=prefix_len, first_row=n - 1)


@pytest.mark.parametrize(
    "readers, beside, sizes",
    [
        ([(200,)], True, {0: 32}),
        ([(200, 190)], True, {0: 10}),
        ([(20,), (20,), (20,)], True, {0: 20, 1: 12}),  # of equal ones, one after the other
        ([(200,), (10,), (5,)], True, {0: 17, 1: 10, 2: 5}),
        ([(200,), (100,), (30,)], True, {0: 16, 2: 16}),
        ([(200,), (100,), (100,), (90,)], True, {0: 96, 1: 6, 3: 90}),
        ([(600,), (600, 500), (200,)], False, {0: 256, 1: 100, 2: 156}),
        ([(50, 0, 50), (10,)], True, {0: 50}),  # a prefix goes in one piece
        ([(50,), (20, 0, 20), (10, 0, 10)], True, {0: 22, 2: 10}),
        ([], True, {}),
    ],
)
def test_which_rows_of_which_prompts_a_pass_reads(readers, beside, sizes):
    tasks = [reader(*one) for one in readers]
    assert [(tasks.index(task), size) for task, size in pieces(tasks, beside)] == list(sizes.items())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.booleans())
def test_every_pass_reads_as_many_rows_as_it_may(sizes, beside):
    tasks = [reader(n) for n in sizes]
    most = ROWS_BESIDE if len(tasks) < MANY_PROMPTS else ROWS_BESIDE_OF_MANY
    assert sum(size for _, size in pieces(tasks, beside)) == min(sum(sizes), most if beside else module.ROWS_ALONE)


def test_many_prompts_at_once_are_read_faster_and_the_first_text_begins_early():
    """Of sixteen prompts that come at once, one begins after the first pass, and none waits for the others' texts."""
    model = watched("long")
    scheduler = Scheduler(model, 16)
    scheduler.add([1] * 64, max_new_tokens=64, ignore_eos=True)
    scheduler.step()
    waiting = {scheduler.add([1] * 64, max_new_tokens=64, ignore_eos=True) for _ in range(15)}
    begun = []
    while waiting:
        found = waiting & {event.seq for event in scheduler.step()}
        waiting -= found
        begun.append(len(found))
    assert begun[0] == ROWS_BESIDE_OF_MANY // 64 and sum(begun) == 15
    n_early = 15 - MANY_PROMPTS  # before so few are left that the others' texts come first again
    assert len(begun) <= -(-n_early * 64 // ROWS_BESIDE_OF_MANY) + MANY_PROMPTS * 64 // ROWS_BESIDE
    assert max(sum(size for _, size, _ in parts) for parts in model.engine.passes) <= ROWS_BESIDE_OF_MANY + 16


def test_a_short_prompt_does_not_wait_for_a_long_one():
    scheduler = Scheduler(watched("long"), 4)
    talking = scheduler.add([3, 4, 5], temperature=0, max_new_tokens=60, ignore_eos=True)
    scheduler.step()
    slow, quick = scheduler.add([1] * 200, max_new_tokens=1), scheduler.add([2] * 20, max_new_tokens=1)
    order = []
    while slow not in order:
        order += [event.seq for event in scheduler.step() if event.seq != talking]
    assert order == [quick, slow]


def test_a_prefix_goes_in_one_piece_and_is_never_shared_out():
    model = watched("long", "prefix")
    scheduler = Scheduler(model, 4)
    for n in (5, 200, 100, 30):
        scheduler.add([1] * n, temperature=0, max_new_tokens=8, ignore_eos=True)
    while scheduler.busy:
        scheduler.step()
    pieces = [(size, prefix) for parts in model.engine.passes for _, size, prefix in parts if prefix]
    assert sorted(pieces) == [(n, n) for n in (5, 30, 100, 200)]


def test_requests_begin_in_order_and_wait_for_slots_and_memory():
    model = watched("long")
    blocks = 8 * BLOCK * position_bytes(model.engine)
    scheduler = Scheduler(model, 3, blocks)
    sizes = {scheduler.add([1] * n, max_new_tokens=1): n for n in (200, 100, 230, 20, 20, 20)}
    begun, most = [], 0
    while scheduler.busy:
        scheduler._admit()
        begun += [task.request for task in scheduler._running if task.request not in begun]
        most = max(most, scheduler.n_running)
        scheduler.step()
        if begun == [0, 1]:  # the third needs four blocks, and is not overtaken while it waits for them
            assert scheduler.n_waiting == 4
    assert begun == list(sizes)
    assert most == 3


def test_memory_that_short_texts_left_behind_does_not_lock_out_a_long_one():
    model = watched("long")
    scheduler = Scheduler(model, 4, 8 * BLOCK * position_bytes(model.engine))
    for _ in range(4):
        scheduler.add([1] * 5, max_new_tokens=2)
    long = scheduler.add([2] * 250, max_new_tokens=2, temperature=0, ignore_eos=True)
    events = []
    while scheduler.busy:
        events += scheduler.step()
    assert (
        ids_of(events, long)
        == generate(model_of("long"), [[2] * 250], GenerationParams(max_new_tokens=2, temperature=0, ignore_eos=True))[
            0
        ].ids
    )


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 640), st.integers(0, 640), st.integers(0, 2)), max_size=30),
    st.data(),
)
def test_room_is_never_given_twice_nor_beyond_its_memory(wanted, data):
    room, held, shared = Room(5, 640, 12 * BLOCK), [], {}
    for n_slots, n_positions, n_shared, group in wanted:
        n_shared = shared.get(group, min(n_shared, n_positions))
        n_positions = max(n_positions, n_shared)  # all texts of a group begin with what they share
        slots = room.take(n_slots, n_positions, n_shared, group)
        if slots is not None:
            held.append((slots, group, n_positions))
            shared[group] = n_shared
        own = [
            len(slots) * (room.size(n_positions) - shared[group] // BLOCK * BLOCK) for slots, group, n_positions in held
        ]
        together = {group: shared[group] // BLOCK * BLOCK for _, group, _ in held}
        assert room.n_taken == sum(own) + sum(together.values()) <= 12 * BLOCK
        taken = [slot for slots, _, _ in held for slot in slots]
        assert sorted([*taken, *room.free]) == list(range(5))
        if held and data.draw(st.booleans()):
            slots, group, _ = held.pop(data.draw(st.integers(0, len(held) - 1)))
            room.give_back(slots)
            if all(other != group for _, other, _ in held):
                del shared[group]


@pytest.mark.parametrize("asked", [{"num_beams": 4}, {"seed": 3, "temperature": 1.5}])
def test_texts_of_one_prompt_share_the_memory_for_it(asked):
    """A prompt of 200 tokens has three full blocks. What follows them is at most a block for each of four texts."""
    model, prompt, n_bytes = model_of("long"), [1, 2] * 100, 7 * BLOCK * position_bytes(ENGINES["long"])
    params = GenerationParams(max_new_tokens=40, ignore_eos=True, num_return_sequences=4, **asked)
    scheduler = Scheduler(model, 4, n_bytes)
    request, events, used = scheduler.add(prompt, params), [], []
    while scheduler.busy:
        events += scheduler.step()
        used.append((scheduler._session.cache.n_blocks_used, scheduler.n_running))
    assert 6 <= max(used)[0] <= 7 and scheduler._session.cache.n_blocks_used == scheduler._room.n_taken == 0
    assert max(n_running for _, n_running in used) == (1 if "num_beams" in asked else 4)
    for index, text in enumerate(generate(model, [prompt], params)[0]):
        assert [event.choice.id for event in events if event.index == index] == text.ids
    assert {event.seq for event in events} == {request}
    if "num_beams" in asked:
        with pytest.raises(GenerationError, match=r"^max_cache_bytes: "):
            Scheduler(model, 4, n_bytes - 1).add(prompt, params)


def test_a_text_that_could_never_have_the_memory_is_refused_at_once():
    model = watched("long")
    scheduler = Scheduler(model, 4, 2 * BLOCK * position_bytes(model.engine))
    with pytest.raises(GenerationError, match=r"^max_cache_bytes: .*got room for 128 positions.*raise max_cache_bytes"):
        scheduler.add([1] * 100, max_new_tokens=100)
    assert not scheduler.busy
    scheduler.add([1] * 100, max_new_tokens=28)


@pytest.mark.parametrize(
    "change, said",
    [({"max_slots": 0}, "^max_slots: "), ({"max_cache_bytes": 10}, "^max_cache_bytes: "), ({"capacity": 0}, "^capac")],
)
def test_numbers_that_make_no_sense_are_named(change, said):
    with pytest.raises(GenerationError, match=said):
        Scheduler(model_of("runtime"), **change)


def test_fewer_slots_where_the_system_grants_no_more():
    class Poor(Watched):
        def session(self, n_seqs, capacity):
            if n_seqs > 2:
                raise GenerationError("the attention cache does not fit into memory")
            return super().session(n_seqs, capacity)

    scheduler = Scheduler(SimpleNamespace(engine=Poor(ENGINES["runtime"]), tokenizer=None, mask="causal"), 8)
    for _ in range(5):
        scheduler.add([1, 2], max_new_tokens=3, ignore_eos=True)
    scheduler.step()
    assert (scheduler.n_running, scheduler.n_waiting) == (2, 3)


def test_one_that_fails_takes_nobody_along():
    """Its keys are too large for the cache: the others' texts are those that they have alone."""

    class Faulty(Watched):
        def session(self, n_seqs, capacity):
            session = super().session(n_seqs, capacity)
            step = session.step

            def faulty(parts, n_rows):
                if any(9 in ids for _, ids, _ in parts):
                    raise GenerationError("keys or values are too large for float16")
                return step(parts, n_rows)

            session.step = faulty
            return session

    scheduler = Scheduler(SimpleNamespace(engine=Faulty(ENGINES["runtime"]), tokenizer=None, mask="causal"), 4)
    prompts = [[1, 2], [9, 2], [3, 4, 5]]
    params = GenerationParams(temperature=0, max_new_tokens=6, ignore_eos=True)
    requests = [scheduler.add(prompt, params) for prompt in prompts]
    events = []
    while scheduler.busy:
        events += scheduler.step()
    (failed,) = [event for event in events if event.seq == requests[1]]
    assert (failed.finish_reason, failed.choice) == ("error", None) and "too large" in str(failed.error)
    for i in (0, 2):
        want = generate(model_of("runtime"), [prompts[i]], params)[0].ids
        assert [event.choice.id for event in events if event.seq == requests[i]] == want


def test_cancelling_frees_the_slot_and_says_whether_there_was_anything():
    scheduler = Scheduler(model_of("runtime"), 1)
    first, second = scheduler.add([1, 2], max_new_tokens=50, ignore_eos=True), scheduler.add([3], max_new_tokens=1)
    assert [event.seq for event in scheduler.step()] == [first]
    assert scheduler.cancel(first) and not scheduler.cancel(first) and not scheduler.cancel(99)
    assert [event.seq for event in scheduler.step()] == [second]
    assert not scheduler.busy and scheduler.step() == []


def test_it_is_part_of_the_package_and_takes_texts():
    model = refgpt.load()
    scheduler = refgpt.Scheduler(model, max_slots=2, max_cache_bytes=1 << 26)
    params = refgpt.GenerationParams(max_new_tokens=6, seed=1)
    requests = {scheduler.add(text, params, seed=seed): (text, seed) for seed, text in enumerate(["Once", "The", "A"])}
    texts = dict.fromkeys(requests, "")
    while scheduler.busy:
        for event in scheduler.step():
            texts[event.seq] += event.text
    for request, (text, seed) in requests.items():
        assert texts[request] == model.generate(text, params, seed=seed).text
    with pytest.raises(GenerationError, match="max_new_tokens"):
        scheduler.add("a", max_new_tokens=0)
