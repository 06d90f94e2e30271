"""The six stages: tiny VAE, teacher, causal initialisation, distillation, cutter, finish. Core dependencies only."""
from .pipeline import main

__all__ = ["main"]
