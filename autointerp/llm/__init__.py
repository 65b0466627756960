"""The only door to a language model: ask, cache, record.

A stage asks for replies to requests; whatever is in the ledger (`call`) comes from there, the rest is asked of the
provider and recorded. One file per provider: `local` runs a causal LM through transformers.
"""

from autointerp.llm.door import Door, Reply, Request

__all__ = ["Door", "Reply", "Request"]
