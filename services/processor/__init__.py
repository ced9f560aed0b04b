"""The processor: one device that thousands of vPLMs share.

It owns the device: backbones, modules in host memory, the queue, the batch. It answers texts with
vPLMs and tells which immutable version answered. It keeps nothing that matters: whatever is lost
here is fetched again from storage. It never trains, never talks to the trainer, and never decides
what a tenant may store.

One request: `servicer` decodes it into an `InferenceRequest` (`requests`), `pipeline` admits it or
refuses at once (`scheduling.admission`), finds which version is asked for (`resolver`), tokenises
and queues it; `lanes.dispatch` holds queue and modules under one lock; the lanes (`lanes.device`)
prepare and compute what `scheduling.scheduler` picks, with `engine`, and `answers` turns outputs
into predictions.

Modules that are not in memory (`memory.residency`) come through `memory.loader`, once however many
requests wait (`memory.demand`). Memory is two tiers of rows (`memory.tiers`), host and device, each
a budget of slots (`memory.space`) with memory behind them (`memory.arena`); `memory.policy` says
who leaves first. `renting` keeps the terms on which vPLMs are served.

A request may be answered materialised: rows of n-grams stand in for lower layers
(`materialize.standin`), looked up while a batch is prepared, computed with it where none is at
hand; before general rows come those of a vPLM's domain (`materialize.domains`).
`materialize.learning` keeps the rows that traffic asks for, `materialize.keeping` runs that
in the background, and `materialize.sharing` tells other processors.
"""
