"""Training by many machines over slow links: local steps, rare exchange, compressed differences."""

from refgpt.cluster.compression import Compression, DamagedMessage, parse_compression
from refgpt.cluster.coordinator import Coordinator, Round, Rules
from refgpt.cluster.local import RoundReport, train_locally
from refgpt.cluster.rounds import Sync, parse_sync
from refgpt.cluster.worker import Worker

__all__ = [
    "Compression",
    "Coordinator",
    "DamagedMessage",
    "Round",
    "RoundReport",
    "Rules",
    "Sync",
    "Worker",
    "parse_compression",
    "parse_sync",
    "train_locally",
]
