"""From prompts to text: sampling, stop strings, drafts, the loop that runs them, and log-probabilities of given texts."""

from refgpt.generation.loop import Event, Generation, generate, generate_events, stream_text
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import Prompt, encode_prompt
from refgpt.generation.sampling import SamplingParams
from refgpt.generation.scoring import encode_continuations, score

__all__ = [
    "Event",
    "Generation",
    "GenerationParams",
    "Prompt",
    "SamplingParams",
    "encode_continuations",
    "encode_prompt",
    "generate",
    "generate_events",
    "score",
    "stream_text",
]
