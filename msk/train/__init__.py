"""The five stages: tiny VAE, teacher, causal initialisation, distillation, finish. Core dependencies only."""
from .pipeline import main

__all__ = ["main"]
