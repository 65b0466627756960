"""The only door to a language model: ask, cache, record.

A stage gives jobs and takes answers as they complete. Whatever is in the ledger (`call`) comes from there; the rest is
asked of a provider, many requests at once, and recorded before it is used. One file per provider: `openai` (any server
that speaks its API), `anthropic`, `local` (a causal LM in this process, through transformers).
"""

from autointerp.llm.door import Door, check
from autointerp.llm.request import Answer, Job, Model, Reading, Reply, Request

__all__ = ["Answer", "Door", "Job", "Model", "Reading", "Reply", "Request", "check"]
