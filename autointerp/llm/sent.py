"""A request under way: who waits for its outcome, and how its reply becomes a row."""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any

from autointerp.llm.ledger import Ledger
from autointerp.llm.prices import NOTHING, Cost, Prices
from autointerp.llm.request import Reply, Request
from autointerp.rows import Call


@dataclass
class Sent:
    """A request that has been handed to a line."""

    request: Request
    purpose: str
    repair_of: str | None
    ledger: Ledger
    prices: Prices
    expected: Cost  # the most it is likely to cost
    done: "SimpleQueue[tuple[Sent, Any]]" = field(repr=False)  # takes (this, a Call or what went wrong)
    tries: int = 0
    started: float = 0.0  # the first try, by time.perf_counter
    lost: Cost = NOTHING  # of attempts without a reply that may have been billed

    def record(self, reply: Reply) -> Call:
        """The reply as a row, which is in the ledger when this returns."""
        request, model = self.request, self.request.model
        if reply.status == "ok" and not reply.text.strip():
            reply = replace(reply, status="unparsed", reason="empty")
        row = Call(
            call_id=request.call_id, provider=model.provider, base_url=model.base_url, model=model.name,
            model_answered=reply.model, purpose=self.purpose, draw=request.draw,
            request=json.dumps(request.messages, ensure_ascii=False),
            reply=reply.text.encode("utf-8", "replace").decode(), status=reply.status, reason=reply.reason,
            repair_of=self.repair_of, input_tokens=reply.input_tokens, cached_tokens=reply.cached_tokens,
            output_tokens=reply.output_tokens, usd=self.prices.usd(model, reply), ms=reply.ms, tries=reply.tries,
            asked_at=datetime.now(UTC).replace(tzinfo=None),
        )  # fmt: skip
        self.ledger.add(row)
        return row
