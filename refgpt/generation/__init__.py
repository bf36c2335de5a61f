"""From prompts to text: sampling, stop strings, drafts, the scheduler, and log-probabilities of given texts."""

from refgpt.generation.constraint import Constraint, grammar, json_schema, regex
from refgpt.generation.loop import generate, generate_events, stream_text
from refgpt.generation.params import GenerationParams
from refgpt.generation.prefix_cache import PrefixCache
from refgpt.generation.prompt_file import PromptFile
from refgpt.generation.prompts import encode_prompt
from refgpt.generation.results import Event, Generation
from refgpt.generation.sampling import SamplingParams
from refgpt.generation.scheduler import Scheduler
from refgpt.generation.scoring import encode_continuations, score

__all__ = [
    "Constraint",
    "Event",
    "Generation",
    "GenerationParams",
    "PrefixCache",
    "PromptFile",
    "SamplingParams",
    "Scheduler",
    "encode_continuations",
    "encode_prompt",
    "generate",
    "generate_events",
    "grammar",
    "json_schema",
    "regex",
    "score",
    "stream_text",
]
